# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading traces: what production clouds recorded, as text, for `replay`.

Three kinds of CSV file, told apart by their first line:

- requests with groups (`flavor_vcpus,flavor_ram,numa,strategy,group,domain`), as Huawei published them, beside a file
  of hosts (`CPU1,RAM1,CPU2,RAM2`: vCPUs and GiB of each of two NUMA nodes) and one of racks (`host_id,rack_id`);
- machines that come and go (`name,cpu_milli,memory_mib,…,creation_time,deletion_time`), as Alibaba's openb has them;
- loads: a column a machine, a row a sample, in percent, as PlanetLab was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import LARGEST, SchemaError, name_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    NUMA_NODES_MOST,
    SCHEMA_VERSION,
    Request,
)

MIB = 2**20
GIB = 2**30
MOST_PERCENT = 1e9
"""The highest load that is taken for one: machines of many vCPUs may be told of by the sum."""
VCPU_MILLI = 1000
"""A trace of openb's kind counts thousandths of a vCPU, and so does what is made of it."""

STRATEGIES = {
    "affinity": ("affinity", "rack"),
    "anti-affinity": ("anti-affinity", "host"),
    "fault_domain": ("domains", "rack"),
}
"""What a strategy of a request means: the group's rule and its scope."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A machine of a trace. `start` and `end` are seconds of the trace's own clock; None is ever."""

    request: dict[str, Any] | Request
    start: float | None = None
    end: float | None = None


def kind_of(text: str) -> str | None:
    """Return which kind of trace a text is: `requests`, `machines`, `loads`, or None when it is none of them."""
    columns = text.split("\n", 1)[0].strip().split(",")
    if {"flavor_vcpus", "flavor_ram"}.issubset(columns):
        return "requests"
    if {"cpu_milli", "memory_mib", "creation_time"}.issubset(columns):
        return "machines"
    row = text.split("\n", 2)[1:2]
    cells = row[0].strip().split(",") if row else []
    return "loads" if len(cells) == len(columns) and any(_is_number(cell) for cell in cells) else None


def _is_number(text: str) -> bool:
    try:
        return 0.0 <= float(text) < inf
    except ValueError:
        return False


def _rows(text: str, what: str, *columns: str) -> Iterator[tuple[dict[str, str], str]]:
    """Go through a CSV text's rows, each with where it stands. Raises SchemaError when a column is missing."""
    reader = csv.DictReader(text.splitlines())
    try:
        missing = sorted(set(columns).difference(reader.fieldnames or ()))
        if missing:
            raise SchemaError(what, f"there is no column {missing[0]!r}")
        for row in reader:
            where = f"{what}, line {reader.line_num}"
            yield {key: value or "" for key, value in row.items() if isinstance(key, str)}, where
    except csv.Error as error:
        raise SchemaError(f"{what}, line {reader.line_num + 1}", str(error)) from error


def _number(
    row: dict[str, str], column: str, where: str, *, unit: int = 1, least: int = 0, most: int = LARGEST
) -> float:
    """Return the number of a column. Raises SchemaError when it, in its unit, is smaller or larger than can be."""
    value = row[column]
    if not _is_number(value) or not (least <= float(value) and float(value) * unit <= most):
        raise SchemaError(where, f"{column} is a number from {least} to {most // unit}, not {value[:40]!r}")
    return float(value)


