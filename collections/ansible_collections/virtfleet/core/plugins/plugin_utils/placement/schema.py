# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of placement's input, version 1: plain data at the door, frozen dataclasses inside.

Sizes are bytes, loads are percent, ratios are plain numbers. A version only grows: a new field is optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import (
    LARGEST_POOL,
    Door,
    SchemaError,
    list_of,
    natural,
    unique,
)

SCHEMA_VERSION = 1

NUMA_NODES_MOST = 64
LARGEST_RATIO = 1000.0
"""How often a real vCPU, byte of memory or byte of a pool may be promised at most."""
RULES = ("affinity", "anti-affinity", "domains")
SCOPES = ("host", "rack", "zone")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine. An overlay counts with its virtual size times the pool's ratio, any other in full."""

    pool: str
    size_bytes: int
    overlay: bool = True


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool as one host sees it. A shared pool of one name is the same pool on every host."""

    total_bytes: int
    allocated_bytes: int = 0
    ratio: float = 1.0
    shared: bool = False

    def charge(self, disk: Disk) -> int:
        """Return the bytes that a disk takes from the pool: virtual size * ratio for an overlay."""
        return int(disk.size_bytes * self.ratio) if disk.overlay else disk.size_bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured on a host, in percent; None is unknown, never zero."""

    cpu_percent: float | None = None
    io_percent: float | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One NUMA node of a host: vCPUs and memory that machines bound to it share."""

    vcpus_total: int
    memory_total_bytes: int
    vcpus_allocated: int = 0
    memory_allocated_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A hypervisor. `allocated` counts all its machines, those listed in the state among them.

    It is at least what the machines listed take; where the input leaves it out, it is just that.
    """

    name: str
    vcpus_total: int
    memory_total_bytes: int
    zone: str | None = None
    rack: str | None = None
    live: bool = True
    error: str | None = None
    maintenance: bool = False
    tags: frozenset[str] = frozenset()
    vcpus_allocated: int = 0
    vcpus_reserved: int = 0
    vcpus_ratio: float = 1.0
    memory_allocated_bytes: int = 0
    memory_reserved_bytes: int = 0
    memory_ratio: float = 1.0
    pools: Mapping[str, Pool] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    numa: tuple[NumaNode, ...] = ()

    @property
    def vcpus_usable(self) -> int:
        """vCPUs that machines may be promised: total * ratio - reserved."""
        return max(0, int(self.vcpus_total * self.vcpus_ratio + 1e-9) - self.vcpus_reserved)

    @property
    def memory_usable_bytes(self) -> int:
        """Memory that machines may be promised: total * ratio - reserved."""
        return max(0, int(self.memory_total_bytes * self.memory_ratio + 1e-9) - self.memory_reserved_bytes)


