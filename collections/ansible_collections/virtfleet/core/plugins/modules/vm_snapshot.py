#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_snapshot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Snapshots of a machine
version_added: 0.1.0
description:
  - Makes a snapshot of a machine, brings the machine back to one, or deletes one.
  - An B(internal) snapshot lies inside the machine's qcow2 files, with its memory if it runs. An B(external) one keeps
    the disk as it is, and the machine goes on in a new file over it. A machine has one kind only.
  - Before libvirt 9.9 a machine cannot be brought back to an external snapshot. The host is asked; with O(mode=auto)
    none is made that could not be gone back to.
options:
  name:
    description: The name of the snapshot.
    type: str
    required: true
  vm:
    description: The name of the machine.
    type: str
  vm_uuid:
    description: Its UUID. A machine of the name O(vm) with another UUID is not touched.
    type: str
  state:
    description:
      - With V(present), a snapshot of that name is made unless there is one.
      - With V(reverted), the machine is as it was then; what it has written since is lost. This is a change every time.
      - With V(absent), the snapshot is deleted; the machine goes on as it is.
      - With V(exported), what the disks held then is brought out as qcow2 volumes of their own, which need neither the
        machine nor the snapshot. Of an internal one only while the machine is stopped.
    type: str
    choices: [present, absent, reverted, exported]
    default: present
  mode:
    description: The kind of a new snapshot. V(auto) is internal where that is possible.
    type: str
    choices: [auto, internal, external]
    default: auto
  memory:
    description:
      - Whether a new snapshot has the memory of a machine that runs. Left out, an internal one has it, an external one
        has not.
    type: bool
  quiesce:
    description: Whether the agent inside the machine is to make its file systems quiet meanwhile. For external ones.
    type: bool
    default: false
  description:
    description: What a new snapshot is for.
    type: str
  children:
    description:
      - What happens to snapshots made after one that is deleted. V(keep) leaves them, V(delete) deletes them too,
        V(refuse) deletes nothing when there are any.
    type: str
    choices: [keep, delete, refuse]
    default: keep
  retain:
    description:
      - How many snapshots to keep of those whose names begin alike. The oldest go, after the new one was made and seen.
    type: dict
    suboptions:
      prefix:
        description: How their names begin. That of the new one begins so too.
        type: str
        required: true
      count:
        description: How many to keep, the new one among them.
        type: int
        required: true
  export_pool:
    description: The pool in which the volumes of an export lie.
    type: str
    default: default
  export_name:
    description:
      - How the names of the volumes of an export begin; after the machine and the snapshot if left out. They end with
        the disk's target and V(.qcow2); a small one that ends with V(.json) says what they are.
    type: str
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
seealso:
  - module: virtfleet.core.vm_snapshot_info
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Keep how a machine is before it is upgraded
  virtfleet.core.vm_snapshot:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: before-upgrade

- name: Bring it back
  virtfleet.core.vm_snapshot:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: before-upgrade
    state: reverted

- name: Bring out what its disks held then
  virtfleet.core.vm_snapshot:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: before-upgrade
    state: exported
    export_name: web1-2026
    timeout: 3600

- name: A snapshot of every two hours, the last three kept
  virtfleet.core.vm_snapshot:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: "auto-{{ now(utc=true, fmt='%Y%m%d-%H%M%S') }}"
    retain:
      prefix: auto-
      count: 3
"""

RETURN = r"""
snapshots:
  description:
    - The machine's snapshots then, oldest first. C(disks) tells for each disk which file holds what was kept. In check
      mode they are as they are now.
  returned: success
  type: list
  elements: dict
  sample:
    - name: before-upgrade
      mode: internal
      memory: true
      state: running
      created_at: '2026-01-31T12:00:00Z'
      description: ''
      parent: null
      children: []
      current: true
      disks:
        - target: vda
          mode: internal
          path: /var/lib/libvirt/images/web1-5c2b3d0e-root
deleted:
  description: The names of the snapshots that were or would be deleted, those that O(retain) let go among them.
  returned: success
  type: list
  elements: str
exported:
  description: The volumes of an export, each with C(target), C(pool), C(volume) and C(size_bytes).
  returned: success
  type: list
  elements: dict
  sample:
    - target: vda
      pool: default
      volume: web1-5c2b3d0e-before-upgrade-vda.qcow2
      size_bytes: 10737418240
