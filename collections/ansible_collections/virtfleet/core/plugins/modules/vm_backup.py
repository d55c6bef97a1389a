#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_backup
short_description: Backups of a machine
version_added: 0.1.0
description:
  - Writes all disks of a machine that it writes to as they are at one moment into files of a pool of its host, with a
    manifest that tells the machine's definition and the SHA-256 of each file; or deletes a backup.
  - A running machine goes on meanwhile. A stopped one is copied whole.
  - A backup of a running machine with qcow2 disks leaves a checkpoint behind, from which on the next increment counts.
    Going back to a snapshot removes the checkpoints; so the next backup is a full one.
  - Backups stay when the machine is deleted.
  - One backup of a machine is made at a time; what a run that died has left is removed by the next one.
options:
  name:
    description: The name of the backup, at most 64 characters.
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
      - With V(present), a backup of that name is made unless there is one.
      - With V(absent), the backup is deleted. One that an increment lies over is not.
    type: str
    choices: [present, absent]
    default: present
  pool:
    description: The pool with the files, of type dir, fs or netfs. Make it with M(virtfleet.core.pool).
    type: str
    default: backups
  kind:
    description:
      - V(full) has all of the disks. V(incremental) has what has changed since the last backup in the same pool; where
        that is not known (no checkpoint, one with broken marks, other disks, a stopped machine) it becomes a full one,
        and RV(reason) tells why.
    type: str
    choices: [full, incremental]
    default: full
  quiesce:
    description:
      - Whether the agent inside the machine is to hold all writing at the moment that is kept. Of no meaning for a
        machine that is stopped.
    type: bool
    default: false
  retain:
    description:
      - How many of the machine's backups in that pool to keep. The oldest go, after the new one was made and its files
        were read; what a backup that stays lies over stays too.
    type: dict
    suboptions:
      prefix:
        description: How the names of those begin that may go.
        type: str
        default: ''
      count:
        description: How many to keep, the new one among them.
        type: int
        required: true
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
seealso:
  - module: virtfleet.core.vm_backup_info
  - module: virtfleet.core.vm_restore
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A pool for backups
  virtfleet.core.pool:
    uri: "{{ virtfleet_uri }}"
    name: backups
    path: /srv/backups

- name: Back a machine up
  virtfleet.core.vm_backup:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: before-upgrade
    timeout: 3600

- name: An increment of every night, a week of them kept
  virtfleet.core.vm_backup:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: "nightly-{{ now(utc=true, fmt='%Y%m%d') }}"
    kind: incremental
    quiesce: true
    retain:
      prefix: nightly-
      count: 7
    timeout: 3600
"""

RETURN = r"""
backup:
  description:
    - The backup, RV(ignore:null) when it is absent. In check mode one that would be made has no sizes, hashes and
      checkpoint yet.
  returned: success
  type: dict
  sample:
    name: before-upgrade
    vm: web1
    uuid: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c66
    kind: full
    parent: null
    children: []
    checkpoint: before-upgrade-1f2e3d4c
    created_at: '2026-01-31T12:00:00.000Z'
    quiesced: false
    state: running
    pool: backups
    size_bytes: 30932992
    disks:
      - target: vda
        volume: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c66.before-upgrade.vda.qcow2
        capacity_bytes: 1073741824
        size_bytes: 30932992
        sha256: 5df6e0e2761359d30a8275058e299fcc0381534545f55cf43e41983f5d4c9456
reason:
  description: Why the new backup is a full one although an increment was wanted.
  returned: success
  type: str
