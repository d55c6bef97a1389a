# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
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
    """Free memory before the machine, against the largest host (matchmaking's second key)."""
    scale = max(fleet.memory_usable) + 1
    return [max(0, fleet.memory_free[n]) / scale for n in among]


SCORERS: dict[str, Scorer] = {
    "vcpus_filled": vcpus_filled,
    "memory_filled": memory_filled,
    "vcpus_spare": vcpus_spare,
    "memory_spare": memory_spare,
    "first": first,
    "largest_vcpus": largest_vcpus,
    "largest_memory": largest_memory,
}
"""Every scorer a policy may name."""


def turn(cursor: int) -> Scorer:
    """Return the scorer of round robin: the host after `cursor` is best, the host at `cursor` last."""

    def scorer(fleet: Fleet, _request: Request, among: Sequence[int]) -> list[float]:
        count = len(fleet.hosts)
        return [1.0 - ((n - cursor - 1) % count) / count for n in among]

    return scorer
