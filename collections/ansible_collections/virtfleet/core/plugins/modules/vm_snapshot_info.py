#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_snapshot_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot_info
short_description: Snapshots of a machine as they are, and which could be made
version_added: 0.1.0
description:
  - Reads the snapshots of a machine and what its host can do. Changes nothing.
options:
  vm:
    description: The name of the machine.
    type: str
  vm_uuid:
    description: Its UUID. A machine of the name O(vm) with another UUID is not meant.
    type: str
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
seealso:
  - module: virtfleet.core.vm_snapshot
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Read the snapshots of a machine
  virtfleet.core.vm_snapshot_info:
    uri: "{{ virtfleet_uri }}"
    vm: web1
"""

RETURN = r"""
snapshots:
  description: The snapshots, oldest first, as in M(virtfleet.core.vm_snapshot).
  returned: success
  type: list
  elements: dict
abilities:
  description:
    - What the host can do with this machine. C(internal_obstacle) says why no internal snapshot can be made.
  returned: success
  type: dict
  sample:
    internal: true
    internal_obstacle: null
    external: true
    revert_external: false
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import snapshot as snapshots
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

SPEC: dict[str, Any] = {**COMMON, "vm": {"type": "str"}, "vm_uuid": {"type": "str"}}
RULES: dict[str, Any] = {"required_one_of": [("vm", "vm_uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Read the snapshots."""
    vm, uuid = identity(params["vm"], params["vm_uuid"])
    _whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        domain = vms.find(connection, vm, uuid)
        if domain is None:
            raise vms.missing("read snapshots", vm, uuid)
        found = snapshots.all_of(domain)
        can = snapshots.abilities(connection, domain).as_dict()
    return Result(False, {"snapshots": found, "abilities": can})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
