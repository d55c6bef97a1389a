# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and writing the text files of Ganeti's htools, so that its programs and ours see the very same cluster.

Format: the manual page htools(1) of Ganeti, "FILE FORMATS": groups, nodes, instances, tags, policies, separated
by an empty line; fields by `|`; sizes in MiB. A node group becomes a zone; a node's location tags become its rack; an
exclusion tag (`htools:iextags:`) becomes a group that keeps its machines apart. Local disks (plain, drbd, file,
blockdev) take room in the pool `local`. Not taken over: secondary nodes, spindles, CPU speed, migration tags.
"""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plain import plain_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    LARGEST_RATIO,
    SCHEMA_VERSION,
    State,
    read_state,
)

MIB = 2**20
LOCAL_POOL = "local"
LOCAL_TEMPLATES = frozenset({"plain", "drbd", "file", "blockdev"})
EXCLUSION = "htools:iextags:"
LOCATION = "htools:nlocation:"
APART = "apart:"
"""Before the name of a group that keeps its machines apart, in the files that we write."""
DEFAULT_VCPU_RATIO = 4.0
"""Ganeti's own default of an instance policy's vcpu-ratio."""

LEAST_NODE_FIELDS = 9
LEAST_INSTANCE_FIELDS = 9
SECTIONS = 5


class _Lines:
    """The file's sections, each a list of (line number, fields)."""

    def __init__(self, text: str) -> None:
        self.sections: list[list[tuple[int, list[str]]]] = [[]]
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() or len(self.sections) == SECTIONS:
                if line.strip():
                    self.sections[-1].append((number, line.split("|")))
            else:
                self.sections.append([])
        while len(self.sections) < SECTIONS:
            self.sections.append([])


def _mib(fields: list[str], at: int, line: int, what: str) -> int | None:
    """Return bytes, or None for Ganeti's `?` (not known)."""
    value = fields[at].strip()
    if value == "?":
        return None
    if not value.isascii() or not value.isdecimal() or len(value) > 12:
        raise SchemaError(f"line {line}", f"{what} in MiB is wanted, not {value[:40]!r}")
    return int(value) * MIB


def _count(fields: list[str], at: int, line: int, what: str) -> int:
    value = fields[at].strip()
    if value == "?":
        return 0
    if not value.isascii() or not value.isdecimal() or len(value) > 9:
        raise SchemaError(f"line {line}", f"{what} is a number, not {value[:40]!r}")
    return int(value)


def _tags(fields: list[str], at: int) -> list[str]:
    return sorted({tag for tag in fields[at].split(",") if tag and tag != "-"}) if len(fields) > at else []


def import_htools(text: str) -> tuple[dict[str, Any], list[str]]:
    """Read an htools file: the state as the schema writes it, and notes on what could not be taken over.

    Raises SchemaError naming the line.
    """
    groups, nodes, instances, tags, policies = _Lines(text).sections[:SECTIONS]
    zones = {fields[1].strip(): fields[0].strip() for _line, fields in groups if len(fields) > 1}
    cluster_tags = [fields[0].strip() for _line, fields in tags]
    exclusions = [tag.removeprefix(EXCLUSION) for tag in cluster_tags if tag.startswith(EXCLUSION)]
    locations = [tag.removeprefix(LOCATION) for tag in cluster_tags if tag.startswith(LOCATION)]
    ratios = _ratios(policies)
    notes: list[str] = []
    hosts = [_host(line, fields, zones, ratios, locations) for line, fields in nodes]
    zone_of = {host["name"]: host["zone"] for host in hosts}
    vms: list[dict[str, Any]] = []
    lines: dict[str, list[int]] = {"hosts": [line for line, _fields in nodes], "vms": []}
    members: set[str] = set()
    known: set[str] = set()
    for line, fields in instances:
        vm = _vm(line, fields, exclusions)
        if vm["host"] not in zone_of:
            notes.append(f"line {line}: {vm['id']} stands on {vm['host']}, which is not among the nodes; left out")
            continue
        if vm["id"] in known:
            notes.append(f"line {line}: there is an instance {vm['id']} before; this one is called {vm['id']}#{line}")
            vm["id"] = f"{vm['id']}#{line}"
        known.add(vm["id"])
        vm["zone"] = zone_of[vm["host"]]
        members.update(vm["groups"])
        vms.append(vm)
        lines["vms"].append(line)
    notes.extend(_overfull(hosts, vms))
    state = {
        "schema_version": SCHEMA_VERSION,
        "generation": None,
        "cursor": None,
        "hosts": hosts,
        "vms": vms,
        "groups": [{"name": name, "rule": "anti-affinity"} for name in sorted(members)],
    }
    try:
        return plain_state(read_state(state)), notes
    except SchemaError as error:
        raise _at_its_line(error, lines) from error


