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
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

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
            machines = vms.all_of(connection)
            for machine in machines:
                machine["address"] = _recorded(machine) if "record" in sources else None
                asked = [source for source in sources if source != "record"]
                if machine["address"] is None and machine["state"] == "running" and asked and not whole.passed:
                    domain = vms.find(connection, None, machine["uuid"])
                    machine["address"] = _asked(domain, asked) if domain is not None else None
            return machines

    return bounded(read, Deadline(timeout + SPARE_SECONDS / 2), "read its machines")


def _recorded(machine: Mapping[str, Any]) -> str | None:
    """Return the address that the machine's seed gave it. Anybody may have written the record: it must be one."""
    for text in machine["fixed_addresses"] if isinstance(machine["fixed_addresses"], list) else []:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text))
    return None


def _asked(domain: Any, sources: Sequence[str]) -> str | None:
    return next((found[0] for source in sources if (found := vms.addresses_from(domain, source))), None)
