#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_restore."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_restore
short_description: Bring a machine back from a backup
version_added: 0.1.0
description:
  - Makes a new machine from a backup, or gives a machine the disks of a backup in place of its own.
  - All files of the backup, and of those that it lies over, are read and compared with their SHA-256 first.
  - A new machine has the definition that the backup keeps, with a new UUID and new MACs. What is inside its disks is as
    it was, also a fixed address, unless O(cloud_init) gives it a seed of its own. The old seed and other disks that
    were only read are left out.
options:
  backup:
    description: The name of the backup.
    type: str
    required: true
  vm:
    description: The name that the machine had when it was backed up. It may be gone.
    type: str
  vm_uuid:
    description: The UUID that it had.
    type: str
  pool:
    description: The pool that the backup lies in.
    type: str
    default: backups
  new_name:
    description:
      - The name of the machine to make. Where there is one of that name nothing is done, if it was made from the same
        backup. Without O(new_name) the machine itself is restored in place; this is a change every time.
    type: str
  new_uuid:
    description: The UUID of the machine to make. Chosen by chance without it.
    type: str
  disk_pool:
    description: The pool for the disks of a machine that is made. Disks restored in place stay in their pools.
    type: str
    default: default
  metadata:
    description: What is noted about a machine that is made, as in M(virtfleet.core.vm).
    type: dict
  networks:
    description:
      - The network cards of a machine that is made. Left out, it has those that the backup tells of, with new MACs.
    type: list
    elements: dict
    suboptions:
      bridge:
        description: A bridge of the host.
        type: str
      network:
        description: A network of libvirt's.
        type: str
      mac:
        description: The MAC address; made from the UUID if left out.
        type: str
      model:
        description: The model of the card.
        type: str
        default: virtio
      address:
        description: A fixed address with its prefix length, given by the seed.
        type: str
      gateway:
        description: The gateway, given by the seed.
        type: str
      dns:
        description: Name servers, given by the seed.
        type: list
        elements: str
      filter:
        description:
          - The network filter (M(virtfleet.core.nwfilter)) of the card; V(none) for none. Left out, that of the same
            card in the backup.
        type: str
  cloud_init:
    description:
      - The seed of a machine that is made, from which it learns its name and addresses. Left out, it has none, and what
        is inside its disks stays as it was.
    type: dict
    suboptions:
      hostname:
        description: The name inside the machine; O(new_name) if left out.
        type: str
      ssh_keys:
        description: Public keys that may log in.
        type: list
        elements: str
      user_data:
        description: The user data of cloud-init.
        type: str
      user_data_src:
        description: A file, where the module runs, with the user data.
        type: path
  start:
    description:
      - Whether the machine runs afterwards. Left out, a new one does not, and one restored in place does when it did.
    type: bool
  stop:
    description:
      - Whether a running machine may be stopped to be restored in place. Its power is cut, for what is in its disks
        now is lost anyway.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
seealso:
  - module: virtfleet.core.vm_backup
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Look into an old state in a machine beside the one that runs
  virtfleet.core.vm_restore:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    backup: nightly-20260131
    new_name: web1-old
    start: true
    timeout: 3600

- name: Go back to it
  virtfleet.core.vm_restore:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    backup: nightly-20260131
    stop: true
    timeout: 3600
"""

RETURN = r"""
vm:
  description: The machine as it is then, as in M(virtfleet.core.vm_info). In check mode its name and state only.
  returned: success
  type: dict
backup:
  description: The backup, as in M(virtfleet.core.vm_backup).
  returned: success
  type: dict
