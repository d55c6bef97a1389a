#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_nic."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_nic
short_description: Network cards of a machine that is there
version_added: 0.1.0
description:
  - Attaches a network card to a machine, running or not, joins it to another bridge or network, cuts its link, and
    detaches it.
  - A card is known by its MAC address.
options:
  name:
    description: The name of the machine. One of this and O(uuid) is needed.
    type: str
  uuid:
    description: The UUID of the machine. A machine of the same name with another UUID is never touched.
    type: str
  mac:
    description: The MAC address of the card.
    type: str
    required: true
  state:
    description: Whether the machine is to have the card.
    type: str
    choices: [present, absent]
    default: present
  bridge:
    description: The bridge to join it to. A new card needs this or O(network).
    type: str
  network:
    description: The libvirt network to join it to.
    type: str
  model:
    description: The model of the card, V(virtio) for a new one. Another one holds from the next boot on.
    type: str
  link:
    description: Whether its cable is plugged in.
    type: str
    choices: [up, down]
  filter:
    description:
      - The network filter (M(virtfleet.core.nwfilter)) that says what the card may send and get; V(none) takes it away.
      - libvirt learns the card's address itself where a filter needs it.
    type: str
  managed_only:
    description:
      - Whether to refuse a machine that was not made by virtfleet, which its metadata would say.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A second card
  virtfleet.core.vm_nic:
    uri: "{{ virtfleet_uri }}"
    name: web1
    mac: "52:54:00:12:34:57"
    bridge: vmbr1

- name: Cut it off
  virtfleet.core.vm_nic:
    uri: "{{ virtfleet_uri }}"
    name: web1
    mac: "52:54:00:12:34:57"
    link: down

- name: Detach it
  virtfleet.core.vm_nic:
    uri: "{{ virtfleet_uri }}"
    name: web1
    mac: "52:54:00:12:34:57"
    state: absent
"""

RETURN = r"""
nic:
  description: The card, or null if the machine has none of that address. In check mode as it is before.
  returned: success
  type: dict
  sample:
    mac: "52:54:00:12:34:57"
    kind: bridge
    source: vmbr1
    model: virtio
    link: up
    filter: none
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
needs_power_cycle:
  description: Whether something of it holds only after the machine's power was cycled.
  returned: success
  type: bool
"""

import re
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_device, vm_nic
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, shown
from ansible_collections.virtfleet.core.plugins.module_utils.nwfilter_rules import check_filter_name

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "mac": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "bridge": {"type": "str"},
    "network": {"type": "str"},
    "model": {"type": "str"},
    "link": {"type": "str", "choices": ["up", "down"]},
    "filter": {"type": "str"},
    "managed_only": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {"required_one_of": [("name", "uuid")], "mutually_exclusive": [("bridge", "network")]}
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.ASCII)


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the card into the wanted state."""
    name, uuid = identity(params["name"], params["uuid"])
    wanted = _wanted(params)
    whole, connecting = deadlines(params)
    present = params["state"] == "present"
    with opened_host(params["uri"], connecting) as connection:
        goal = f"make network card {wanted.mac} of machine {name or uuid} {params['state']}"
        try:
            machine = vm_device.machine(connection, name, uuid, goal, managed_only=params["managed_only"])
        except VirtfleetError as error:
            if error.code == "not_found" and not present:
                return Result(False, {"nic": None, "plan": [], "needs_power_cycle": False})
            raise
        if present:
            done = vm_nic.present(machine, wanted, check=check)
        else:
            done = vm_nic.absent(machine, wanted.mac, check=check, deadline=whole)
    values = {"nic": done.device, "plan": done.update.as_list(), "needs_power_cycle": done.needs_power_cycle}
    return Result(done.update.changed, values, done.before, done.after)


def _wanted(params: dict[str, Any]) -> vm_nic.Wanted:
    mac = params["mac"].lower()
    if not _MAC.fullmatch(mac):
        hint = "Write it like 52:54:00:12:34:57; the first byte is even."
        raise VirtfleetError(f"use {shown(params['mac'])} as a MAC address", "no card can have it", hint, "invalid")
    source = next(((kind, params[kind]) for kind in ("bridge", "network") if params[kind] is not None), None)
    if source is not None:
        check_name(source[1], source[0])
    if params["model"] is not None:
        check_name(params["model"], "card model")
    if params["filter"] is not None:
        check_filter_name(params["filter"])
    return vm_nic.Wanted(mac, source, params["model"], params["link"], params["filter"])


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
