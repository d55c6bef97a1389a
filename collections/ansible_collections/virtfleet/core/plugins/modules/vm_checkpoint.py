#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_checkpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_checkpoint
short_description: Checkpoints of a machine, from which on its changes are noted
version_added: 0.1.0
description:
  - Makes or deletes a checkpoint, libvirt's mark in the qcow2 disks of a running machine (a dirty bitmap). What is
    written after it is what an incremental backup has to copy.
  - M(virtfleet.core.vm_backup) makes and deletes its own. This module is for other programs that make backups.
options:
  name:
    description: The name of the checkpoint.
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
      - With V(present), a checkpoint of that name is made unless there is one. The machine must run.
      - With V(absent), it is deleted; the one before it then notes what it did. In the files of a stopped machine its
        mark stays, and only libvirt forgets it.
    type: str
    choices: [present, absent]
    default: present
  description:
    description: What a new one is for.
    type: str
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
seealso:
  - module: virtfleet.core.vm_backup
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Note what changes from now on
  virtfleet.core.vm_checkpoint:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    name: monday
"""

RETURN = r"""
checkpoints:
  description: The machine's checkpoints then, parents before their children. In check mode they are as they are now.
  returned: success
  type: list
  elements: dict
  sample:
    - name: monday
      description: ''
      created_at: '2026-01-31T12:00:00Z'
      parent: null
      disks: [vda]
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import checkpoint as checkpoints
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_description, check_name

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "vm": {"type": "str"},
    "vm_uuid": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
}
RULES: dict[str, Any] = {"required_one_of": [("vm", "vm_uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the checkpoint into the wanted state."""
    name = check_name(params["name"], "checkpoint")
    vm, uuid = identity(params["vm"], params["vm_uuid"])
    goal, wanted = f"work on checkpoint {name}", params["state"] == "present"
    text = check_description(params["description"] or "", goal)
    _whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        domain = vms.find(connection, vm, uuid)
        if domain is None:
            if not wanted:
                return Result(False, {"checkpoints": []})
            raise vms.missing(goal, vm, uuid)
        before = checkpoints.all_of(domain)
        names = [each["name"] for each in before]
        changed = wanted != (name in names)
        if changed and wanted:
            checkpoints.marked_disks(vms.describe(domain), f"make checkpoint {name} of machine {domain.name()}")
        if changed and not check:
            if wanted:
                checkpoints.make(domain, name, text)
            else:
                checkpoints.delete(domain, name)
        after = checkpoints.all_of(domain) if changed and not check else before
    will = [*names, name] if changed and wanted else [each for each in names if each != name or not changed]
    return Result(changed, {"checkpoints": after}, {"checkpoints": names}, {"checkpoints": will})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