def read_requests_trace(requests: str, hosts: str, racks: str) -> tuple[dict[str, Any], list[Arrival]]:
    """Return the empty state and the arrivals, in their order. Hosts beyond the racks have none. Raises SchemaError."""
    rack_of = [row["rack_id"] for row, _where in _rows(racks, "racks", "rack_id")]
    state_hosts = []
    for number, (row, where) in enumerate(_rows(hosts, "hosts", "CPU1", "RAM1", "CPU2", "RAM2")):
        numa = [
            {
                "vcpus_total": int(_number(row, f"CPU{node}", where, most=LARGEST // 2)),
                "memory_total_bytes": int(_number(row, f"RAM{node}", where, unit=GIB, most=LARGEST // 2) * GIB),
            }
            for node in (1, 2)
        ]
        state_hosts.append(
            {
                "name": f"host-{number}",
                "rack": rack_of[number] if number < len(rack_of) else None,
                "vcpus": {"total": sum(node["vcpus_total"] for node in numa)},
                "memory": {"total_bytes": sum(node["memory_total_bytes"] for node in numa)},
                "numa": numa,
            }
        )
    groups: dict[str, dict[str, str]] = {}
    arrivals = []
    for number, (row, where) in enumerate(
        _rows(requests, "requests", "flavor_vcpus", "flavor_ram", "numa", "strategy", "group", "domain")
    ):
        request: dict[str, Any] = {
            "id": f"r{number}",
            "vcpus": int(_number(row, "flavor_vcpus", where, least=1)),
            "memory_bytes": int(_number(row, "flavor_ram", where, unit=GIB, least=1) * GIB),
            "numa_nodes": int(_number(row, "numa", where, most=NUMA_NODES_MOST)),
        }
        if row["strategy"]:
            if row["strategy"] not in STRATEGIES:
                raise SchemaError(where, f"one of {', '.join(STRATEGIES)} is wanted, not {row['strategy'][:40]!r}")
            rule, scope = STRATEGIES[row["strategy"]]
            group = f"{row['strategy']}-{row['group']}"
            groups[group] = {"name": group, "rule": rule, "scope": scope}
            request["groups"] = [group]
            request["domain"] = int(_number(row, "domain", where)) if row["domain"] else 0
        arrivals.append(Arrival(request))
    return {"schema_version": SCHEMA_VERSION, "hosts": state_hosts, "groups": list(groups.values())}, arrivals


def read_machines_trace(machines: str) -> tuple[list[Arrival], int]:
    """Return the arrivals in their order, and how many were left out because they want a GPU. Raises SchemaError."""
    arrivals = []
    left_out = 0
    known: dict[str, str] = {}
    wanted = ("name", "cpu_milli", "memory_mib", "creation_time", "deletion_time")
    for row, where in _rows(machines, "machines", *wanted):
        if row.get("num_gpu", "0") not in ("", "0"):
            left_out += 1
            continue
        name = name_of(row["name"], where)
        if name in known:
            raise SchemaError(where, f"{name!r} was given before, at {known[name]}")
        known[name] = where
        request = {
            "id": name,
            "vcpus": max(1, int(_number(row, "cpu_milli", where))),
            "memory_bytes": max(1, int(_number(row, "memory_mib", where, unit=MIB) * MIB)),
        }
        end = _number(row, "deletion_time", where) if row["deletion_time"] else None
        arrivals.append(Arrival(request, _number(row, "creation_time", where), end))
    return arrivals, left_out


def hosts_of_one_size(count: int, vcpus: int, memory_bytes: int) -> dict[str, Any]:
    """Return the state of so many empty hosts of one size, for a trace that brings none."""
    hosts = [
        {"name": f"host-{number}", "vcpus": {"total": vcpus}, "memory": {"total_bytes": memory_bytes}}
        for number in range(count)
    ]
    return {"schema_version": SCHEMA_VERSION, "hosts": hosts}


def most_at_once(arrivals: list[Arrival]) -> int:
    """Return how many machines of a trace live at one time at most."""
    changes = []
    for arrival in arrivals:
        start = -inf if arrival.start is None else arrival.start
        end = inf if arrival.end is None else arrival.end
        # Who is gone at once was still there.
        changes += [(start, 1), (max(end, nextafter(start, inf)), -1)]
    most = now = 0
    # Who leaves at a moment makes room for who comes then.
    for _time, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def read_loads_trace(loads: str) -> dict[str, list[float]]:
    """Return each machine's loads in percent, sample by sample. Raises SchemaError."""
    reader = csv.reader(loads.splitlines())
    names: list[str] = []
    rows: list[list[float]] = []
    try:
        for row in reader:
            if not row:
                continue
            where = f"loads, line {reader.line_num}"
            if not names:
                names = [name_of(name, where) for name in row]
                if len(set(names)) < len(names):
                    raise SchemaError(where, "two columns have one name")
            elif len(row) != len(names) or not all(_is_number(cell) and float(cell) <= MOST_PERCENT for cell in row):
                raise SchemaError(where, f"{len(names)} loads from 0 to {MOST_PERCENT:g} percent are wanted")
            else:
                rows.append([float(cell) for cell in row])
    except csv.Error as error:
        raise SchemaError(f"loads, line {reader.line_num + 1}", str(error)) from error
    if not rows:
        raise SchemaError("loads", "a line of names and at least one of loads are wanted")
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}
