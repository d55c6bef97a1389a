#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Machines of a host as they are
version_added: 0.1.0
description:
  - Reads all machines of a host, or those that are named. Changes nothing.
options:
  vms:
    description:
      - The machines to read, by UUID, or by name when no UUID is given; all when left out.
      - One that is not there is left out. So is one of that name that has another UUID.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name.
        type: str
      uuid:
        description: The UUID.
        type: str
  addresses:
    description: Whether to ask leases, agents and ARP tables for the addresses of machines that run.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Read all machines of a host
  virtfleet.core.vm_info:
    uri: "{{ virtfleet_uri }}"

- name: Read one, with its addresses
  virtfleet.core.vm_info:
    uri: "{{ virtfleet_uri }}"
    vms:
      - name: web1
    addresses: true
"""

RETURN = r"""
vms:
  description: The machines in the order of their names. Sizes are bytes.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web1
      uuid: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11
      state: running
      vcpus: 1
      memory_bytes: 536870912
      addresses: [10.78.0.20]
positions:
  description: Which of O(vms) are there, as positions in that list, from 0 on.
  returned: when O(vms) was given
  type: list
  elements: int
  sample: [0]
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_addresses
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

try:
    import libvirt
except ImportError:
    libvirt = None

SPEC: dict[str, Any] = {
    **COMMON,
    "vms": {"type": "list", "elements": "dict", "options": {"name": {"type": "str"}, "uuid": {"type": "str"}}},
    "addresses": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Read the machines."""
    _whole, connecting = deadlines(params)
    values: dict[str, Any] = {}
    with opened_host(params["uri"], connecting) as connection:
        if params["vms"] is None:
            found = vms.all_of(connection)
        else:
            asked = [_found(connection, each) for each in params["vms"]]
            values["positions"] = [position for position, domain in enumerate(asked) if domain is not None]
            described = {domain.UUIDString(): vms.describe(domain) for domain in asked if domain is not None}
            found = sorted(described.values(), key=lambda machine: str(machine["name"]))
        if params["addresses"]:
            for machine in found:
                if machine["state"] == "running":
                    domain = vms.find(connection, None, machine["uuid"])
                    machine["addresses"] = vm_addresses.addresses_of(domain) if domain is not None else []
    return Result(False, {"vms": found, **values})


def _found(connection: libvirt.virConnect, asked: dict[str, Any]) -> libvirt.virDomain | None:
    """Return a machine by its UUID, or by its name when it has none."""
    name, uuid = identity(asked["name"], asked["uuid"])
    return vms.find(connection, name if uuid is None else None, uuid)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
