# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies: which scorers weigh how much, which filters are added, and in which way a batch is worked off.

A policy is data. The named ones are written here just as a user writes one in YAML: a mapping with a name and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.expressions import Expression
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.filters import (
    ExtraFilter,
    full_filter,
    requirement_filter,
    threshold_filter,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import SCORERS, Scorer, by_rank

DEFAULT_POLICY = "balanced"

ORDERS = ("decreasing", "name", "given")
"""How a batch is sorted before it is placed. Pinned machines go first, except in `given`."""

NAMED: dict[str, dict[str, Any]] = {
    "first_fit": {"version": "1", "order": "name", "scorers": {"first": 1}},
    "round_robin": {"version": "1", "order": "name", "algorithm": "round_robin"},
    "bin_packing": {"version": "1", "order": "decreasing", "scorers": {"vcpus_filled": 1, "memory_filled": 1}},
    "worst_fit": {"version": "1", "order": "decreasing", "scorers": {"vcpus_spare": 1, "memory_spare": 1}},
    "balanced": {"version": "1", "order": "decreasing", "scorers": {"tightest_spare": 2, "evenness": 1}},
    "greedy": {"version": "1", "order": "name", "algorithm": "host_by_host"},
    "matchmaking": {"version": "1", "order": "name", "scorers": {"largest_vcpus": 1, "largest_memory": 1}},
    "densest": {
        "version": "1",
        "order": "decreasing",
        "algorithm": "patterns",
        "scorers": {"vcpus_filled": 1, "memory_filled": 1},
    },
    "load_levels": {
        "version": "1",
        "order": "name",
        "refuse_full": True,
        "scorers": {"worst_level": 4, "load_sum": 1},
    },
}
"""Every named policy, as data."""

SAME_AS: dict[str, str] = {"best_fit": "bin_packing", "spread": "worst_fit"}
"""Other names of the same policies."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that was read. Weights add up to 1, so that a score is from 0 to 1 and its terms add up to it."""

    name: str
    version: str
    algorithm: str
    order: str
    weights: tuple[tuple[str, float], ...]
    rank: Scorer | None
    extra: tuple[ExtraFilter, ...]
    among: int
    seed: str
    soft_weight: float


def read_policy(value: object, path: str = "policy") -> Policy:
    """Read a policy: a name, or a mapping `{name, …options}`. Raises SchemaError naming the field.

    A mapping with a known name changes that policy's options; with a name of its own it must bring `scorers` or an
    `algorithm`.
    """
    if isinstance(value, Policy):
        return value
    if value is None:
        value = DEFAULT_POLICY
    given: Mapping[str, Any] = {"name": value} if isinstance(value, str) else value  # type: ignore[assignment]
    door = Door(given, path)
    name = door.text("name")
    base = NAMED.get(SAME_AS.get(name, name))
    if base is None and not (door.has("scorers") or door.has("algorithm")):
        known = ", ".join(sorted({*NAMED, *SAME_AS}))
        problem = f"there is no policy {name!r}; take one of {known}, or give scorers or an algorithm of your own"
        raise SchemaError(path if isinstance(value, str) else f"{path}.name", problem)
    merged = Door({**(base or {}), **given}, path)
    policy = _read(merged, merged.text("name"))
    merged.done()
    return policy


def _read(door: Door, name: str) -> Policy:
    extra: list[ExtraFilter] = []
    if door.has("threshold"):
        extra.append(threshold_filter(door.number("threshold", most=100.0)))
    if door.truth("refuse_full", False):
        extra.append(full_filter())
    requirement, rank = door.raw("requirement"), door.raw("rank")
    if requirement is not None:
        extra.append(
            requirement_filter(Expression(_text(requirement, door, "requirement"), f"{door.path}.requirement"))
        )
    choose = door.door("choose")
    among = choose.integer("among", 1, least=1)
    seed = choose.raw("seed")
    choose.done()
    return Policy(
        name=name,
        version=door.text_or_none("version") or "custom",
        algorithm=door.text_or_none("algorithm") or "best",
        order=door.choice("order", ORDERS, "decreasing"),
        weights=_weights(door),
        rank=None if rank is None else by_rank(Expression(_text(rank, door, "rank"), f"{door.path}.rank").number),
        extra=tuple(extra),
        among=among,
        seed=str(seed if seed is not None else ""),
        soft_weight=door.number("soft_weight", 1.0, most=1000.0),
    )


def _text(value: object, door: Door, key: str) -> str:
    if not isinstance(value, str):
        raise door.fail(key, f"an expression is wanted, such as 'free_memory >= 8 * GiB', not {value!r}")
    return str(value)


def _weights(door: Door) -> tuple[tuple[str, float], ...]:
    weights: list[tuple[str, float]] = []
    for scorer, weight, path in door.entries("scorers"):
        if scorer not in SCORERS:
            raise SchemaError(path, f"there is no such scorer; the scorers are {', '.join(sorted(SCORERS))}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1e6:
            raise SchemaError(path, f"a weight over 0 and up to 1000000 is wanted, not {weight!r}")
        weights.append((scorer, float(weight)))
    # Sorted, so that floating-point sums do not depend on the order in which the mapping was written.
    weights.sort()
    total = sum(weight for _scorer, weight in weights)
    return tuple((scorer, weight / total) for scorer, weight in weights)
