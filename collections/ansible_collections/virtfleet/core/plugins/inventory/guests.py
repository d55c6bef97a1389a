# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory plugin guests."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guests
short_description: The machines of many libvirt hosts
version_added: 0.1.0
description:
  - Reads the machines of all hosts at once. A host that is dead or frozen is a warning, not a hang.
  - The configuration is a YAML file whose name ends with C(virtfleet.yml) or C(virtfleet.yaml).
  - Each machine gets C(virtfleet_vm) with C(name), C(uuid), C(state), C(host), C(uri), C(zone), C(vcpus),
    C(memory_bytes), C(networks), C(managed), C(address) and C(metadata), and C(ansible_host) when an address is known.
  - Nothing that stands in a machine is ever rendered as a template.
  - A machine is called by its name. One whose name another machine or a group has too, or that Ansible uses itself
    (C(localhost)), is called C(NAME.HOST); one whose name is more than letters, digits, dots, dashes and underscores by
    its UUID.
author:
  - virtfleet contributors (@virtfleet)
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [virtfleet.core.guests]
  hosts:
    description:
      - The hosts, by name. Each is a libvirt URI, or a mapping with C(uri) and C(zone).
    type: dict
    required: true
  group_by:
    description:
      - What machines are grouped by, in groups such as C(owner_alice) and C(tag_web). What a group's name cannot hold
        becomes an underscore.
      - Owner, project, flavor, tags and the zone (before that of the host) are those of the machine's metadata. Tags
        are a list, or a mapping, which makes groups such as C(tag_tier_web).
    type: list
    elements: str
    choices: [host, zone, owner, project, flavor, state, tag]
    default: [host, zone, owner, project, flavor, state, tag]
  address_from:
    description:
      - Where C(ansible_host) comes from. They are asked in this order, and the first that knows an address wins.
      - V(record) is the address that the machine was given when it was made, V(lease) libvirt's own DHCP, V(agent) the
        guest agent (what is inside the machine may claim any address) and V(arp) the host's ARP table.
      - V(lease) costs a few calls a host. V(agent) and V(arp) cost one for every running machine that those before do
        not know, V(agent) only for machines whose agent is connected.
    type: list
    elements: str
    choices: [record, lease, agent, arp]
    default: [record, lease, agent, arp]
  managed_only:
    description: Whether to leave out machines that virtfleet did not make.
    type: bool
    default: false
  connect_timeout:
    description: Seconds after which a host that does not answer is given up.
    type: float
    default: 10.0
  timeout:
    description: Seconds after which a host whose machines are not all read is given up.
    type: float
    default: 30.0
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
requirements:
  - python >= 3.10
  - libvirt-python >= 9.0.0
notes:
  - The cache (O(cache)) keeps a reading only when every host has answered.
"""

EXAMPLES = r"""
# fleet.virtfleet.yml: ansible-inventory -i fleet.virtfleet.yml --graph
plugin: virtfleet.core.guests
hosts:
  kvm1: qemu+ssh://root@kvm1.example.org/system
  kvm2:
    uri: qemu+tls://kvm2.example.org/system
    zone: east
address_from: [record, lease]
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /var/cache/virtfleet
keyed_groups:
  - key: virtfleet_vm.metadata.image
    prefix: image
