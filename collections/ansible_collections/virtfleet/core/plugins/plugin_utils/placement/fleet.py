# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet while machines are being placed: free resources in columns, one entry a host, and claims against them.

Columns are plain lists in the order of the hosts' names, so that a look over a thousand hosts is one comprehension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    Disk,
    Group,
    Host,
    Request,
    State,
    Vm,
    numa_share,
)

NO_POOL = -1
"""What a pool's column holds for a host without that pool: less than any charge."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a machine takes from one host, so that it can be given back exactly."""

    host: int
    vcpus: int
    memory_bytes: int
    pools: tuple[tuple[str, int], ...] = ()
    numa: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    domain: int = 0


class Fleet:
    """Free resources of every host. Mutable: `claim` takes, `release` gives back, `changed` logs which hosts moved."""

    def __init__(self, state: State) -> None:
        hosts = state.hosts
        self.state = state
        self.hosts: tuple[Host, ...] = hosts
        self.index = {host.name: number for number, host in enumerate(hosts)}
        self.everyone = list(range(len(hosts)))
        self.vcpus_usable = [host.vcpus_usable for host in hosts]
        self.vcpus_free = [u - host.vcpus_allocated for u, host in zip(self.vcpus_usable, hosts, strict=True)]
        self.memory_usable = [host.memory_usable_bytes for host in hosts]
        self.memory_free = [u - host.memory_allocated_bytes for u, host in zip(self.memory_usable, hosts, strict=True)]
        self.pool_free: dict[str, list[int]] = {}
        self.pool_shared: dict[str, list[int]] = {}
        self._pool_ratio: dict[str, float | None] = {}
        for name in sorted({name for host in hosts for name in host.pools}):
            self._add_pool(name)
        self.numa_free = [
            [
                [
                    node.vcpus_total - node.vcpus_allocated,
                    node.memory_total_bytes - node.memory_allocated_bytes,
                ]
                for node in host.numa
            ]
            for host in hosts
        ]
        self.groups: dict[str, Group] = {group.name: group for group in state.groups}
        self.members: dict[str, dict[str, int]] = {group.name: {} for group in state.groups}
        """How many machines of a group stand in each place of its scope."""
        self.domains: dict[str, dict[str, dict[int, int]]] = {g.name: {} for g in state.groups if g.rule == "domains"}
        """For groups of rule `domains`: how many machines of each fault domain stand in each place."""
        self.changed: list[int] = []
        self._places: dict[str, dict[str, list[int]]] = {}
        self._eligible: dict[tuple[object, ...], list[int]] = {}
        for vm in state.vms:
            self._count(vm.groups, self.index[vm.host], 1, vm.domain)

    def _add_pool(self, name: str) -> None:
        free = [NO_POOL] * len(self.hosts)
        ratios = set()
        sharing = []
        for number, host in enumerate(self.hosts):
            pool = host.pools.get(name)
            if pool is None:
                continue
            free[number] = pool.total_bytes - pool.allocated_bytes
            ratios.add(pool.ratio)
            if pool.shared:
                sharing.append(number)
        # The hosts of a shared pool were asked at different moments: the smallest answer is the safe one.
        if sharing:
            least = min(free[number] for number in sharing)
            for number in sharing:
                free[number] = least
        self.pool_free[name] = free
        self.pool_shared[name] = sharing
        self._pool_ratio[name] = ratios.pop() if len(ratios) == 1 else None

    def place_of(self, number: int, scope: str) -> str:
        """Return the place of a group's scope that a host stands in; a host without rack or zone is its own place."""
        host = self.hosts[number]
        place = {"host": host.name, "rack": host.rack, "zone": host.zone}[scope]
        return f"{scope}:{place}" if place is not None else f"host:{host.name}"

    def hosts_in(self, scope: str, place: str) -> list[int]:
        """Return the hosts that stand in a place."""
        places = self._places.get(scope)
        if places is None:
            places = self._places[scope] = {}
            for number in self.everyone:
                places.setdefault(self.place_of(number, scope), []).append(number)
        return places.get(place, [])

    def _count(self, groups: tuple[str, ...], number: int, step: int, domain: int) -> None:
        for group in groups:
            places = self.members[group]
            place = self.place_of(number, self.groups[group].scope)
            left = places.get(place, 0) + step
            if left:
                places[place] = left
            else:
                places.pop(place, None)
            if group in self.domains:
                domains = self.domains[group].setdefault(place, {})
                domains[domain] = domains.get(domain, 0) + step
                if not domains[domain]:
                    del domains[domain]

    def eligible(self, request: Request) -> list[int]:
        """Return the hosts that what does not change by claims (life, zone, pin, exclusion, tags) leaves over."""
        key = (request.zone, request.host, request.exclude, request.tags)
        known = self._eligible.get(key)
        if known is None:
            known = [number for number in self.everyone if self.is_eligible(self.hosts[number], request)]
            if len(known) == len(self.everyone):
                known = self.everyone
            self._eligible[key] = known
        return known

    @staticmethod
    def is_eligible(host: Host, request: Request) -> bool:
        """Tell whether what does not change by claims lets a host take a request."""
        return (
            host.live
            and not host.maintenance
            and (request.zone is None or request.zone == host.zone)
            and (request.host is None or request.host == host.name)
            and host.name not in request.exclude
            and request.tags <= host.tags
        )

    def charges(self, number: int, disks: Iterable[Disk]) -> dict[str, int]:
        """Return the bytes that disks take from each pool of a host; a pool that is missing counts in full."""
        total: dict[str, int] = {}
        pools = self.hosts[number].pools
        for disk in disks:
            pool = pools.get(disk.pool)
            size = disk.size_bytes if pool is None else pool.charge(disk)
            total[disk.pool] = total.get(disk.pool, 0) + size
        return total

    def with_room(self, request: Request, among: list[int]) -> list[int]:
        """Return those of the hosts that have the vCPUs, memory, disk space, NUMA nodes and group rules to take it."""
        vcpus, memory = request.vcpus, request.memory_bytes
        if among is self.everyone:
            zipped = zip(among, self.vcpus_free, self.memory_free, strict=True)
            room = [number for number, v, m in zipped if v >= vcpus and m >= memory]
        else:
            v, m = self.vcpus_free, self.memory_free
            room = [number for number in among if v[number] >= vcpus and m[number] >= memory]
        if request.disks:
            room = self._with_pools(request, room)
        if request.numa_nodes:
            room = [number for number in room if self.numa_choice(number, request) is not None]
        for name in request.groups:
            group = self.groups[name]
            if group.hard:
                room = [number for number in room if self.group_allows(group, number, request.domain)]
        return room

    def _with_pools(self, request: Request, room: list[int]) -> list[int]:
        for name in {disk.pool for disk in request.disks}:
            free = self.pool_free.get(name)
            if free is None:
                return []
            ratio = self._pool_ratio[name]
            if ratio is None:
                disks = [disk for disk in request.disks if disk.pool == name]
                room = [n for n in room if free[n] != NO_POOL and free[n] >= self.charges(n, disks)[name]]
            else:
                wanted = self.even_charges(request)[name]
                room = [n for n in room if free[n] >= wanted]
        return room

    def has_even_pools(self, request: Request) -> bool:
        """Tell whether every pool a request names has the same ratio on all its hosts, so that its charge is one."""
        return all(self._pool_ratio.get(disk.pool, 1.0) is not None for disk in request.disks)

    def even_charges(self, request: Request) -> dict[str, int]:
        """Return the bytes a request takes from each pool, when `has_even_pools` says they are the same everywhere."""
        total: dict[str, int] = {}
        for disk in request.disks:
            ratio = self._pool_ratio.get(disk.pool) or 0.0
            size = int(disk.size_bytes * ratio) if disk.overlay else disk.size_bytes
            total[disk.pool] = total.get(disk.pool, 0) + size
        return total

    def numa_share(self, request: Request) -> tuple[int, int]:
        """Return the vCPUs and bytes that a request takes from each of its NUMA nodes, rounded up."""
        return numa_share(request.vcpus, request.memory_bytes, request.numa_nodes)

    def numa_choice(self, number: int, request: Request) -> tuple[int, ...] | None:
        """Return the NUMA nodes a request would take on a host, the tightest that fit, or None."""
        vcpus, memory = self.numa_share(request)
        fitting = [
            (free[0], free[1], node)
            for node, free in enumerate(self.numa_free[number])
            if free[0] >= vcpus and free[1] >= memory
        ]
        if len(fitting) < request.numa_nodes:
            return None
        fitting.sort()
        return tuple(node for _vcpus, _memory, node in fitting[: request.numa_nodes])

    def group_allows(self, group: Group, number: int, domain: int) -> bool:
        """Tell whether a group's rule lets one more of its machines onto a host."""
        places = self.members[group.name]
        place = self.place_of(number, group.scope)
        if group.rule == "affinity":
            return not places or place in places
        if group.rule == "domains":
            return not any(each != domain for each in self.domains[group.name].get(place, ()))
        return places.get(place, 0) < group.most

    def claim(self, number: int, request: Request) -> Claim:
        """Take what a request needs from a host. The caller has seen that it fits."""
        claim = self.claim_for(number, request)
        self.take(claim)
        return claim

    def claim_for(self, number: int, request: Request) -> Claim:
        """Return what a request would take from a host on which it fits."""
        return Claim(
            host=number,
            vcpus=request.vcpus,
            memory_bytes=request.memory_bytes,
            pools=tuple(self.charges(number, request.disks).items()) if request.disks else (),
            numa=(self.numa_choice(number, request) or ()) if request.numa_nodes else (),
            groups=request.groups,
            domain=request.domain,
        )

    def claim_of(self, vm: Vm) -> Claim:
        """Return what a machine that stands on a host already takes there."""
        number = self.index[vm.host]
        return Claim(
            host=number,
            vcpus=vm.vcpus,
            memory_bytes=vm.memory_bytes,
            pools=tuple(self.charges(number, vm.disks).items()),
            # Of a host that is not live, the nodes may be unknown.
            numa=vm.numa if self.numa_free[number] else (),
            groups=vm.groups,
            domain=vm.domain,
        )

    def take(self, claim: Claim) -> None:
        """Take exactly what a claim says."""
        self._apply(claim, 1)

    def release(self, claim: Claim) -> None:
        """Give a claim back."""
        self._apply(claim, -1)

    def hold(self, claim: Claim) -> None:
        """Keep a place taken for a machine that is on its way elsewhere. A disk in a shared pool does not move."""
        self._apply(self._held(claim), 1)

    def unhold(self, claim: Claim) -> None:
        """Let go of a place that was held."""
        self._apply(self._held(claim), -1)

    def _held(self, claim: Claim) -> Claim:
        pools = tuple(each for each in claim.pools if claim.host not in self.pool_shared.get(each[0], ()))
        return replace(claim, pools=pools)

    def _apply(self, claim: Claim, sign: int) -> None:
        number = claim.host
        self.vcpus_free[number] -= sign * claim.vcpus
        self.memory_free[number] -= sign * claim.memory_bytes
        for name, size in claim.pools:
            free = self.pool_free.get(name)
            if free is None:
                continue
            sharing = self.pool_shared[name]
            if number in sharing:
                for other in sharing:
                    free[other] -= sign * size
                self.changed.extend(sharing)
            elif free[number] != NO_POOL or self.hosts[number].pools.get(name):
                free[number] -= sign * size
        if claim.numa:
            vcpus, memory = numa_share(claim.vcpus, claim.memory_bytes, len(claim.numa))
            for node in claim.numa:
                free = self.numa_free[number][node]
                free[0] -= sign * vcpus
                free[1] -= sign * memory
        if claim.groups:
            self._count(claim.groups, number, sign, claim.domain)
        self.changed.append(number)