@dataclass(frozen=True, slots=True)
class Vm:
    """A machine that stands on a host; only machines listed here can be moved by a plan.

    One that is not `movable`, or that `stays` for the reason given, is not.
    """

    id: str
    host: str
    vcpus: int
    memory_bytes: int
    disks: tuple[Disk, ...] = ()
    zone: str | None = None
    groups: tuple[str, ...] = ()
    domain: int = 0
    tags: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    numa: tuple[int, ...] = ()
    movable: bool = True
    stays: str | None = None
    moved_seconds_ago: float | None = None
    load_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A machine that is to be placed. `host` pins it, `tags` are tags the host must have."""

    id: str
    vcpus: int
    memory_bytes: int
    disks: tuple[Disk, ...] = ()
    zone: str | None = None
    host: str | None = None
    exclude: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()
    domain: int = 0
    tags: frozenset[str] = frozenset()
    numa_nodes: int = 0
    load: Load = field(default_factory=Load)


ANYTHING = Request(id="any", vcpus=0, memory_bytes=0)
"""A request that only asks for a host that takes machines at all."""


@dataclass(frozen=True, slots=True)
class Group:
    """A rule over machines that name it.

    `affinity` keeps them in one place of `scope` (host, rack, zone); `anti-affinity` puts at most `most` of them in one
    place; `domains` lets machines share a place only when they name the same fault domain (`domain`, a number). A soft
    rule is only preferred.
    """

    name: str
    rule: str
    scope: str = "host"
    hard: bool = True
    most: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """The fleet as one moment saw it. Hosts and machines are sorted by name, whatever order they came in."""

    hosts: tuple[Host, ...]
    vms: tuple[Vm, ...] = ()
    groups: tuple[Group, ...] = ()
    generation: int | str | None = None
    cursor: str | None = None


def _version(door: Door) -> None:
    version = door.raw("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        problem = f"this library reads schema version {SCHEMA_VERSION}, not {version!r}"
        raise door.fail("schema_version", problem)


def _disk(value: object, path: str) -> Disk:
    door = Door(value, path)
    disk = Disk(
        pool=door.text("pool"),
        size_bytes=door.integer("size_bytes", most=LARGEST_POOL, unit="bytes"),
        overlay=door.truth("overlay", True),
    )
    door.done()
    return disk


def _pool(value: object, path: str, listed: list[Disk]) -> Pool:
    door = Door(value, path)
    ratio = door.number("ratio", 1.0, least=0.0, most=LARGEST_RATIO)
    taken = sum(int(disk.size_bytes * ratio) if disk.overlay else disk.size_bytes for disk in listed)
    pool = Pool(
        total_bytes=door.integer("total_bytes", most=LARGEST_POOL, unit="bytes"),
        allocated_bytes=max(taken, door.integer("allocated_bytes", taken, most=LARGEST_POOL, unit="bytes")),
        ratio=door.number("ratio", 1.0, least=0.0, most=LARGEST_RATIO),
        shared=door.truth("shared", False),
    )
    door.done()
    return pool


def _load(door: Door) -> Load:
    load = Load(
        cpu_percent=door.number_or_none("cpu_percent"),
        io_percent=door.number_or_none("io_percent"),
        memory_percent=door.number_or_none("memory_percent"),
        disk_percent=door.number_or_none("disk_percent"),
    )
    door.done()
    return load


def numa_share(vcpus: int, memory_bytes: int, nodes: int) -> tuple[int, int]:
    """Return the vCPUs and bytes that a machine takes from each of its NUMA nodes, rounded up."""
    return -(-vcpus // nodes), -(-memory_bytes // nodes)


def _numa(value: object, path: str, listed: list[Vm]) -> NumaNode:
    door = Door(value, path)
    shares = [numa_share(vm.vcpus, vm.memory_bytes, len(vm.numa)) for vm in listed]
    vcpus, memory = sum(share[0] for share in shares), sum(share[1] for share in shares)
    node = NumaNode(
        vcpus_total=door.integer("vcpus_total", unit="vCPUs"),
        memory_total_bytes=door.integer("memory_total_bytes", unit="bytes"),
        vcpus_allocated=max(vcpus, door.integer("vcpus_allocated", vcpus, unit="vCPUs")),
        memory_allocated_bytes=max(memory, door.integer("memory_allocated_bytes", memory, unit="bytes")),
    )
    door.done()
    return node


def read_host(value: object, path: str = "host", listed: Mapping[str, list[Vm]] | None = None) -> Host:
    """Read one host; `listed` are the state's machines by host. A host that is not live needs only its name.

    Raises SchemaError.
    """
    door = Door(value, path)
    name = door.text("name")
    machines = (listed or {}).get(name, [])
    taken_vcpus = sum(vm.vcpus for vm in machines)
    taken_memory = sum(vm.memory_bytes for vm in machines)
    disks: dict[str, list[Disk]] = {}
    for vm in machines:
        for disk in vm.disks:
            disks.setdefault(disk.pool, []).append(disk)
    live = door.truth("live", True)
    vcpus, memory = door.door("vcpus"), door.door("memory")
    none_needed = None if live else 0
    host = Host(
        name=name,
        zone=door.text_or_none("zone"),
        rack=door.text_or_none("rack"),
        live=live,
        error=door.sentence_or_none("error"),
        maintenance=door.truth("maintenance", False),
        tags=frozenset(door.texts("tags")),
        vcpus_total=vcpus.integer("total", none_needed, unit="vCPUs"),
        vcpus_allocated=max(taken_vcpus, vcpus.integer("allocated", taken_vcpus, unit="vCPUs")),
        vcpus_reserved=vcpus.integer("reserved", 0, unit="vCPUs"),
        vcpus_ratio=vcpus.number("ratio", 1.0, most=LARGEST_RATIO),
        memory_total_bytes=memory.integer("total_bytes", none_needed, unit="bytes"),
        memory_allocated_bytes=max(taken_memory, memory.integer("allocated_bytes", taken_memory, unit="bytes")),
        memory_reserved_bytes=memory.integer("reserved_bytes", 0, unit="bytes"),
        memory_ratio=memory.number("ratio", 1.0, most=LARGEST_RATIO),
        pools={each: _pool(pool, where, disks.get(each, [])) for each, pool, where in door.entries("pools")},
        load=_load(door.door("load")),
        numa=tuple(
            _numa(node, where, [vm for vm in machines if number in vm.numa])
            for number, (node, where) in enumerate(door.items("numa"))
        ),
    )
    for inner in (vcpus, memory, door):
        inner.done()
    return host


def read_vm(value: object, path: str = "vm") -> Vm:
    """Read one machine that stands on a host. Raises SchemaError."""
    door = Door(value, path)
    vm = Vm(
        id=door.text("id"),
        host=door.text("host"),
        vcpus=door.integer("vcpus", unit="vCPUs"),
        memory_bytes=door.integer("memory_bytes", unit="bytes"),
        disks=tuple(_disk(disk, where) for disk, where in door.items("disks")),
        zone=door.text_or_none("zone"),
        groups=tuple(sorted(set(door.texts("groups")))),
        domain=door.integer("domain", 0),
        tags=frozenset(door.texts("tags")),
        exclude=frozenset(door.texts("exclude")),
        numa=_numa_indices(door),
        movable=door.truth("movable", True),
        stays=door.sentence_or_none("stays"),
        moved_seconds_ago=door.number_or_none("moved_seconds_ago", most=1e12),
        load_percent=door.number_or_none("load_percent"),
    )
    door.done()
    return vm


def _numa_indices(door: Door) -> tuple[int, ...]:
    indices: list[int] = []
    for value, path in door.items("numa"):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < NUMA_NODES_MOST:
            raise SchemaError(path, f"the number of a NUMA node is wanted, not {value!r}")
        if value in indices:
            raise SchemaError(path, f"NUMA node {value} was given before")
        indices.append(value)
    return tuple(indices)


def read_group(value: object, path: str = "group") -> Group:
    """Read one group. Raises SchemaError."""
    door = Door(value, path)
    rule = door.choice("rule", RULES, "anti-affinity")
    group = Group(
        name=door.text("name"),
        rule=rule,
        scope=door.choice("scope", SCOPES, "rack" if rule == "domains" else "host"),
        hard=door.truth("hard", True),
        most=door.integer("most", 1, least=1),
    )
    door.done()
    return group


def _groups_known(groups: tuple[str, ...], known: set[str], path: str) -> None:
    for group in groups:
        if group not in known:
            raise SchemaError(f"{path}.groups", f"there is no group {group!r}")


def read_state(value: object) -> State:
    """Read a state. Raises SchemaError naming the field's path."""
    if isinstance(value, State):
        return value
    door = Door(value, "")
    _version(door)
    generation = door.raw("generation")
    if generation is not None and (isinstance(generation, bool) or not isinstance(generation, (int, str))):
        raise door.fail("generation", f"a number or a text is wanted, not {generation!r}")
    vms = unique(((read_vm(vm, path), path) for vm, path in door.items("vms")), lambda vm: vm.id, "id")
    listed: dict[str, list[Vm]] = {}
    for vm in vms:
        listed.setdefault(vm.host, []).append(vm)
    found = [(read_host(host, path, listed), path) for host, path in door.items("hosts")]
    hosts = unique(found, lambda host: host.name, "name")
    groups = unique(((read_group(g, path), path) for g, path in door.items("groups")), lambda g: g.name, "name")
    by_name = {host.name: host for host in hosts}
    known_groups = {group.name for group in groups}
    for number, vm in enumerate(vms):
        host = by_name.get(vm.host)
        if host is None:
            raise SchemaError(f"vms[{number}].host", f"there is no host {vm.host!r}")
        # Of a host that is not live nothing but its name may be known.
        if host.live and vm.numa and max(vm.numa) >= len(host.numa):
            raise SchemaError(f"vms[{number}].numa", f"{vm.host} has no NUMA node {max(vm.numa)}")
        _groups_known(vm.groups, known_groups, f"vms[{number}]")
    state = State(
        hosts=tuple(sorted(hosts, key=lambda host: natural(host.name))),
        vms=tuple(sorted(vms, key=lambda vm: natural(vm.id))),
        groups=tuple(sorted(groups, key=lambda group: natural(group.name))),
        generation=generation,
        cursor=door.text_or_none("cursor"),
    )
    door.done()
    return state