_ELEMENT = re.compile(r"(hosts|vms)\[(\d+)\]\.?")


def _at_its_line(error: SchemaError, lines: dict[str, list[int]]) -> SchemaError:
    """Return what is wrong with an element of the state as what is wrong with its line of the file."""

    def line_of(found: re.Match[str]) -> str:
        return f"line {lines[found[1]][int(found[2])]}"

    found = _ELEMENT.match(error.path)
    if found is None:
        return error
    field = error.path[found.end() :]
    problem = _ELEMENT.sub(line_of, error.problem)
    return SchemaError(line_of(found), f"{field}: {problem}" if field else problem)


def _overfull(hosts: list[dict[str, Any]], vms: list[dict[str, Any]]) -> list[str]:
    """Return a note for each host whose machines take more than the file says is taken; the state counts all of it."""
    taken: dict[str, int] = {}
    for vm in vms:
        taken[vm["host"]] = taken.get(vm["host"], 0) + vm["memory_bytes"]
    return [
        f"{host['name']}: its instances take {taken[host['name']] // MIB} MiB of memory, more than the file counts"
        for host in hosts
        if taken.get(host["name"], 0) > host["memory"].get("allocated_bytes", 0)
    ]


def _ratios(policies: list[tuple[int, list[str]]]) -> dict[str, float]:
    """Return the vcpu-ratio of each group's policy; the cluster's is under the empty name."""
    ratios = {"": DEFAULT_VCPU_RATIO}
    for line, fields in policies:
        if len(fields) > 4:
            try:
                ratio = float(fields[4])
            except ValueError:
                ratio = -1.0
            if not 0.0 <= ratio <= LARGEST_RATIO:
                problem = f"a vcpu-ratio is a number up to {LARGEST_RATIO:g}, not {fields[4][:40]!r}"
                raise SchemaError(f"line {line}", problem)
            ratios[fields[0].strip()] = ratio
    return ratios


def _host(
    line: int, fields: list[str], zones: dict[str, str], ratios: dict[str, float], locations: list[str]
) -> dict[str, Any]:
    if len(fields) < LEAST_NODE_FIELDS:
        raise SchemaError(f"line {line}", f"a node has at least {LEAST_NODE_FIELDS} fields, not {len(fields)}")
    name, uuid = fields[0].strip(), fields[8].strip()
    zone = zones.get(uuid, uuid)
    memory, own, free = (_mib(fields, at, line, "memory") for at in (1, 2, 3))
    disk, disk_free = (_mib(fields, at, line, "disk") for at in (4, 5))
    offline = fields[7].strip() == "Y"
    known = memory is not None and own is not None and free is not None
    host: dict[str, Any] = {
        "name": name,
        "zone": zone,
        "live": known and not offline,
        "error": "offline" if offline else None if known else "resources unknown",
        "tags": _tags(fields, 10),
        "vcpus": {
            "total": _count(fields, 6, line, "the CPUs"),
            "reserved": _count(fields, 13, line, "the node's own CPUs") if len(fields) > 13 else 0,
            "ratio": ratios.get(zone, ratios[""]),
        },
        "memory": {"total_bytes": memory or 0, "reserved_bytes": own or 0},
    }
    if memory is not None and own is not None and free is not None:
        host["memory"]["allocated_bytes"] = max(0, memory - own - free)
    racks = [tag for tag in host["tags"] if tag.split(":", 1)[0] in locations]
    host["rack"] = ",".join(racks) or None
    if disk is not None and disk_free is not None:
        host["pools"] = {LOCAL_POOL: {"total_bytes": disk, "allocated_bytes": max(0, disk - disk_free)}}
    return host


