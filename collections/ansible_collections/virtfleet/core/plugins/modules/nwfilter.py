#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module nwfilter."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nwfilter
short_description: libvirt's network filters of a host
version_added: 0.1.0
description:
  - Makes, changes and removes a network filter of libvirt, which says what a machine's network card may send and get.
  - Modules M(virtfleet.core.vm_nic) and M(virtfleet.core.vm) put one on a card. Changed rules hold at once for
    machines that run with it.
options:
  name:
    description: The name of the filter.
    type: str
    required: true
  state:
    description:
      - V(present) is defined, V(absent) is not.
      - A filter that machines or other filters name is not removed; the error tells which ones.
    type: str
    choices: [present, absent]
    default: present
  chain:
    description:
      - The chain that its rules are in, V(root) or one that begins with C(mac), C(stp), C(vlan), C(arp), C(rarp),
        C(ipv4) or C(ipv6). A new filter is in V(root) unless told otherwise.
    type: str
  priority:
    description: The place of the chain among others, -1000 to 1000. Without it libvirt's own for that kind of chain.
    type: int
  rules:
    description:
      - All of its rules, in their order. Needed to make a filter. Without it an existing one keeps its rules.
    type: list
    elements: dict
    suboptions:
      filter:
        description: Another filter whose rules hold here too. Then only O(rules[].parameters) may be given besides.
        type: str
      parameters:
        description: Values for the variables of that filter, such as C(IP), each a text or a list of texts.
        type: dict
      action:
        description: What happens with what the rule matches.
        type: str
        choices: [accept, drop, reject, return, continue]
      direction:
        description: The way it goes, seen from the machine.
        type: str
        choices: [in, out, inout]
      priority:
        description: The rule's place among others, -1000 to 1000; the lowest comes first.
        type: int
        default: 500
      stateful:
        description: Whether answers to what was accepted are accepted too.
        type: bool
        default: true
      protocol:
        description: What is matched. Without it everything is.
        type: str
        choices:
          - mac
          - vlan
          - arp
          - rarp
          - ip
          - ipv6
          - udp
          - sctp
          - tcp
          - icmp
          - igmp
          - all
          - esp
          - ah
          - udplite
          - udp-ipv6
          - sctp-ipv6
          - tcp-ipv6
          - icmpv6
          - all-ipv6
          - esp-ipv6
          - ah-ipv6
          - udplite-ipv6
      match:
        description:
          - What of the protocol is looked at, under libvirt's names, such as C(dstportstart), C(srcipaddr),
            C(srcipmask), C(srcmacaddr), C(state), C(comment). A value may be a variable, such as C($IP).
          - With C(match) V(no) the rule is about everything else.
        type: dict
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A web server, which cannot pretend to be another
  virtfleet.core.nwfilter:
    uri: "{{ virtfleet_uri }}"
    name: web
    rules:
      - filter: clean-traffic
      - action: accept
        direction: in
        protocol: tcp
        match: {dstportstart: 443}
      - action: accept
        direction: in
        protocol: tcp
        match: {dstportstart: 22, srcipaddr: 10.0.0.0, srcipmask: 8}
      - action: accept
        direction: out
        protocol: all
      - action: drop
        direction: inout
        priority: 1000
        protocol: all

- name: Put it on a card
  virtfleet.core.vm_nic:
    uri: "{{ virtfleet_uri }}"
    name: web1
    mac: 52:54:00:12:34:57
    filter: web

- name: Remove a filter
  virtfleet.core.nwfilter:
    uri: "{{ virtfleet_uri }}"
    name: old
    state: absent
"""

RETURN = r"""
nwfilter:
  description: The filter, or null if it is absent. In check mode what it would be.
  returned: success
  type: dict
  sample:
    name: web
    chain: root
    priority: null
    rules:
      - action: accept
        direction: in
        priority: 500
        stateful: true
        protocol: tcp
        match:
          dstportstart: "443"
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import nwfilter_rules, plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import nwfilter as nwfilters
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "chain": {"type": "str"},
    "priority": {"type": "int"},
    "rules": {
        "type": "list",
        "elements": "dict",
        "options": {
            "filter": {"type": "str"},
            "parameters": {"type": "dict"},
            "action": {"type": "str", "choices": list(nwfilter_rules.ACTIONS)},
            "direction": {"type": "str", "choices": list(nwfilter_rules.DIRECTIONS)},
            "priority": {"type": "int", "default": nwfilter_rules.DEFAULT_PRIORITY},
            "stateful": {"type": "bool", "default": True},
            "protocol": {"type": "str", "choices": list(nwfilter_rules.ATTRIBUTES)},
            "match": {"type": "dict"},
        },
    },
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the filter into the wanted state."""
    name = nwfilter_rules.check_filter_name(params["name"])
    given: dict[str, Any] = {each: params[each] for each in ("chain", "priority") if params[each] is not None}
    if params["rules"] is not None:
        given["rules"] = nwfilter_rules.checked(params["rules"], f"define network filter {name}")
    nwfilters.check_chain(given.get("chain", "root"), given.get("priority"))
    _whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        found = nwfilters.find(connection, name)
        before = nwfilters.settings(found) if found is not None else None
        if params["state"] == "absent":
            todo = plan.compare(before, None)
            if found is not None:
                nwfilters.check_unused(connection, name)
                if not check:
                    nwfilters.remove(found)
        else:
            if before is None and "rules" not in given:
                text, hint = "there is none yet, and nothing says what it does", "Give its rules."
                raise VirtfleetError(f"define network filter {name}", text, hint, "not_found")
            after = {"name": name, "chain": "root", "priority": None, **(before or {}), **given}
            todo = plan.compare(before, after)
            if todo.changed:
                nwfilters.check_references(connection, name, after["rules"])
                if not check:
                    nwfilters.define(connection, found, after)
    return Result(todo.changed, {"nwfilter": todo.after, "plan": todo.as_list()}, todo.before, todo.after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