vm:
  description: The machine as it is then, as in M(virtfleet.core.vm_info).
  returned: success
  type: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import snapshot as snapshots
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.snapshot_export import Export
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_description, check_name
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    libvirt = None

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "vm": {"type": "str"},
    "vm_uuid": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "reverted", "exported"], "default": "present"},
    "mode": {"type": "str", "choices": list(snapshots.MODES), "default": "auto"},
    "memory": {"type": "bool"},
    "quiesce": {"type": "bool", "default": False},
    "description": {"type": "str"},
    "children": {"type": "str", "choices": ["keep", "delete", "refuse"], "default": "keep"},
    "retain": {
        "type": "dict",
        "options": {"prefix": {"type": "str", "required": True}, "count": {"type": "int", "required": True}},
    },
    "export_pool": {"type": "str", "default": "default"},
    "export_name": {"type": "str"},
}
RULES: dict[str, Any] = {"required_one_of": [("vm", "vm_uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the snapshot, or the machine, into the wanted state."""
    name = check_name(params["name"], "snapshot")
    vm, uuid = identity(params["vm"], params["vm_uuid"])
    _check(params, name)
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        domain = vms.find(connection, vm, uuid)
        if domain is None:
            if params["state"] == "absent":
                return Result(False, {"snapshots": [], "deleted": [], "exported": [], "vm": None})
            raise vms.missing(f"work on snapshot {name}", vm, uuid)
        before = snapshots.all_of(domain)
        if params["state"] == "exported":
            return _exported(connection, domain, params, before, check=check, deadline=whole)
        work = {"present": _present, "absent": _absent, "reverted": _reverted}[params["state"]]
        changed, deleted = work(connection, domain, params, before, check=check, deadline=whole)
        after = before if check else snapshots.all_of(domain)
        values = {"snapshots": after, "deleted": deleted, "exported": [], "vm": vms.describe(domain)}
    names = [each["name"] for each in before]
    will = [each for each in names if each not in deleted] + ([name] if params["state"] == "present" else [])
    return Result(changed, values, {"snapshots": names}, {"snapshots": list(dict.fromkeys(will))})


def _check(params: dict[str, Any], name: str) -> None:
    """Refuse what no snapshot can be. Raises VirtfleetError `invalid`."""
    retain, goal = params["retain"], f"make snapshot {name}"
    check_description(params["description"] or "", goal)
    if retain is not None:
        if retain["count"] < 1:
            raise VirtfleetError(goal, f"{retain['count']} of them cannot be kept", "Keep at least 1.", "invalid")
        if not retain["prefix"] or not name.startswith(retain["prefix"]):
            text = "its name does not begin like those of which some are to be kept"
            raise VirtfleetError(goal, text, "Let name begin with retain.prefix.", "invalid")


def _present(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    params: dict[str, Any],
    before: list[dict[str, Any]],
    *,
    check: bool,
    deadline: Deadline,
) -> tuple[bool, list[str]]:
    wish = snapshots.Wish(params["name"], params["mode"], params["memory"], params["quiesce"], params["description"])
    is_there = any(each["name"] == wish.name for each in before)
    if not is_there:
        can = snapshots.abilities(connection, domain)
        mode, memory = snapshots.choose(domain, can, wish, before)
        if not check:
            snapshots.make(domain, wish, mode, memory=memory, deadline=deadline)
    going: list[str] = []
    if params["retain"] is not None:
        # Only now: should the new one fail, the old ones are still there.
        going = snapshots.superseded(before, wish.name, params["retain"]["prefix"], params["retain"]["count"])
        for old in going if not check else ():
            snapshots.delete(domain, old, children=False, deadline=deadline)
    return not is_there or bool(going), going


def _absent(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    params: dict[str, Any],
    before: list[dict[str, Any]],
    *,
    check: bool,
    deadline: Deadline,
) -> tuple[bool, list[str]]:
    found = next((each for each in before if each["name"] == params["name"]), None)
    if found is None:
        return False, []
    if found["children"] and params["children"] == "refuse":
        goal = f"delete snapshot {found['name']} of machine {domain.name()}"
        text = f"{', '.join(found['children'])} was made after it"
        raise VirtfleetError(goal, text, "Delete that first, or say what is to become of it: children.", "refused")
    going = [found["name"]] if params["children"] != "delete" else _with_descendants(before, found["name"])
    if not check:
        snapshots.delete(domain, found["name"], children=params["children"] == "delete", deadline=deadline)
    return True, going


def _with_descendants(there: list[dict[str, Any]], name: str) -> list[str]:
    found = [name]
    for each in there:  # oldest first: a parent comes before its children
        if each["parent"] in found:
            found.append(each["name"])
    return found


def _reverted(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    params: dict[str, Any],
    before: list[dict[str, Any]],
    *,
    check: bool,
    deadline: Deadline,
) -> tuple[bool, list[str]]:
    can = snapshots.abilities(connection, domain)
    if check:
        snapshots.check_revert(domain, params["name"], can=can)
    else:
        snapshots.revert(domain, params["name"], can=can, deadline=deadline)
    return True, []


def _exported(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    params: dict[str, Any],
    there: list[dict[str, Any]],
    *,
    check: bool,
    deadline: Deadline,
) -> Result:
    goal = f"export snapshot {params['name']} of machine {domain.name()}"
    pool = pools.file_pool(connection, params["export_pool"], goal)
    export = Export(domain, there, params["name"], pool)
    done = export.look(params["export_name"])
    if not done and not check:
        export.make(deadline)
    values = {"snapshots": there, "deleted": [], "exported": export.shown(), "vm": vms.describe(domain)}
    after = [each["volume"] for each in export.shown()]
    return Result(not done, values, {"exported": after if done else []}, {"exported": after})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