compose:
  ansible_user: "'debian'"
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.inventory.group import Group
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.virtfleet.core.plugins.plugin_utils.guests import read_hosts

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,250}", re.ASCII)
"""Names that are safe as the name of a host: Ansible looks for files of that name, and reads patterns in names."""
RESERVED = {"all", "ungrouped", "localhost"}
SHOWN = ("name", "uuid", "state", "vcpus", "memory_bytes", "networks", "managed", "address", "metadata")
LONGEST_GROUP = 100


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The machines of many hosts."""

    NAME = "virtfleet.core.guests"

    def verify_file(self, path: str) -> bool:
        """Tell whether a file is one of ours, by its name."""
        return bool(super().verify_file(path)) and path.endswith(("virtfleet.yml", "virtfleet.yaml"))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Read the machines, or take them from the cache, and fill the inventory."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        hosts = dict(self._hosts())
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        wants_cache = self.get_option("cache")
        machines: dict[str, Any] | None = None
        if wants_cache and cache:
            with suppress(KeyError):
                machines = self._cache[key]
        if machines is None:
            machines = self._read(hosts, key if wants_cache else None)
        self._fill(machines, hosts)

    def _hosts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, given in self.get_option("hosts").items():
            host = dict(given) if isinstance(given, Mapping) else {"uri": given}
            if not isinstance(host.get("uri"), str) or set(host) - {"uri", "zone"}:
                raise AnsibleParserError(
                    f"Failed to read the host {name!r}: it is neither a libvirt URI nor a mapping with uri and zone. "
                    "Write it like kvm1: qemu+tls://kvm1/system."
                )
            yield str(name), host

    def _read(self, hosts: Mapping[str, Mapping[str, Any]], cache_key: str | None) -> dict[str, Any]:
        reading = read_hosts(
            {name: host["uri"] for name, host in hosts.items()},
            self.get_option("address_from"),
            connect_timeout=self.get_option("connect_timeout"),
            timeout=self.get_option("timeout"),
        )
        for name, problem in reading.problems.items():
            self.display.warning(f"The machines of host {name} are missing. {problem}")
        shown = {
            name: [{key: machine[key] for key in SHOWN} for machine in machines]
            for name, machines in reading.machines.items()
        }
        if cache_key is not None and not reading.problems:
            self._cache[cache_key] = shown
        return shown

    def _fill(self, found: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> None:
        machines = [
            {**machine, "host": host, "uri": hosts[host]["uri"], "zone": _zone(machine, hosts[host])}
            for host in sorted(found)
            if host in hosts
            for machine in found[host]
            if machine["managed"] or not self.get_option("managed_only")
        ]
        group_by = self.get_option("group_by")
        groups: dict[tuple[str, str], Group] = {}
        names = self._names(machines)
        for name, machine in zip(names, machines, strict=True):
            self.inventory.add_host(name)
            # All is done with the host itself: by its name, one that is called like a group would be taken for that.
            host = self.inventory.hosts[name]
            host.set_variable("virtfleet_vm", machine)
            if machine["address"]:
                host.set_variable("ansible_host", machine["address"])
            for trait in _traits(machine, group_by):
                if trait not in groups:
                    wanted = self._sanitize_group_name("_".join(trait)[:LONGEST_GROUP])
                    groups[trait] = self.inventory.groups[self.inventory.add_group(wanted)]
                groups[trait].add_host(host)
        if any(self.get_option(each) for each in ("compose", "groups", "keyed_groups")):
            for name in names:
                if name in self.inventory.groups:
                    self.display.warning(f"Machine {name} is called like a group: nothing is composed for it.")
                else:
                    self._construct(name)

    def _names(self, machines: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what the machines are called here. Whoever made them chose their names."""
        count = Counter(machine["name"] for machine in machines)
        taken = {name for name, times in count.items() if times > 1} | RESERVED | set(self.inventory.groups)
        names = []
        for machine in machines:
            name = str(machine["name"])
            if not PLAIN.fullmatch(name):
                name = str(machine["uuid"])
            names.append(f"{name}.{machine['host']}" if name in taken else name)
        return names

    def _construct(self, name: str) -> None:
        strict = self.get_option("strict")
        variables = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        variables = self.inventory.get_host(name).get_vars()
        self._add_host_to_composed_groups(
            self.get_option("groups"), variables, name, strict=strict, fetch_hostvars=False
        )
        self._add_host_to_keyed_groups(
            self.get_option("keyed_groups"), variables, name, strict=strict, fetch_hostvars=False
        )


def _zone(machine: Mapping[str, Any], host: Mapping[str, Any]) -> Any:
    return machine["metadata"].get("zone") or host.get("zone")


def _traits(machine: Mapping[str, Any], group_by: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what a machine is grouped by: (host, kvm1), (owner, alice), (tag, web)."""
    values = {key: machine["metadata"].get(key) for key in ("owner", "project", "flavor")}
    values |= {key: machine[key] for key in ("host", "zone", "state")}
    for what in group_by:
        if what == "tag":
            for tag in _tags(machine["metadata"].get("tags")):
                yield what, tag
        elif isinstance(values[what], str) and values[what]:
            yield what, values[what]


def _tags(given: Any) -> Iterator[str]:
    if isinstance(given, Mapping):
        yield from (f"{key}_{value}" for key, value in given.items() if isinstance(value, str | int | float))
    elif isinstance(given, list):
        yield from (str(each) for each in given if isinstance(each, str | int | float) and str(each))
