# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scorers: what speaks for a host, as a number from 0 to 1.

A scorer looks at many hosts at once and judges each by itself, never relative to the others, so that one host's score
stays what it is when another host changes; only `turn` and `rank` depend on more. All judge the host as it would be
with the machine on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request

Scorer = Callable[[Fleet, Request, Sequence[int]], list[float]]


def vcpus_filled(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """Share of the usable vCPUs promised afterwards: fuller is better (bin packing)."""
    free, usable, wanted = fleet.vcpus_free, fleet.vcpus_usable, request.vcpus
    return [1.0 - (free[n] - wanted) / usable[n] for n in among]


def memory_filled(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """Share of the usable memory promised afterwards: fuller is better (bin packing)."""
    free, usable, wanted = fleet.memory_free, fleet.memory_usable, request.memory_bytes
    return [1.0 - (free[n] - wanted) / usable[n] for n in among]


def vcpus_spare(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """Share of the usable vCPUs free afterwards: emptier is better (spreading)."""
    free, usable, wanted = fleet.vcpus_free, fleet.vcpus_usable, request.vcpus
    return [(free[n] - wanted) / usable[n] for n in among]


def memory_spare(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """Share of the usable memory free afterwards: emptier is better (spreading)."""
    free, usable, wanted = fleet.memory_free, fleet.memory_usable, request.memory_bytes
    return [(free[n] - wanted) / usable[n] for n in among]


def first(fleet: Fleet, _request: Request, among: Sequence[int]) -> list[float]:
    """The host's place in the order of names: the first is best (first fit)."""
    count = len(fleet.hosts)
    return [1.0 - n / count for n in among]


def largest_vcpus(fleet: Fleet, _request: Request, among: Sequence[int]) -> list[float]:
    """Free vCPUs before the machine, against the largest host (matchmaking's first key)."""
    scale = max(fleet.vcpus_usable) + 1
    return [max(0, fleet.vcpus_free[n]) / scale for n in among]


def largest_memory(fleet: Fleet, _request: Request, among: Sequence[int]) -> list[float]:
    """Free memory before the machine, as a tie-break: less than what one vCPU makes in `largest_vcpus`."""
    scale = (max(fleet.memory_usable) + 1) * (max(fleet.vcpus_usable) + 1)
    return [max(0, fleet.memory_free[n]) / scale for n in among]


def tightest_spare(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """Free share of whichever of vCPUs and memory is scarcer afterwards: more is better."""
    vcpus, memory = vcpus_spare(fleet, request, among), memory_spare(fleet, request, among)
    return [a if a < b else b for a, b in zip(vcpus, memory, strict=True)]


def evenness(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """How alike the shares of vCPUs and memory are afterwards: a host full in one only strands the other."""
    vcpus, memory = vcpus_spare(fleet, request, among), memory_spare(fleet, request, among)
    return [1.0 - abs(a - b) for a, b in zip(vcpus, memory, strict=True)]


LEVELS = ((30.0, "low"), (70.0, "medium"), (95.0, "high"))
"""S2.9 as meant (C2): up to 30 % low, up to 70 % medium, up to 95 % high, above that full."""
FULL = len(LEVELS)


def level_of(percent: float) -> int:
    """Return the level of a load: 0 low, 1 medium, 2 high, 3 full."""
    return sum(1 for limit, _word in LEVELS if percent > limit)


def level_word(percent: float) -> str:
    """Return the level of a load in a word."""
    level = level_of(percent)
    return LEVELS[level][1] if level < FULL else "full"


def loads(fleet: Fleet, request: Request | None, number: int) -> dict[str, float]:
    """Return a host's loads in percent, with a request added (S2.10): I/O, CPU, memory, disk.

    What was measured counts; where nobody measured, the promised share of CPU, memory and disk does. I/O that nobody
    measured is unknown and left out.
    """
    host = fleet.hosts[number]
    measured = host.load
    answer: dict[str, float] = {}
    more = request.load if request is not None else None
    if measured.io_percent is not None:
        answer["io"] = measured.io_percent + ((more.io_percent if more else None) or 0.0)
    promised = {
        "cpu": (measured.cpu_percent, fleet.vcpus_free[number], fleet.vcpus_usable[number]),
        "memory": (measured.memory_percent, fleet.memory_free[number], fleet.memory_usable[number]),
    }
    added = {
        "cpu": (more.cpu_percent if more else None, request.vcpus if request else 0),
        "memory": (more.memory_percent if more else None, request.memory_bytes if request else 0),
    }
    for name, (percent, free, usable) in promised.items():
        now = percent if percent is not None else 100.0 * (usable - free) / usable if usable else 100.0
        percent_more, amount = added[name]
        if percent_more is None:
            percent_more = 100.0 * amount / usable if usable else 100.0
        answer[name] = now + percent_more
    disk = measured.disk_percent
    charges = fleet.charges(number, request.disks) if request is not None else {}
    pools = list(charges) if request is not None else list(host.pools)
    shares = []
    for name in pools:
        pool = host.pools.get(name)
        if pool is not None and pool.total_bytes:
            used = pool.total_bytes - fleet.pool_free[name][number] + charges.get(name, 0)
            shares.append(100.0 * used / pool.total_bytes)
    if disk is not None or shares:
        answer["disk"] = max([*shares, *([disk] if disk is not None else [])])
    return answer


def worst_level(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """The worst of a host's four levels with the request added: lower is better (S2.10)."""
    return [1.0 - level_of(max(loads(fleet, request, n).values())) / FULL for n in among]


def load_sum(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
    """The mean of a host's loads with the request added: less is better (S2.10, ties by sum)."""
    answer = []
    for n in among:
        values = loads(fleet, request, n).values()
        answer.append(1.0 - min(1.0, sum(values) / (100.0 * len(values))))
    return answer


SCORERS: dict[str, Scorer] = {
    "vcpus_filled": vcpus_filled,
    "memory_filled": memory_filled,
    "vcpus_spare": vcpus_spare,
    "memory_spare": memory_spare,
    "first": first,
    "largest_vcpus": largest_vcpus,
    "largest_memory": largest_memory,
    "tightest_spare": tightest_spare,
    "evenness": evenness,
    "worst_level": worst_level,
    "load_sum": load_sum,
}
"""Every scorer a policy may name."""


def by_rank(value: Callable[[Fleet, Request, int], float]) -> Scorer:
    """Return the scorer of a rank expression: the hosts' places when sorted by it, the largest first."""

    def scorer(fleet: Fleet, request: Request, among: Sequence[int]) -> list[float]:
        values = [value(fleet, request, n) for n in among]
        places = {each: place for place, each in enumerate(sorted(set(values), reverse=True))}
        return [1.0 - places[each] / len(places) for each in values]

    return scorer


def turn(cursor: int) -> Scorer:
    """Return the scorer of round robin: the host after `cursor` is best, the host at `cursor` last."""

    def scorer(fleet: Fleet, _request: Request, among: Sequence[int]) -> list[float]:
        count = len(fleet.hosts)
        return [1.0 - ((n - cursor - 1) % count) / count for n in among]

    return scorer
