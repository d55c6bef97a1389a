# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""N+1: whether the machines of any one host would find room on the others if it failed."""

from __future__ import annotations

import heapq

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Claim
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import ANYTHING
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing


def _largest_first(standing: Standing, lost: int) -> list[int]:
    vms = standing.vms
    return sorted(standing.on[lost], key=lambda vm: (-vms[vm].memory_bytes, -vms[vm].vcpus, vm))


def survives(standing: Standing, lost: int) -> bool:
    """Tell whether every machine of a host has a place on the others: a real packing, largest machine first.

    First by giving each machine the host with the most free memory, which nearly always answers; where rules or disks
    bind, or that fails, by looking for the tightest host that fits.
    """
    order = _largest_first(standing, lost)
    return not order or _by_emptiest(standing, lost, order) or _by_tightest(standing, lost, order)


def is_free(standing: Standing, vm: int) -> bool:
    """Tell whether only vCPUs and memory decide where a machine can stand."""
    need = standing.needs[vm]
    bound = need.disks or need.groups or need.numa_nodes
    return not bound and standing.fleet.eligible(need) is standing.fleet.eligible(ANYTHING)


def _by_emptiest(standing: Standing, lost: int, order: list[int]) -> bool:
    """Try the quick way. A host outside the emptiest n + 1 is never reached by n machines."""
    fleet, needs = standing.fleet, standing.needs
    if not all(is_free(standing, vm) for vm in order):
        return False
    most = heapq.nlargest(len(order) + 1, fleet.eligible(ANYTHING), key=fleet.memory_free.__getitem__)
    heap = [(-fleet.memory_free[host], -fleet.vcpus_free[host], host) for host in most if host != lost]
    heapq.heapify(heap)
    for vm in order:
        if not heap:
            return False
        memory, vcpus, host = heap[0]
        need = needs[vm]
        if -memory < need.memory_bytes or -vcpus < need.vcpus:
            return False
        heapq.heapreplace(heap, (memory + need.memory_bytes, vcpus + need.vcpus, host))
    return True


def _by_tightest(standing: Standing, lost: int, order: list[int]) -> bool:
    """Try in earnest, on the fleet itself: machines leave the lost host and take room elsewhere, then all goes back."""
    fleet = standing.fleet
    left = [standing.claims[vm] for vm in order]
    for claim in left:
        fleet.release(claim)
    taken: list[Claim] = []
    try:
        for vm in order:
            need = standing.needs[vm]
            among = [host for host in fleet.eligible(need) if host != lost]
            room = fleet.with_room(need, among)
            if not room:
                return False
            taken.append(fleet.claim(min(room, key=lambda host: (fleet.memory_free[host], host)), need))
        return True
    finally:
        for claim in reversed(taken):
            fleet.release(claim)
        for claim in left:
            fleet.take(claim)


def not_surviving(standing: Standing) -> list[int]:
    """Return the hosts whose loss would leave a machine without a place; empty means N+1 holds."""
    return [host for host in standing.fleet.everyone if standing.usable[host] and not survives(standing, host)]


class Watch:
    """Whether N+1 holds while machines move, mostly by a count: if the others have as many slots of a host's largest
    machine as it has machines, it survives. Only where the count says no is a packing tried.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.free_only = all(is_free(standing, vm) for vm in range(len(standing.vms)))
        self._slots: dict[tuple[int, int], list[int]] = {}
        self._sum: dict[tuple[int, int], int] = {}
        self._largest: list[tuple[int, int]] = [self._largest_of(host) for host in standing.fleet.everyone]

    def _largest_of(self, host: int) -> tuple[int, int]:
        vms = self.standing.vms
        on = self.standing.on[host]
        return max((vms[vm].memory_bytes for vm in on), default=0), max((vms[vm].vcpus for vm in on), default=0)

    def _slots_at(self, shape: tuple[int, int], host: int) -> int:
        memory, vcpus = shape
        fleet = self.standing.fleet
        if not self.standing.usable[host]:
            return 0
        by_memory = fleet.memory_free[host] // memory if memory else len(self.standing.vms)
        by_vcpus = fleet.vcpus_free[host] // vcpus if vcpus else len(self.standing.vms)
        return max(0, min(by_memory, by_vcpus))

    def moved(self, *hosts: int) -> None:
        """Take note that machines came to or left these hosts."""
        for host in hosts:
            self._largest[host] = self._largest_of(host)
            for shape, slots in self._slots.items():
                now = self._slots_at(shape, host)
                self._sum[shape] += now - slots[host]
                slots[host] = now

    def _survives(self, host: int) -> bool:
        shape = self._largest[host]
        if shape == (0, 0):
            return True
        if self.free_only:
            slots = self._slots.get(shape)
            if slots is None:
                slots = self._slots[shape] = [self._slots_at(shape, each) for each in self.standing.fleet.everyone]
                self._sum[shape] = sum(slots)
            if self._sum[shape] - slots[host] >= len(self.standing.on[host]):
                return True
        return survives(self.standing, host)

    def holds(self) -> bool:
        """Tell whether N+1 holds now."""
        usable = self.standing.usable
        return all(self._survives(host) for host in self.standing.fleet.everyone if usable[host])