def _vm(line: int, fields: list[str], exclusions: list[str]) -> dict[str, Any]:
    if len(fields) < LEAST_INSTANCE_FIELDS:
        raise SchemaError(f"line {line}", f"an instance has at least {LEAST_INSTANCE_FIELDS} fields, not {len(fields)}")
    template = fields[8].strip()
    tags = _tags(fields, 9)
    disk = _mib(fields, 2, line, "disk") or 0
    return {
        "id": fields[0].strip(),
        "host": fields[6].strip(),
        "vcpus": _count(fields, 3, line, "the vCPUs"),
        "memory_bytes": _mib(fields, 1, line, "memory") or 0,
        "disks": [{"pool": LOCAL_POOL, "size_bytes": disk, "overlay": False}]
        if template in LOCAL_TEMPLATES and disk
        else [],
        # An exclusion tag `group` covers every instance tag `group:…`; equal ones must not meet.
        "groups": [tag for tag in tags if any(tag == name or tag.startswith(f"{name}:") for name in exclusions)],
    }


def export_htools(state: object) -> str:
    """Write a state as an htools file. Sizes are rounded to whole MiB, needs up and room down. Raises SchemaError.

    Lost on the way: pools but `local`, NUMA nodes, loads, soft groups and groups that keep machines together.
    """
    snapshot = read_state(state)
    for name in (*(host.name for host in snapshot.hosts), *(vm.id for vm in snapshot.vms)):
        if "|" in name:
            raise SchemaError("name", f"{name!r} cannot be written: the format separates fields by |")
    return "\n\n".join("\n".join(section) for section in _sections(snapshot)) + "\n"


def _sections(state: State) -> list[list[str]]:
    zones = sorted({host.zone or "default" for host in state.hosts})
    used = {host.name: 0 for host in state.hosts}
    for vm in state.vms:
        used[vm.host] += vm.vcpus
    racks = any(host.rack for host in state.hosts)
    nodes = []
    for host in state.hosts:
        pool = host.pools.get(LOCAL_POOL)
        free = max(0, host.memory_total_bytes - host.memory_reserved_bytes - host.memory_allocated_bytes)
        disk, disk_free = (pool.total_bytes, pool.total_bytes - pool.allocated_bytes) if pool else (0, 0)
        tags = sorted(host.tags - {host.rack or ""})
        if host.rack:
            tags.append(host.rack if host.rack.startswith("rack:") else f"rack:{host.rack}")
        nodes.append(
            f"{host.name}|{host.memory_total_bytes // MIB}|{-(-host.memory_reserved_bytes // MIB)}|{free // MIB}"
            f"|{disk // MIB}|{max(0, disk_free) // MIB}|{host.vcpus_total}"
            f"|{'N' if host.live and not host.maintenance else 'Y'}|uuid-{host.zone or 'default'}|1|{','.join(tags)}"
            f"|N|0|{host.vcpus_reserved}|1.0"
        )
    apart = {group.name for group in state.groups if group.rule == "anti-affinity" and group.hard}
    instances = []
    for vm in state.vms:
        disk = sum(each.size_bytes for each in vm.disks if each.pool == LOCAL_POOL)
        tags = [f"{APART}{name.removeprefix(APART)}" for name in vm.groups if name in apart]
        instances.append(
            f"{vm.id}|{-(-vm.memory_bytes // MIB)}|{-(-disk // MIB)}|{vm.vcpus}|running|Y|{vm.host}|"
            f"|{'plain' if disk else 'ext'}|{','.join(tags)}|1"
        )
    sizes = "128,1,0,1,0,1|128,1,0,1,0,1;1073741824,4096,1073741824,16,16,64|plain,ext"
    ratio = max((host.vcpus_ratio for host in state.hosts), default=DEFAULT_VCPU_RATIO)
    tags = [EXCLUSION + APART.removesuffix(":")] if apart else []
    if racks:
        tags.append(f"{LOCATION}rack")
    return [
        [f"{zone}|uuid-{zone}|preferred||" for zone in zones],
        nodes,
        instances,
        tags,
        [f"{zone}|{sizes}|{ratio}|1024.0" for zone in ("", *zones)],
    ]
