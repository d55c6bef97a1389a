# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same scores by numpy, where it is installed: one placement among a thousand hosts in a few dozen microseconds.

Every formula here is the one in `scorers.py`, operation by operation, so that both ways give the same floating-point
numbers and so the same decisions. Without numpy, or for other scorers, `columns_for` gives None.
"""

from __future__ import annotations

import importlib
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request

try:
    numpy: Any = importlib.import_module("numpy")
except ImportError:
    numpy = None

FEWEST_HOSTS = 64
"""With fewer hosts, plain lists are quicker."""


def _spare(free: Any, usable: Any, wanted: int) -> Any:
    return (free - wanted) / usable


class Columns:
    """The fleet's columns as arrays, brought up to date from its log of changes before each use."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._seen = len(fleet.changed)
        # Floats hold these numbers exactly (see `doors.LARGEST`) and are divided faster.
        self.vcpus_free = numpy.array(fleet.vcpus_free, dtype=numpy.float64)
        self.memory_free = numpy.array(fleet.memory_free, dtype=numpy.float64)
        # A host without anything usable never fits; one keeps the division quiet.
        self.vcpus_usable = numpy.maximum(numpy.array(fleet.vcpus_usable, dtype=numpy.float64), 1.0)
        self.memory_usable = numpy.maximum(numpy.array(fleet.memory_usable, dtype=numpy.float64), 1.0)
        self.pools = {name: numpy.array(free, dtype=numpy.int64) for name, free in fleet.pool_free.items()}
        count = len(fleet.hosts)
        self.first = 1.0 - numpy.arange(count) / count
        self._masks: dict[int, tuple[list[int], Any]] = {}

    def refresh(self) -> None:
        """Take over what changed since the last time."""
        fleet = self.fleet
        log = fleet.changed
        if self._seen == len(log):
            return
        for number in set(log[self._seen :]):
            self.vcpus_free[number] = fleet.vcpus_free[number]
            self.memory_free[number] = fleet.memory_free[number]
            for name, free in self.pools.items():
                free[number] = fleet.pool_free[name][number]
        self._seen = len(log)

    def eligible(self, request: Request) -> Any:
        """Return the mask of the eligible hosts, or None when all are."""
        among = self.fleet.eligible(request)
        if among is self.fleet.everyone:
            return None
        known = self._masks.get(id(among))
        # The list is kept beside its mask, so that its id stays its own.
        if known is None:
            mask = numpy.zeros(len(self.fleet.hosts), dtype=bool)
            mask[among] = True
            known = self._masks[id(among)] = (among, mask)
        return known[1]

    def term(self, name: str, request: Request) -> Any:
        """Return the values of one of the scorers in `WRITTEN` for all hosts."""
        if name == "first":
            return self.first
        if name.startswith("vcpus"):
            spare = _spare(self.vcpus_free, self.vcpus_usable, request.vcpus)
            return spare if name == "vcpus_spare" else 1.0 - spare
        if name.startswith("memory"):
            spare = _spare(self.memory_free, self.memory_usable, request.memory_bytes)
            return spare if name == "memory_spare" else 1.0 - spare
        vcpus = _spare(self.vcpus_free, self.vcpus_usable, request.vcpus)
        memory = _spare(self.memory_free, self.memory_usable, request.memory_bytes)
        return numpy.minimum(vcpus, memory) if name == "tightest_spare" else 1.0 - numpy.abs(vcpus - memory)


WRITTEN = frozenset(
    {"first", "vcpus_filled", "memory_filled", "vcpus_spare", "memory_spare", "tightest_spare", "evenness"}
)
"""The scorers that are written here."""


def columns_for(fleet: Fleet, scorers: tuple[str, ...]) -> Columns | None:
    """Return arrays for a fleet, or None where plain lists do: no numpy, few hosts, other scorers."""
    if numpy is None or len(fleet.hosts) < FEWEST_HOSTS or not scorers or not WRITTEN.issuperset(scorers):
        return None
    return Columns(fleet)


def best_by_numpy(columns: Columns, weights: tuple[tuple[str, float], ...], request: Request) -> int | None:
    """Return the best host for a request bound by nothing but room and what `eligible` knows; the first of equals."""
    columns.refresh()
    room = (columns.vcpus_free >= request.vcpus) & (columns.memory_free >= request.memory_bytes)
    eligible = columns.eligible(request)
    if eligible is not None:
        room &= eligible
    for name, wanted in columns.fleet.even_charges(request).items():
        free = columns.pools.get(name)
        if free is None:
            return None
        room &= free >= wanted
    score = None
    for name, weight in weights:
        term = weight * columns.term(name, request)
        score = term if score is None else score + term
    masked = numpy.where(room, score, -numpy.inf)
    best = int(masked.argmax())
    return best if room[best] else None
