# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placing a batch of machines: every algorithm works on a `Batch`, which claims what it places and explains it.

A new algorithm is one registered function: it gets the batch, goes through `batch.requests`, asks `batch.ranking` which
hosts fit, and calls `batch.put(request, host)` or `batch.refuse(request)`.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import SchemaError, natural
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import (
    counted,
    explanation,
    rejected_hosts,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Claim, Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.patterns import pack
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import (
    DEFAULT_POLICY,
    Policy,
    read_policy,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ranking import Ranking, shape_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    ANYTHING,
    SCHEMA_VERSION,
    Request,
    State,
    read_requests,
    read_state,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import Scorer, first, turn

Algorithm = Callable[["Batch"], None]

ALGORITHMS: dict[str, Algorithm] = {}


def algorithm(name: str) -> Callable[[Algorithm], Algorithm]:
    """Register a way of working off a batch under a name that a policy's `algorithm` may give."""

    def register(function: Algorithm) -> Algorithm:
        ALGORITHMS[name] = function
        return function

    return register


def algorithm_of(policy: Policy) -> Algorithm:
    """Return the function that works off a batch under a policy. Raises SchemaError when there is none of that name."""
    work = ALGORITHMS.get(policy.algorithm)
    if work is None:
        problem = f"there is no algorithm {policy.algorithm!r}; the algorithms are {', '.join(sorted(ALGORITHMS))}"
        raise SchemaError("policy.algorithm", problem)
    return work


class Batch:
    """Machines on their way to hosts: the fleet with what was claimed so far, and what became of each request."""

    def __init__(self, state: State, requests: tuple[Request, ...], policy: Policy, *, explain: bool) -> None:
        self.state = state
        self.policy = policy
        self.fleet = Fleet(state)
        self.ranking = Ranking(self.fleet, policy)
        self.take_on(requests)
        if policy.rank is not None:
            self.score_by(("rank", 1.0, policy.rank))
        self.cursor = state.cursor
        self.placed: dict[str, int] = {}
        self.claims: dict[str, Claim] = {}
        self.explanations: dict[str, dict[str, Any]] = {}
        self._explain = explain

    def take_on(self, requests: tuple[Request, ...]) -> None:
        """Make these the machines to place, in the policy's order. What was placed before stands."""
        self.requests = with_companions(ordered(requests, self.policy.order, self.fleet), self.fleet)
        self.ranking.together = {
            name: [request for request in self.requests if name in request.groups]
            for name, group in self.fleet.groups.items()
            if group.rule == "affinity" and group.hard
        }

    def score_by(self, *scorers: tuple[str, float, Scorer]) -> None:
        """Rank by the algorithm's own scorers, (name, weight, scorer), instead of those that the policy names."""
        together = self.ranking.together
        self.ranking = Ranking(self.fleet, self.policy, scorers)
        self.ranking.together = together

    def put(self, request: Request, number: int) -> None:
        """Place a machine on a host that fits: explain, then claim."""
        if self._explain:
            ranked = self.ranking.ranked(request)
            rejected = rejected_hosts(self.fleet, request, self.ranking, {each.number for each in ranked})
            self.explanations[request.id] = explanation(self.fleet, request, ranked, rejected, number)
        self.claims[request.id] = self.fleet.claim(number, request)
        self.placed[request.id] = number

    def refuse(self, request: Request) -> None:
        """Leave a machine unplaced, with every host's reasons. That is never left out: somebody has to act on it."""
        rejected = rejected_hosts(self.fleet, request, self.ranking, set())
        self.explanations[request.id] = explanation(self.fleet, request, [], rejected, None)


def ordered(requests: tuple[Request, ...], order: str, fleet: Fleet) -> list[Request]:
    """Return the requests in the order in which they are placed.

    `name` is by id, `decreasing` by the share of the whole fleet that a request wants, largest first; in both, pinned
    machines go first, because nothing else can give way for them. The order of the input does not matter, except in
    `given`.
    """
    if order == "given":
        return list(requests)
    if order == "name":
        return sorted(requests, key=lambda request: (request.host is None, natural(request.id)))
    vcpus, memory = max(1, sum(fleet.vcpus_usable)), max(1, sum(fleet.memory_usable))

    def size(request: Request) -> float:
        return request.vcpus / vcpus + request.memory_bytes / memory

    return sorted(requests, key=lambda request: (request.host is None, -size(request), natural(request.id)))


def with_companions(requests: list[Request], fleet: Fleet) -> list[Request]:
    """Return the requests with the machines of each group that must stand together right after its first one."""
    together: dict[str, list[Request]] = {}
    for request in requests:
        for name in request.groups:
            if fleet.groups[name].rule == "affinity" and fleet.groups[name].hard:
                together.setdefault(name, []).append(request)
    answer: dict[str, Request] = {}
    for request in requests:
        answer.setdefault(request.id, request)
        for name in request.groups:
            # Once is enough: then all of them are there.
            for other in together.pop(name, ()):
                answer.setdefault(other.id, other)
    return list(answer.values())


@algorithm("best")
def best(batch: Batch) -> None:
    """Give each machine, one after the other, the host with the best score."""
    for request in batch.requests:
        _place_best(batch, request)


@algorithm("round_robin")
def round_robin(batch: Batch) -> None:
    """Give each machine the next host after the last one used (S5.5), at most once around: it always ends."""
    fleet = batch.fleet
    names = [natural(host.name) for host in fleet.hosts]
    # The host may be gone since: then it goes on with the one that came after it.
    at = -1 if batch.cursor is None else bisect.bisect_right(names, natural(batch.cursor)) - 1
    for request in batch.requests:
        batch.score_by(("turn", 1.0, turn(at)))
        number = batch.ranking.best(request)
        if number is None:
            batch.refuse(request)
            continue
        batch.put(request, number)
        at = number
        batch.cursor = fleet.hosts[number].name


@algorithm("host_by_host")
def host_by_host(batch: Batch) -> None:
    """Fill host after host, each with as many of the remaining machines as fit (S5.4)."""
    batch.score_by(("first", 1.0, first))
    remaining = batch.requests
    for number in range(len(batch.fleet.hosts)):
        too_large: set[tuple[object, ...]] = set()
        left = []
        for request in remaining:
            shape = shape_of(request)
            if shape in too_large or not batch.ranking.takes(request, number):
                too_large.add(shape)
                left.append(request)
            else:
                batch.put(request, number)
        remaining = left
        if not remaining:
            break
    # A group that was held back for a host with room for all of it, filled since, may still stand in part; what fits
    # nowhere is refused with the reasons.
    for request in remaining:
        _place_best(batch, request)


@algorithm("patterns")
def patterns(batch: Batch) -> None:
    """Put the whole batch onto the fewest hosts, by patterns of sizes; what anything but room binds goes first."""
    fleet = batch.fleet
    free: dict[tuple[int, int], list[Request]] = {}
    for request in batch.requests:
        bound = request.disks or request.groups or request.numa_nodes or request.host is not None
        if bound or fleet.eligible(request) is not fleet.eligible(ANYTHING):
            _place_best(batch, request)
        else:
            free.setdefault((request.vcpus, request.memory_bytes), []).append(request)
    order = sorted(
        batch.ranking.fitting(ANYTHING),
        key=lambda number: (
            fleet.vcpus_free[number] == fleet.vcpus_usable[number],
            -fleet.vcpus_free[number],
            -fleet.memory_free[number],
            number,
        ),
    )
    rooms = [(number, (fleet.vcpus_free[number], fleet.memory_free[number])) for number in order]
    packing = pack(Counter({size: len(requests) for size, requests in free.items()}), rooms) if free else None
    waiting = {size: list(reversed(requests)) for size, requests in free.items()}
    for number, sizes in sorted(packing.hosts.items()) if packing is not None else ():
        for size, count in sorted(sizes.items()):
            for _machine in range(count):
                batch.put(waiting[size].pop(), number)
    # What the patterns left out may still find room, and if not, is refused with the reasons.
    for requests in waiting.values():
        for request in reversed(requests):
            _place_best(batch, request)


def _place_best(batch: Batch, request: Request) -> None:
    number = batch.ranking.best(request)
    if number is None:
        batch.refuse(request)
    else:
        batch.put(request, number)


def place(
    state: object,
    requests: object,
    policy: object = DEFAULT_POLICY,
    *,
    explain: bool = False,
    all_or_nothing: bool = False,
) -> dict[str, Any]:
    """Decide which host each requested machine goes to. Plain dicts in and out, see `docs/placement.md`.

    Every machine placed is claimed before the next is looked at, so a batch that fits is a real packing. With `explain`
    the placed ones carry the ranked and the refused hosts too; the unplaced always do. With `all_or_nothing`, one
    machine that does not fit leaves all unplaced. Raises SchemaError naming the field that is wrong.
    """
    snapshot = read_state(state)
    wanted = read_requests(requests, snapshot)
    rules = read_policy(policy)
    work = algorithm_of(rules)
    batch = Batch(snapshot, wanted, rules, explain=explain)
    work(batch)
    if all_or_nothing and len(batch.placed) < len(wanted):
        # Before saying no: the policy's way of filling may be what leaves one out.
        tight = Batch(snapshot, wanted, replace(rules, order="decreasing", weights=TIGHT, rank=None), explain=explain)
        for algorithm_name in ("best", "patterns"):
            ALGORITHMS[algorithm_name](tight)
            if len(tight.placed) == len(wanted):
                return _decision(tight, all_or_nothing=True, repacked=True)
            tight = Batch(snapshot, wanted, tight.policy, explain=explain)
    return _decision(batch, all_or_nothing=all_or_nothing)


TIGHT = (("memory_filled", 0.5), ("vcpus_filled", 0.5))
"""The weights of bin packing."""


def _decision(batch: Batch, *, all_or_nothing: bool, repacked: bool = False) -> dict[str, Any]:
    fleet = batch.fleet
    missing = [request for request in batch.requests if request.id not in batch.placed]
    fits = not missing
    kept = fits or not all_or_nothing
    placements = []
    unplaced = []
    for request in sorted(batch.requests, key=lambda each: natural(each.id)):
        number = batch.placed.get(request.id)
        why = batch.explanations.get(request.id)
        if number is None:
            unplaced.append({"request": request.id, "explanation": why})
        elif kept:
            host = fleet.hosts[number].name
            if why is None:
                why = {
                    "chosen": host,
                    "text": f"{request.id} on {host} by {batch.policy.name}",
                    "ranked": [],
                    "rejected": [],
                    "refusals": [],
                }
            numa = batch.claims[request.id].numa
            placements.append({"request": request.id, "host": host, "numa": list(numa), "explanation": why})
        else:
            text = f"{request.id} would fit on {fleet.hosts[number].name}, but the batch is all or nothing"
            why = {**(why or {"ranked": [], "rejected": [], "refusals": []}), "chosen": None, "text": text}
            unplaced.append({"request": request.id, "explanation": why})
    return {
        "schema_version": SCHEMA_VERSION,
        "policy": batch.policy.name,
        "policy_version": batch.policy.version,
        "generation": batch.state.generation,
        "fits": fits,
        "cursor": batch.cursor if kept else batch.state.cursor,
        "placements": placements,
        "unplaced": unplaced,
        "summary": _summary(batch, missing, kept=kept) + (", packed tightly so that all fit" if repacked else ""),
    }


def _summary(batch: Batch, missing: list[Request], *, kept: bool) -> str:
    total = counted(len(batch.requests), "machine")
    hosts = len(set(batch.placed.values()))
    if not missing:
        return f"{total} placed on {counted(hosts, 'host')} by {batch.policy.name}"
    reason = batch.explanations[missing[0].id]["text"]
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if not kept:
        return f"none of {total} placed, all or nothing: {reason}{more}"
    return f"{len(batch.placed)} of {total} placed on {counted(hosts, 'host')} by {batch.policy.name}: {reason}{more}"