def read_request(value: object, path: str = "request") -> Request:
    """Read one request. Raises SchemaError."""
    if isinstance(value, Request):
        return value
    door = Door(value, path)
    request = Request(
        id=door.text("id"),
        vcpus=door.integer("vcpus", least=1, unit="vCPUs"),
        memory_bytes=door.integer("memory_bytes", least=1, unit="bytes"),
        disks=tuple(_disk(disk, where) for disk, where in door.items("disks")),
        zone=door.text_or_none("zone"),
        host=door.text_or_none("host"),
        exclude=frozenset(door.texts("exclude")),
        groups=tuple(sorted(set(door.texts("groups")))),
        domain=door.integer("domain", 0),
        tags=frozenset(door.texts("tags")),
        numa_nodes=door.integer("numa_nodes", 0, most=NUMA_NODES_MOST),
        load=_load(door.door("load")),
    )
    door.done()
    return request


def read_requests(value: object, state: State) -> tuple[Request, ...]:
    """Read the requests of one batch. Raises SchemaError; a group that the state does not know is one."""
    requests = unique(
        ((read_request(request, path), path) for request, path in list_of(value, "requests")), lambda r: r.id, "id"
    )
    known = {group.name for group in state.groups}
    for number, request in enumerate(requests):
        _groups_known(request.groups, known, f"requests[{number}]")
    return requests
