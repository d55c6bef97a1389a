# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the machines of many hosts at once, for the inventory. A host that is dead or frozen keeps no other back.

The reading is done in children, one a processor: libvirt's event loop then lives in none of Ansible's own processes,
which fork later, and a child that hangs is killed.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import network as networks
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_addresses
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

SPARE_SECONDS = 2.0
"""What a child gets beyond the time of its hosts, to hand over that they did not answer."""

Machines = list[dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """What was found: by host the machines, or why there are none."""

    machines: dict[str, Machines]
    problems: dict[str, str]


def read_hosts(uris: Mapping[str, str], sources: Sequence[str], *, connect_timeout: float, timeout: float) -> Reading:
    """Read the machines of all hosts (name → URI), each within `timeout` seconds.

    `sources` are asked in turn for the address of a machine: record, lease, agent, arp; the first that knows one wins.
    """
    names = list(uris)
    count = min(len(names), os.cpu_count() or 1)
    fork = multiprocessing.get_context("fork")
    children, doors = [], []
    for number in range(count):
        mine, theirs = fork.Pipe(duplex=False)
        share = {name: uris[name] for name in names[number::count]}
        child = fork.Process(target=_read_share, args=(theirs, share, sources, connect_timeout, timeout), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        doors.append(mine)
    try:
        return _gathered(names, doors, Deadline(timeout + SPARE_SECONDS))
    finally:
        for child in children:
            child.kill()
            child.join()


def _gathered(names: Sequence[str], doors: list[Connection], deadline: Deadline) -> Reading:
    reading = Reading({}, {})
    while doors and not deadline.passed:
        for door in cast(list[Connection], wait(doors, timeout=deadline.left())):
            try:
                name, machines, problem = door.recv()
            except EOFError:
                doors.remove(door)
                continue
            if problem is None:
                reading.machines[name] = machines
            else:
                reading.problems[name] = problem
    for name in names:
        if name not in reading.machines and name not in reading.problems:
            reading.problems[name] = f"Failed to read its machines: no answer within {deadline.seconds:g} s."
    return reading


def _read_share(
    door: Connection, share: Mapping[str, str], sources: Sequence[str], connect_timeout: float, timeout: float
) -> None:
    """Be a child: read some hosts at once and hand each over when it is done."""
    gc.disable()  # thousands of machines, none of them garbage, and the child ends soon
    speaking = threading.Lock()

    def one(name: str, uri: str) -> None:
        said: tuple[str, Machines, str | None]
        try:
            said = (name, _read(uri, sources, connect_timeout, timeout), None)
        except VirtfleetError as error:
            said = (name, [], str(error))
        except Exception as error:  # whatever one host brings must not take the others along
            said = (name, [], f"Failed to read its machines: {type(error).__name__}: {error}.")
        with speaking:
            door.send(said)

    threads = [threading.Thread(target=one, args=each, daemon=True) for each in share.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    door.close()


def _read(uri: str, sources: Sequence[str], connect_timeout: float, timeout: float) -> Machines:
    whole = Deadline(timeout)

    def read() -> Machines:
        with opened_host(uri, whole.at_most(connect_timeout), events=False) as connection:
            addresses = _Addresses(connection, sources)
            machines = []
            for seen in vms.seen(connection):
                facts = seen.facts()
                facts["address"] = addresses.of(seen, facts, may_ask=not whole.passed)
                machines.append(facts)
            return sorted(machines, key=lambda machine: str(machine["name"]))

    return bounded(read, Deadline(timeout + SPARE_SECONDS / 2), "read its machines")


class _Addresses:
    """Finds the address of a host's machines, by as few calls as their number allows."""

    def __init__(self, connection: libvirt.virConnect, sources: Sequence[str]) -> None:
        self._connection = connection
        self._sources = sources

    def of(self, seen: vms.Seen, facts: Mapping[str, Any], *, may_ask: bool) -> str | None:
        """Return what the first source that knows an address says; without `may_ask`, no call is made for it."""
        for source in self._sources:
            if source == "record":
                found = _recorded(facts)
            elif not may_ask or seen.state != "running":
                found = []
            elif source == "lease":
                found = self._leased(facts)
            else:
                found = vm_addresses.addresses_from(seen.domain, source, seen.document)
            if found:
                return found[0]
        return None

    def _leased(self, facts: Mapping[str, Any]) -> list[str]:
        cards = [(card["source"], card["mac"]) for card in facts["networks"] if card["kind"] == "network"]
        return vm_addresses.usable(address for card in cards for address in self._leases.get(card, []))

    @cached_property
    def _leases(self) -> dict[tuple[str, str], list[str]]:
        try:
            return networks.leases_by_card(self._connection)
        except libvirtError as error:
            raise translate(error, "read the leases of a host") from error


def _recorded(machine: Mapping[str, Any]) -> list[str]:
    """Return the addresses that the machine's seed gave it. Anybody may have written the record: it must be some."""
    found = []
    for text in machine["fixed_addresses"] if isinstance(machine["fixed_addresses"], list) else []:
        with contextlib.suppress(ValueError):
            found.append(str(ipaddress.ip_address(text)))
    return found