deleted:
  description: The names of the backups that were or would be deleted, those that O(retain) let go among them.
  returned: success
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup_run, checkpoint
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
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
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "pool": {"type": "str", "default": "backups"},
    "kind": {"type": "str", "choices": list(backups.KINDS), "default": backups.FULL},
    "quiesce": {"type": "bool", "default": False},
    "retain": {
        "type": "dict",
        "options": {"prefix": {"type": "str", "default": ""}, "count": {"type": "int", "required": True}},
    },
}
RULES: dict[str, Any] = {"required_one_of": [("vm", "vm_uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the backup into the wanted state."""
    name = backups.check_backup_name(params["name"])
    vm, uuid = identity(params["vm"], params["vm_uuid"])
    retain = params["retain"]
    goal = f"make backup {name} of machine {vm or uuid}"
    if retain is not None and (retain["count"] < 1 or not name.startswith(retain["prefix"])):
        hint = "Keep at least 1, and let name begin with retain.prefix."
        raise VirtfleetError(goal, "what is to be kept does not hold the new one", hint, "invalid")
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        pool = backups.pool_of(connection, params["pool"], goal, whole)
        domain = vms.find(connection, vm, uuid)
        if params["state"] == "absent":
            found = backups.find(backups.all_in(pool, vm, uuid), name)
            return _absent(domain, pool, found, check=check)
        if domain is None:
            raise vms.missing(goal, vm, uuid)
        return _present(domain, pool, params, check=check, deadline=whole)


def _present(
    domain: libvirt.virDomain,
    pool: libvirt.virStoragePool,
    params: dict[str, Any],
    *,
    check: bool,
    deadline: Deadline,
) -> Result:
    before = backups.all_in(pool, uuid=domain.UUIDString())
    found, reason = backups.find(before, params["name"]), None
    made = found
    if made is None:
        made, reason = _make(domain, pool, params, before, check=check, deadline=deadline)
    after = before if found is not None else [*before, made]
    going: list[str] = []
    if params["retain"] is not None:
        # Only now: should the new one fail, the old ones are still there.
        going = backups.superseded(after, params["retain"]["prefix"], params["retain"]["count"])
        for old in going if not check else ():
            _remove(domain, pool, next(each for each in after if each["name"] == old))
    values = {"backup": backups.shown(made, pool.name()), "reason": reason, "deleted": going}
    names = {"backups": [each["name"] for each in before]}
    left = {"backups": [each["name"] for each in after if each["name"] not in going]}
    return Result(found is None or bool(going), values, names, left)


def _make(
    domain: libvirt.virDomain,
    pool: libvirt.virStoragePool,
    params: dict[str, Any],
    there: list[dict[str, Any]],
    *,
    check: bool,
    deadline: Deadline,
) -> tuple[dict[str, Any], str | None]:
    wish = backup_run.Wish(params["name"], params["kind"], params["quiesce"])
    if not check:
        backup_run.clear_leftovers(domain, pool, domain.UUIDString(), deadline)
    way = backup_run.choose(domain, wish, there)
    if check:
        return backup_run.predict(domain, wish, way), way.reason
    return backup_run.make(domain, pool, wish, way, deadline)


def _absent(
    domain: libvirt.virDomain | None, pool: libvirt.virStoragePool, found: dict[str, Any] | None, *, check: bool
) -> Result:
    values: dict[str, Any] = {"backup": None, "reason": None, "deleted": []}
    if found is None:
        return Result(False, values, {"backups": []}, {"backups": []})
    if found["children"]:
        goal = f"delete backup {found['name']} of machine {found['vm']}"
        text = f"{', '.join(found['children'])} lies over it"
        raise VirtfleetError(goal, text, "Delete that first.", "refused")
    if not check:
        same = domain if domain is not None and domain.UUIDString() == found["uuid"] else None
        _remove(same, pool, found)
    return Result(True, {**values, "deleted": [found["name"]]}, {"backups": [found["name"]]}, {"backups": []})


def _remove(domain: libvirt.virDomain | None, pool: libvirt.virStoragePool, backup: dict[str, Any]) -> None:
    backups.remove(pool, backup["uuid"], backup["name"])
    if domain is not None and backup["checkpoint"] is not None:
        checkpoint.delete(domain, backup["checkpoint"])


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
