# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing many machines of few sizes onto the fewest hosts, by patterns: which sizes fill one host best together.

Sequential value correction (G. Belov, G. Scheithauer, "Setup and open-stacks minimization in one-dimensional stock
cutting", 2007): host after host gets the pattern of the highest value; sizes that ended up in badly filled hosts gain
value, so that the next try combines them earlier. Two dimensions here: vCPUs and memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

Size = tuple[int, int]
"""vCPUs and bytes of memory."""

TRIES = 16
"""How often the whole batch is packed, the values corrected by what came before; fewer where no better can be."""
CORRECTION = 0.3
"""How much of a size's value is renewed by each host it is used on."""
NODES = 3000
"""How many partial patterns are looked at for one host: the best are found early."""
MINOR = 0.05
"""What the less scarce dimension counts beside the scarcer one."""


@dataclass(slots=True)
class Packing:
    """Where sizes go: for each host number the sizes it gets; and what found no room."""

    hosts: dict[int, Counter[Size]]
    left: Counter[Size]

    @property
    def badness(self) -> tuple[int, int]:
        """What is left out, then how many hosts get something."""
        return sum(self.left.values()), len(self.hosts)


class _Search:
    """The most valuable pattern for one host: depth first, the densest sizes first, cut off by a bound."""

    def __init__(self, room: Size, wanted: Counter[Size], value: dict[Size, float]) -> None:
        sizes = [size for size in value if wanted[size] and size[0] <= room[0] and size[1] <= room[1]]
        sizes.sort(key=lambda size: (-value[size] / max(1, size[0]), size))
        self.sizes = sizes
        self.most = [wanted[size] for size in sizes]
        self.value = [value[size] for size in sizes]
        # The most that a vCPU and a byte could still bring from here on.
        self.per_vcpu = [0.0] * (len(sizes) + 1)
        self.per_byte = [0.0] * (len(sizes) + 1)
        for at in range(len(sizes) - 1, -1, -1):
            self.per_vcpu[at] = max(self.per_vcpu[at + 1], self.value[at] / max(1, sizes[at][0]))
            self.per_byte[at] = max(self.per_byte[at + 1], self.value[at] / max(1, sizes[at][1]))
        self.best_value = 0.0
        self.best: list[int] = []
        self._now = [0] * len(sizes)
        self._nodes = 0
        self._deeper(0, room[0], room[1], 0.0)

    def _deeper(self, at: int, vcpus: int, memory: int, value: float) -> None:
        self._nodes += 1
        if value > self.best_value + 1e-12:
            self.best_value, self.best = value, self._now[:]
        if at == len(self.sizes) or self._nodes > NODES:
            return
        if value + min(vcpus * self.per_vcpu[at], memory * self.per_byte[at]) <= self.best_value + 1e-12:
            return
        need_vcpus, need_memory = self.sizes[at]
        most = min(self.most[at], vcpus // max(1, need_vcpus), memory // max(1, need_memory))
        for count in range(most, -1, -1):
            self._now[at] = count
            self._deeper(
                at + 1, vcpus - count * need_vcpus, memory - count * need_memory, value + count * self.value[at]
            )
        self._now[at] = 0

    def pattern(self) -> dict[Size, int]:
        """Return how many of each size."""
        return {size: count for size, count in zip(self.sizes, self.best, strict=True) if count} if self.best else {}


def pack(wanted: Counter[Size], rooms: list[tuple[int, Size]]) -> Packing:
    """Return the best packing found of sizes onto hosts, given as (number, room) in the order they are to be used."""
    vcpus = sum(size[0] * count for size, count in wanted.items())
    memory = sum(size[1] * count for size, count in wanted.items())
    scale = (
        max((room[0] for _host, room in rooms), default=1) or 1,
        max((room[1] for _h, room in rooms), default=1) or 1,
    )
    weights = (1.0, MINOR) if vcpus / scale[0] >= memory / scale[1] else (MINOR, 1.0)
    plain = {size: weights[0] * size[0] / scale[0] + weights[1] * size[1] / scale[1] for size in sorted(wanted)}
    value = dict(plain)
    # The roomiest hosts alone, filled to the last byte: nothing packs onto fewer.
    least = max(_fewest(vcpus, [room[0] for _host, room in rooms]), _fewest(memory, [room[1] for _host, room in rooms]))
    best = _one_try(wanted, rooms, plain, value, weights[0] + weights[1])
    for _try in range(TRIES - 1):
        if best.badness <= (0, least):
            break
        packing = _one_try(wanted, rooms, plain, value, weights[0] + weights[1])
        best = min(best, packing, key=lambda each: each.badness)
    return best


def _fewest(wanted: int, rooms: list[int]) -> int:
    """Return how many of the largest rooms add up to what is wanted."""
    count = 0
    for room in sorted(rooms, reverse=True):
        if wanted <= 0:
            break
        wanted -= room
        count += 1
    return count


def _one_try(
    wanted: Counter[Size],
    rooms: list[tuple[int, Size]],
    plain: dict[Size, float],
    value: dict[Size, float],
    full: float,
) -> Packing:
    """Fill host after host, and correct the values by how well each was filled."""
    left = Counter(wanted)
    hosts: dict[int, Counter[Size]] = {}
    at = 0
    while at < len(rooms) and left.total():
        room = rooms[at][1]
        alike = at
        while alike < len(rooms) and rooms[alike][1] == room:
            alike += 1
        pattern = _Search(room, left, value).pattern()
        if not pattern:
            at = alike
            continue
        times = min(left[size] // count for size, count in pattern.items())
        # Not all at once: the last ones of a size combine better when values have been corrected.
        times = max(1, times // 2) if times > 3 else times
        times = min(times, alike - at)
        for host, _room in rooms[at : at + times]:
            hosts[host] = Counter(pattern)
        at += times
        for size, count in pattern.items():
            left[size] -= count * times
        filled = sum(plain[size] * count for size, count in pattern.items()) / full
        for size in pattern:
            value[size] = (1 - CORRECTION) * value[size] + CORRECTION * plain[size] / max(0.05, filled)
    return Packing(hosts, +left)
