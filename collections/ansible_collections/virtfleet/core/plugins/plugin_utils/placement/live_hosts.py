# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the modules speak to the schema: `host_info` values become hosts, machines as `vm` takes them requests.

Used where no database knows better: the filters decide on what the hosts say at this moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import (
    SchemaError,
    list_of,
    name_of,
    natural,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.placing import place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import DEFAULT_POLICY
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION

ParseSize = Callable[[str], int]
"""Turns `2GiB` into bytes; raises an exception with a sentence for what it does not understand."""

DEFAULT_POOL = "default"
KNOWN_OF_MACHINES = frozenset({"groups", "domain", "exclude", "tags", "movable", "stays", "disks"})
PLACEMENT_ONLY = ("host", "zone", "exclude", "groups", "domain", "tags", "numa_nodes", "load")


def _size(value: object, path: str, parse_size: ParseSize) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SchemaError(path, f"a size with its unit is wanted, such as 512MiB, not {value!r}")
    if isinstance(value, int):
        raise SchemaError(path, f"a size needs its unit, such as 512MiB; {value} has none")
    try:
        return parse_size(str(value))
    except Exception as error:
        raise SchemaError(path, str(error)) from error


def _whole(value: object, path: str) -> int:
    """Return a number that Ansible may have handed over as text."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SchemaError(path, f"a whole number is wanted, not {value!r}")
    return int(value)


def _inside(value: object, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def host_from_info(
    value: object,
    path: str,
    parse_size: ParseSize,
    *,
    vcpu_ratio: float,
    memory_ratio: float,
    disk_ratio: float,
) -> dict[str, Any]:
    """Return a `host_info` value as a host of the schema.

    It may carry, besides what the module returned, `zone`, `rack`, `tags`, `maintenance`, `error`, `vcpu_ratio` and
    `reserved` (`{vcpus, memory}`, memory as text with a unit). What a pool has promised is the larger of what is really
    used and its volumes' virtual sizes times `disk_ratio`; inactive pools do not count.
    """
    if not isinstance(value, Mapping):
        raise SchemaError(path, f"a host_info value is wanted, not {value!r}")
    name = name_of(value.get("name"), f"{path}.name")
    host: dict[str, Any] = {
        "name": name,
        "zone": value.get("zone"),
        "rack": value.get("rack"),
        "tags": value.get("tags"),
        "maintenance": value.get("maintenance"),
        "live": value.get("live", True),
        "error": value.get("error"),
    }
    if host["live"] is False:
        return host
    vcpus, memory, reserved = _inside(value, "vcpus"), _inside(value, "memory"), _inside(value, "reserved")
    reserved_memory = reserved.get("memory")
    ratio = value.get("vcpu_ratio")
    host["vcpus"] = {
        "total": vcpus.get("total"),
        "allocated": vcpus.get("allocated"),
        "reserved": _whole(reserved.get("vcpus") or 0, f"{path}.reserved.vcpus"),
        "ratio": vcpu_ratio if ratio is None else ratio,
    }
    host["memory"] = {
        "total_bytes": memory.get("total_bytes"),
        "allocated_bytes": memory.get("allocated_bytes"),
        "reserved_bytes": _size(reserved_memory, f"{path}.reserved.memory", parse_size) if reserved_memory else 0,
        "ratio": memory_ratio,
    }
    pools = {}
    for pool, where in list_of(value.get("pools") or [], f"{path}.pools"):
        if not isinstance(pool, Mapping):
            raise SchemaError(where, f"a mapping is wanted, not {pool!r}")
        if pool.get("active", True):
            promised = int((pool.get("provisioned_bytes") or 0) * disk_ratio)
            pools[name_of(pool.get("name"), f"{where}.name")] = {
                "total_bytes": pool.get("capacity_bytes"),
                "allocated_bytes": max(pool.get("allocation_bytes") or 0, promised),
                "ratio": disk_ratio,
                "shared": bool(pool.get("shared")),
            }
    host["pools"] = pools
    host["load"] = {"cpu_percent": _inside(value, "load").get("cpu_percent")}
    return host


def hosts_of_infos(
    host_infos: object, parse_size: ParseSize, *, vcpu_ratio: float, memory_ratio: float, disk_ratio: float
) -> list[tuple[dict[str, Any], Any, str]]:
    """Return each `host_info` value as a host of the schema, with the value itself and its path. Raises SchemaError."""
    return [
        (
            host_from_info(
                info, path, parse_size, vcpu_ratio=vcpu_ratio, memory_ratio=memory_ratio, disk_ratio=disk_ratio
            ),
            info,
            path,
        )
        for info, path in list_of(host_infos, "hosts")
    ]


def homes_of(machine: Mapping[str, Any], infos: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the live hosts that have a machine, each with what it says of it; where it runs first.

    It is looked up by UUID, or by name where none is given or known.
    """
    wanted, found = str(machine.get("uuid") or "").lower(), []
    for info in infos:
        for other in (info.get("machines") or []) if info.get("live", True) else []:
            uuid = str(other.get("uuid") or "").lower()
            if wanted == uuid if wanted and uuid else machine.get("name") == other.get("name"):
                found.append((str(info["name"]), other))
                break
    return sorted(found, key=lambda home: home[1].get("state") != "running")


def _disks(machine: Mapping[str, Any], path: str, parse_size: ParseSize) -> list[dict[str, Any]]:
    disks = []
    for disk, where in list_of(machine.get("disks") or [], f"{path}.disks"):
        if not isinstance(disk, Mapping):
            raise SchemaError(where, f"a disk is a mapping, not {disk!r}")
        size = disk.get("size")
        if size is not None:
            disks.append(
                {
                    "pool": disk.get("pool") or DEFAULT_POOL,
                    "size_bytes": _size(size, f"{where}.size", parse_size),
                    "overlay": bool(disk.get("image")),
                }
            )
    return disks


def request_from_machine(value: object, path: str, parse_size: ParseSize) -> dict[str, Any]:
    """Return a machine as module `vm` takes it (with `host`, `zone`, `exclude`, `groups` beside) as a request.

    A disk without a size takes no room that is known: it is an existing volume, or as large as its image.
    """
    if not isinstance(value, Mapping):
        raise SchemaError(path, f"a machine is a mapping, not {value!r}")
    return {
        "id": name_of(value.get("name"), f"{path}.name"),
        "vcpus": _whole(value.get("vcpus", 1), f"{path}.vcpus"),
        "memory_bytes": _size(value.get("memory"), f"{path}.memory", parse_size),
        "disks": _disks(value, path, parse_size),
        "zone": value.get("zone"),
        "host": value.get("host"),
        "exclude": value.get("exclude"),
        "groups": value.get("groups"),
        "domain": value.get("domain"),
    }


def state_of_hosts(
    host_infos: object,
    parse_size: ParseSize,
    *,
    vcpu_ratio: float = 8.0,
    memory_ratio: float = 1.0,
    disk_ratio: float = 1.0,
    groups: object = None,
    machines: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return `host_info` values, with the machines on them, as a state: what plans are made from.

    A machine stays in its host's zone; of one name on two hosts, both are called `name@host`. `machines` says by name
    what a host does not know: `groups`, `domain`, `exclude`, `tags`, `movable`, `stays` and `disks` (as module `vm`
    takes them). Raises SchemaError.
    """
    hosts = hosts_of_infos(
        host_infos, parse_size, vcpu_ratio=vcpu_ratio, memory_ratio=memory_ratio, disk_ratio=disk_ratio
    )
    if machines is not None and not isinstance(machines, Mapping):
        raise SchemaError("machines", f"a mapping by name is wanted, not {machines!r}")
    more = dict(machines or {})
    found: list[tuple[str, Mapping[str, Any], dict[str, Any]]] = []
    for host, info, path in hosts:
        for machine, where in list_of((host["live"] is not False and info.get("machines")) or [], f"{path}.machines"):
            if not isinstance(machine, Mapping):
                raise SchemaError(where, f"a mapping is wanted, not {machine!r}")
            found.append((name_of(machine.get("name"), f"{where}.name"), machine, host))
    names = Counter(name for name, _machine, _host in found)
    unknown = sorted(map(str, set(more).difference(names)))
    if unknown:
        raise SchemaError(f"machines.{unknown[0]}", "no host has such a machine")
    vms = []
    for name, machine, host in found:
        given = more.get(name) or {}
        path = f"machines.{name}"
        if not isinstance(given, Mapping) or not KNOWN_OF_MACHINES.issuperset(given):
            raise SchemaError(path, f"a mapping of {', '.join(sorted(KNOWN_OF_MACHINES))} is wanted, not {given!r}")
        vms.append(
            {
                **{key: value for key, value in given.items() if key != "disks"},
                "id": name if names[name] == 1 else f"{name}@{host['name']}",
                "host": host["name"],
                "zone": host["zone"],
                "vcpus": machine.get("vcpus"),
                "memory_bytes": machine.get("memory_bytes"),
                "disks": _disks(given, path, parse_size),
            }
        )
    known = [host for host, _info, _path in hosts]
    return {"schema_version": SCHEMA_VERSION, "hosts": known, "vms": vms, "groups": groups or []}


def place_machines(
    machines: object,
    host_infos: object,
    parse_size: ParseSize,
    policy: object = DEFAULT_POLICY,
    *,
    vcpu_ratio: float = 8.0,
    memory_ratio: float = 1.0,
    disk_ratio: float = 1.0,
    cursor: str | None = None,
    groups: object = None,
    all_or_nothing: bool = False,
    explain: bool = True,
) -> dict[str, Any]:
    """Decide where machines go on hosts as `host_info` shows them: the decision of `place`, `by_host` and `machines`.

    `by_host` has the machines' names by host, `machines` the machines themselves, as module `vm` takes them.

    A machine that exists already stays where it is and is not charged again, so that a second run changes nothing; one
    that is pinned to another host than the one it stands on is not placed. Raises SchemaError.
    """
    hosts = hosts_of_infos(
        host_infos, parse_size, vcpu_ratio=vcpu_ratio, memory_ratio=memory_ratio, disk_ratio=disk_ratio
    )
    infos = [info for _host, info, _path in hosts]
    state = {
        "schema_version": SCHEMA_VERSION,
        "cursor": cursor,
        "groups": groups or [],
        "hosts": [host for host, _info, _path in hosts],
    }
    requests: list[dict[str, Any]] = []
    staying: list[dict[str, Any]] = []
    astray: list[dict[str, Any]] = []
    named: dict[str, Mapping[str, Any]] = {}
    for machine, path in list_of(machines, "machines"):
        request = request_from_machine(machine, path, parse_size)
        name = request["id"]
        if name in named:
            raise SchemaError(f"{path}.name", f"{name!r} was given before")
        named[name] = machine
        homes, pin = [home for home, _machine in homes_of(machine, infos)], request["host"]
        if not homes:
            requests.append(request)
        elif pin is None or pin in homes:
            home = pin if pin is not None else homes[0]
            staying.append(_standing(name, home, f"{name} stays on {home}: it exists there already"))
        else:
            text = f"{name} is pinned to {pin} but exists already on {homes[0]}; migrate it or pin it there"
            astray.append(_standing(name, None, text))
    decision = place(state, requests, policy, explain=explain, all_or_nothing=all_or_nothing)
    if staying or astray:
        decision = _with_known(decision, staying, astray)
    by_host: dict[str, list[str]] = {}
    of_host: dict[str, list[dict[str, Any]]] = {}
    for placement in decision["placements"]:
        by_host.setdefault(placement["host"], []).append(placement["request"])
        of_host.setdefault(placement["host"], []).append(_for_module(named[placement["request"]]))
    return {**decision, "by_host": by_host, "machines": of_host}


def _for_module(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return a machine without what only placement understands: what is left, module `vm` takes."""
    return {key: value for key, value in machine.items() if key not in PLACEMENT_ONLY}


def _standing(name: str, host: str | None, text: str) -> dict[str, Any]:
    why: dict[str, Any] = {"chosen": host, "text": text, "ranked": [], "rejected": [], "refusals": []}
    if host is None:
        return {"request": name, "explanation": why}
    return {"request": name, "host": host, "numa": [], "explanation": why}


def _with_known(
    decision: dict[str, Any], staying: list[dict[str, Any]], astray: list[dict[str, Any]]
) -> dict[str, Any]:
    parts = [] if decision["placements"] == [] and decision["unplaced"] == [] else [decision["summary"]]
    if staying:
        parts.append(f"{len(staying)} already there")
    parts.extend(each["explanation"]["text"] for each in astray)
    return {
        **decision,
        "fits": decision["fits"] and not astray,
        "placements": sorted([*decision["placements"], *staying], key=lambda each: natural(each["request"])),
        "unplaced": sorted([*decision["unplaced"], *astray], key=lambda each: natural(each["request"])),
        "summary": "; ".join(parts),
    }
