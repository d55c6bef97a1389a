#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module network."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network
short_description: libvirt's networks of a host
version_added: 0.1.0
description:
  - Makes, changes, starts, stops and removes a network of libvirt.
  - A bridge that joins hosts is made outside libvirt; O(mode=bridge) only gives it a name here. So is one for a VLAN,
    over the tagged interface, as libvirt tags frames on Open vSwitch only.
options:
  name:
    description: The name of the network.
    type: str
    required: true
  state:
    description: V(present) is defined and active, V(inactive) is defined and not active, V(absent) is not defined.
    type: str
    choices: [present, inactive, absent]
    default: present
  mode:
    description:
      - How machines reach other places. V(nat) behind the host's own address, V(routed) by routing, V(isolated) not at
        all, V(bridge) through an existing bridge of the host.
      - Needed to make a network. Without it an existing one is kept as it is defined.
    type: str
    choices: [nat, routed, isolated, bridge]
  bridge:
    description:
      - The bridge of the host. With O(mode=bridge) one that exists; otherwise the one that libvirt makes, which it
        names itself unless told.
    type: str
  address:
    description: The host's own IPv4 address in the network, with prefix length, such as V(192.168.100.1/24).
    type: str
  domain:
    description: The DNS domain of its machines.
    type: str
  dhcp:
    description: Addresses that libvirt gives by DHCP. Without it nothing is given.
    type: dict
    suboptions:
      start:
        description: The first address of the range.
        type: str
      end:
        description: The last address of the range.
        type: str
      hosts:
        description: Addresses that are kept for certain machines. They can change while the network is active.
        type: list
        elements: dict
        default: []
        suboptions:
          mac:
            description: The MAC address of the machine's interface.
            type: str
            required: true
          address:
            description: The address it gets.
            type: str
            required: true
          name:
            description: The host name it gets.
            type: str
  dns:
    description:
      - Names that its machines can look up. They can change while the network is active. Without it there are none.
    type: list
    elements: dict
    suboptions:
      address:
        description: The IPv4 address that the names stand for.
        type: str
        required: true
      names:
        description: One or more names.
        type: list
        elements: str
        required: true
  autostart:
    description: Whether it is started with the host. A new network that is made active is, unless told otherwise.
    type: bool
  restart:
    description:
      - Whether an active network may be stopped and started when that is the only way to change it. Its machines are
        cut off by it until they are restarted.
    type: bool
    default: false
  force:
    description: Whether a network that running machines use may be stopped or removed.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Machines of this host behind its address
  virtfleet.core.network:
    uri: "{{ virtfleet_uri }}"
    name: inside
    mode: nat
    address: 192.168.100.1/24
    dhcp:
      start: 192.168.100.100
      end: 192.168.100.199
      hosts:
        - mac: 52:54:00:12:34:56
          address: 192.168.100.10
          name: db1

- name: Name the bridge that joins all hosts
  virtfleet.core.network:
    uri: "{{ virtfleet_uri }}"
    name: guests
    mode: bridge
    bridge: vmbr0

- name: Remove a network
  virtfleet.core.network:
    uri: "{{ virtfleet_uri }}"
    name: inside
    state: absent
"""

RETURN = r"""
network:
  description: The network, or null if it is absent. In check mode what it would be.
  returned: success
  type: dict
  sample:
    name: inside
    mode: nat
    bridge: virbr0
    address: 192.168.100.1/24
    domain: null
    dhcp:
      start: 192.168.100.100
      end: 192.168.100.199
      hosts: []
    dns: []
    active: true
    autostart: true
leases:
  description: What libvirt has given by DHCP before anything was changed. C(expires_at) is Unix time in seconds.
  returned: success
  type: list
  elements: dict
  sample:
    - mac: "52:54:00:12:34:56"
      address: 192.168.100.10
      name: db1
      expires_at: 1790000000
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import network_definition, plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import network as networks
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "inactive", "absent"], "default": "present"},
    "mode": {"type": "str", "choices": list(network_definition.MODES)},
    "bridge": {"type": "str"},
    "address": {"type": "str"},
    "domain": {"type": "str"},
    "dhcp": {
        "type": "dict",
        "options": {
            "start": {"type": "str"},
            "end": {"type": "str"},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "mac": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "name": {"type": "str"},
                },
            },
        },
    },
    "dns": {
        "type": "list",
        "elements": "dict",
        "options": {
            "address": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
        },
    },
    "autostart": {"type": "bool"},
    "restart": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {
    "required_by": {"bridge": ["mode"], "address": ["mode"], "domain": ["mode"], "dhcp": ["mode"], "dns": ["mode"]},
}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the network into the wanted state."""
    name = check_name(params["name"], "network")
    definition = None
    if params["state"] != "absent" and params["mode"]:
        given = {key: params[key] for key in ("bridge", "address", "domain", "dhcp", "dns")}
        definition = network_definition.wanted_definition(name, params["mode"], **given)
    _whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        network = networks.find(connection, name)
        before = networks.settings(network) if network is not None else None
        leases = networks.leases(network) if network is not None else []
        described: dict[str, Any] | None
        if params["state"] == "absent":
            todo, described = plan.compare(before, None), None
        else:
            active = params["state"] == "present"
            todo = networks.plan_present(before, name, definition, active=active, autostart=params["autostart"])
            networks.check_restart(name, todo, restart=params["restart"])
        if before and before["active"] and not (todo.after or {}).get("active") and not params["force"]:
            networks.check_unused(connection, name)
        if todo.changed and not check:
            if todo.after is None:
                networks.remove(network)
            else:
                network = networks.apply(connection, name, todo, restart=params["restart"])
        if todo.after is not None:
            described = todo.after if check else networks.settings(network)
    return Result(todo.changed, {"network": described, "leases": leases, "plan": todo.as_list()}, before, todo.after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
