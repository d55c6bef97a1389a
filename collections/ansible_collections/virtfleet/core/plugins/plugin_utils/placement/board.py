# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts that count, as two shares each and their sums: the score after a few moves is a handful of additions."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.score import (
    free_memory_share,
    judged_hosts,
    vcpu_share,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing

Size = tuple[int, int, int, int]
"""Memory in bytes, vCPUs, bytes to move, and the number of what binds the machine (zone, groups, pools, …): machines of
one size are alike in what they change, in price and in where they may go.
"""


def _binding(need: Request) -> tuple[object, ...]:
    return need.zone, need.exclude, need.tags, need.groups, need.disks, need.numa_nodes


class Board:
    """The judged hosts' shares and their sums, so that the score after a few changes is a handful of additions."""

    def __init__(self, standing: Standing, movable: Iterable[int]) -> None:
        self.standing = standing
        self.hosts = judged_hosts(standing)
        self.count = len(self.hosts)
        self.place = {host: at for at, host in enumerate(self.hosts)}
        facts = standing.fleet.hosts
        self.memory_total = [facts[host].memory_total_bytes for host in self.hosts]
        self.vcpus_total = [facts[host].vcpus_total for host in self.hosts]
        self.x = [free_memory_share(standing, host) for host in self.hosts]
        self.y = [vcpu_share(standing, host) for host in self.hosts]
        self.sums = [0.0, 0.0, 0.0, 0.0]
        self._sum()
        self.size: dict[int, Size] = {}
        self.needs: list[Request] = []
        """For each binding, the needs of one machine that has it."""
        bindings: dict[tuple[object, ...], int] = {}
        self.there: list[dict[Size, set[int]]] = [{} for _host in self.hosts]
        for vm in movable:
            at = self.place.get(standing.host_of(vm))
            if at is not None:
                need = standing.needs[vm]
                number = bindings.setdefault(_binding(need), len(bindings))
                if number == len(self.needs):
                    self.needs.append(need)
                size = (need.memory_bytes, need.vcpus, standing.moved_bytes(vm), number)
                self.size[vm] = size
                self.there[at].setdefault(size, set()).add(vm)
        self.sizes = sorted({*self.size.values()})

    def _sum(self) -> None:
        x, y = self.x, self.y
        self.sums = [sum(x), sum(a * a for a in x), sum(y), sum(b * b for b in y)]

    def at(self, vm: int) -> int:
        """Return the place (number among the judged hosts) of the host a machine stands on."""
        return self.place[self.standing.host_of(vm)]

    def score(self) -> float:
        """Return the score now."""
        return self._score_of(*self.sums)

    def _score_of(self, sx: float, sxx: float, sy: float, syy: float) -> float:
        n = self.count or 1
        mean_x, mean_y = sx / n, sy / n
        return sqrt(max(0.0, sxx / n - mean_x * mean_x)) + sqrt(max(0.0, syy / n - mean_y * mean_y))

    def score_if(self, changes: Iterable[tuple[Size, int, int]]) -> float:
        """Return the score if machines of these sizes went from one place to another."""
        change: dict[int, tuple[int, int]] = {}
        for (memory, vcpus, _bytes, _binding), source, target in changes:
            m, c = change.get(source, (0, 0))
            change[source] = (m - memory, c - vcpus)
            m, c = change.get(target, (0, 0))
            change[target] = (m + memory, c + vcpus)
        sx, sxx, sy, syy = self.sums
        for at, (memory, vcpus) in change.items():
            x, y = self.x[at], self.y[at]
            dx, dy = -memory / self.memory_total[at], vcpus / self.vcpus_total[at]
            sx += dx
            sxx += dx * (2.0 * x + dx)
            sy += dy
            syy += dy * (2.0 * y + dy)
        return self._score_of(sx, sxx, sy, syy)

    def open_to(self, size: Size) -> set[int] | None:
        """Return the places that what binds machines of a size leaves open; None when nothing but room binds them."""
        need, fleet = self.needs[size[3]], self.standing.fleet
        among = fleet.eligible(need)
        if among is fleet.everyone and not (need.groups or need.disks or need.numa_nodes):
            return None
        return {self.place[host] for host in fleet.with_room(need, among) if host in self.place}

    def move(self, vm: int, target: int) -> None:
        """Move a machine to the host at a place."""
        source = self.at(vm)
        size = self.size[vm]
        self.there[source][size].discard(vm)
        self.there[target].setdefault(size, set()).add(vm)
        self.standing.move(vm, self.hosts[target])
        for at in (source, target):
            self.x[at] = free_memory_share(self.standing, self.hosts[at])
            self.y[at] = vcpu_share(self.standing, self.hosts[at])
        self._sum()

    def slopes(self) -> tuple[float, float, list[float], list[float]]:
        """Return each deviation's slope, and the hosts' distances from both means."""
        n = self.count
        sx, sxx, sy, syy = self.sums
        mean_x, mean_y = sx / n, sy / n
        deviation_x = sqrt(max(0.0, sxx / n - mean_x * mean_x))
        deviation_y = sqrt(max(0.0, syy / n - mean_y * mean_y))
        slope_x = 1.0 / (2.0 * n * max(deviation_x, 1e-6))
        slope_y = 1.0 / (2.0 * n * max(deviation_y, 1e-6))
        return slope_x, slope_y, [x - mean_x for x in self.x], [y - mean_y for y in self.y]