"""

import uuid as uuids
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import restore
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import (
    CLOUD_INIT,
    NETWORKS,
    identity,
)
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    libvirt = None

SPEC: dict[str, Any] = {
    **COMMON,
    "backup": {"type": "str", "required": True},
    "vm": {"type": "str"},
    "vm_uuid": {"type": "str"},
    "pool": {"type": "str", "default": "backups"},
    "new_name": {"type": "str"},
    "new_uuid": {"type": "str"},
    "disk_pool": {"type": "str", "default": "default"},
    "metadata": {"type": "dict"},
    "networks": NETWORKS,
    "cloud_init": CLOUD_INIT,
    "start": {"type": "bool"},
    "stop": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {
    "required_one_of": [("vm", "vm_uuid")],
    "required_by": {option: ["new_name"] for option in ("new_uuid", "networks", "cloud_init")},
}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Restore a backup."""
    name = backups.check_backup_name(params["backup"])
    vm, uuid = identity(params["vm"], params["vm_uuid"])
    goal = f"restore backup {name} of machine {vm or uuid}"
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        pool = backups.pool_of(connection, params["pool"], goal, whole)
        there = backups.all_in(pool, vm, uuid)
        found = backups.find(there, name)
        if found is None:
            known = ", ".join(each["name"] for each in there[-10:]) or "none at all"
            raise VirtfleetError(
                goal, f"there is no such backup in pool {pool.name()}", f"It has {known}.", "not_found"
            )
        origin = restore.Origin(pool, tuple(backups.chain(there, found)))
        if params["new_name"] is not None:
            return _as_new(connection, origin, params, check=check, deadline=whole)
        return _in_place(connection, origin, params, check=check, deadline=whole)


def _as_new(
    connection: libvirt.virConnect, origin: restore.Origin, params: dict[str, Any], *, check: bool, deadline: Deadline
) -> Result:
    name = str(params["new_name"])
    _name, uuid = identity(name, params["new_uuid"])
    backup = origin.manifest
    goal = f"restore backup {backup['name']} as machine {name}"
    # Tells a second run that its work is done.
    mark = {"backup": backup["name"], "uuid": backup["uuid"]}
    shown = backups.shown(backup, origin.pool.name())
    domain = vms.find(connection, name, uuid)
    made = domain is None
    if domain is not None and vms.describe(domain)["metadata"].get("restored_from") != mark:
        text = "a machine of that name is there, which was not made from this backup"
        raise VirtfleetError(goal, text, "Choose another name.", "already_exists")
    target = pools.file_pool(connection, params["disk_pool"], goal)
    starts = bool(params["start"]) and (domain is None or not domain.isActive())
    after = {"name": name, "state": "running" if params["start"] else "stopped"}
    before = None if domain is None else {"name": name, "state": vms.state_of(domain)}
    if before is not None and not starts:
        after = before
    kept = {**(params["metadata"] or {}), "restored_from": mark}
    inside = params["networks"], params["cloud_init"]
    new = restore.New(name, uuid or str(uuids.uuid4()), target, kept, *inside)
    if domain is None:
        restore.check_new(origin, new)
    if check:
        return Result(made or starts, {"vm": after, "backup": shown}, before, after)
    if domain is None:
        backups.verify(origin.pool, origin.links, deadline)
        domain = restore.as_new(connection, origin, new, deadline)
    if starts:
        vms.start(domain)
    return Result(made or starts, {"vm": vms.describe(domain), "backup": shown}, before, after)


def _in_place(
    connection: libvirt.virConnect, origin: restore.Origin, params: dict[str, Any], *, check: bool, deadline: Deadline
) -> Result:
    backup = origin.manifest
    domain = vms.find(connection, None, backup["uuid"])
    if domain is None:
        goal = f"restore backup {backup['name']} of machine {backup['vm']} in place"
        hint = "Restore it as a new machine: give new_name."
        raise VirtfleetError(goal, "the machine is not there any more", hint, "not_found")
    restore.check_in_place(domain, origin, may_stop=params["stop"])
    state = vms.state_of(domain)
    runs = bool(domain.isActive()) if params["start"] is None else params["start"]
    before = {"name": domain.name(), "state": state, "restored": None}
    after = {"name": domain.name(), "state": "running" if runs else "stopped", "restored": backup["name"]}
    shown = backups.shown(backup, origin.pool.name())
    if check:
        return Result(True, {"vm": {"name": after["name"], "state": after["state"]}, "backup": shown}, before, after)
    was_active = bool(domain.isActive())
    backups.verify(origin.pool, origin.links, deadline)  # before anything is stopped
    vms.destroy(domain)
    try:
        restore.in_place(domain, origin, deadline)
    except BaseException:
        if was_active:
            vms.start(domain)
        raise
    if runs:
        vms.start(domain)
    return Result(True, {"vm": vms.describe(domain), "backup": shown}, before, after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
