# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranking the hosts that can take a machine, and finding the best one fast.

Scores of one shape of request stay what they are until a host changes, so they are kept in a heap per shape and only
the hosts that changed since are judged again.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import Policy
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Group, Request
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import SCORERS, Scorer
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.vectors import best_by_numpy, columns_for

REBUILD_SHARE = 8
"""When more than one in so many hosts changed, judging all again is quicker than mending the heap."""


class Ranked(NamedTuple):
    """A host that can take the machine, with its score and what each term contributes to it.

    A tuple, because an explanation makes a thousand of them for each machine.
    """

    number: int
    score: float
    terms: dict[str, float]


@dataclass(slots=True)
class _Shape:
    """The scores of one shape of request: a heap of (-score, host), valid up to a position in the fleet's log."""

    seen: int = 0
    heap: list[tuple[float, int]] | None = None
    score: dict[int, float] = field(default_factory=dict)


def shape_of(request: Request) -> tuple[object, ...]:
    """Return all of a request that matters to where it fits; requests of one shape are interchangeable."""
    return (
        request.vcpus,
        request.memory_bytes,
        request.disks,
        request.zone,
        request.host,
        request.exclude,
        request.tags,
        request.groups,
        request.domain,
        request.numa_nodes,
        request.load,
    )


class Ranking:
    """The hosts in the order in which a policy prefers them for a request."""

    def __init__(
        self, fleet: Fleet, policy: Policy, scorers: Sequence[tuple[str, float, Scorer]] | None = None
    ) -> None:
        self.fleet = fleet
        self.policy = policy
        self._own = scorers is not None
        self._scorers: list[tuple[str, float, Scorer]] = (
            list(scorers) if scorers is not None else [(name, weight, SCORERS[name]) for name, weight in policy.weights]
        )
        self.together: dict[str, list[Request]] = {}
        """The machines of the batch in each group that has to stand together."""
        names = tuple(name for name, _weight in policy.weights)
        self.columns = None if self._own else columns_for(fleet, names)
        self._shapes: dict[tuple[object, ...], _Shape] = {}

    def fitting(self, request: Request) -> list[int]:
        """Return the hosts that can take the machine under the hard rules and the policy's own filters.

        Of a group that must stand together, the first machine only gets hosts where the whole group fits; where none
        does, all that take the machine: a part is better.
        """
        room = self._with_room(request)
        together = self._together(request)
        if len(together) <= 1:
            return room
        return [number for number in room if self._takes_all(number, request, together)] or room

    def takes(self, request: Request, number: int) -> bool:
        """Tell whether a host is among those of `fitting`, quicker than by asking for all of them."""
        if not self.fleet.is_eligible(self.fleet.hosts[number], request):
            return False
        if len(self._together(request)) > 1:
            return number in self.fitting(request)
        return bool(self._with_room(request, [number]))

    def _with_room(self, request: Request, among: list[int] | None = None) -> list[int]:
        """Return those of the hosts, all eligible, that take the machine by itself."""
        fleet = self.fleet
        room = fleet.with_room(request, self._near(request, fleet.eligible(request)) if among is None else among)
        for extra in self.policy.extra:
            room = [number for number in room if extra(fleet, request, number) is None]
        return room

    def _near(self, request: Request, among: list[int]) -> list[int]:
        """Return those of the hosts that stand where the machine's group stands already, if it must stand together."""
        fleet = self.fleet
        for name in request.groups:
            group, places = fleet.groups[name], fleet.members[name]
            if group.rule == "affinity" and group.hard and places:
                near = {number for place in places for number in fleet.hosts_in(group.scope, place)}
                among = [number for number in among if number in near]
        return among

    def _together(self, request: Request) -> list[Request]:
        """Return the machines of the batch that must stand where this one, the first of its group, will."""
        fleet = self.fleet
        for name in request.groups:
            if fleet.groups[name].rule == "affinity" and fleet.groups[name].hard and not fleet.members[name]:
                return self.together.get(name, [])
        return []

    def _takes_all(self, number: int, request: Request, together: list[Request]) -> bool:
        """Tell whether a whole group finds room in a host's place, its first machine on the host itself."""
        fleet = self.fleet
        taken = [fleet.claim(number, request)]
        for other in together:
            if other.id != request.id:
                room = fleet.with_room(other, fleet.eligible(other))
                if not room:
                    break
                taken.append(fleet.claim(room[0], other))
        for claim in reversed(taken):
            fleet.release(claim)
        return len(taken) == len(together)

    def _soft_groups(self, request: Request) -> list[Group]:
        return [group for group in map(self.fleet.groups.__getitem__, request.groups) if not group.hard]

    def contributions(self, request: Request, among: list[int]) -> list[tuple[str, list[float]]]:
        """Return what each term adds to each host's score."""
        terms = [
            (name, [weight * value for value in scorer(self.fleet, request, among)])
            for name, weight, scorer in self._scorers
        ]
        for group in self._soft_groups(request):
            weight = self.policy.soft_weight
            terms.append((f"group:{group.name}", [weight * self._soft(group, request, number) for number in among]))
        return terms

    def _soft(self, group: Group, request: Request, number: int) -> float:
        places = self.fleet.members[group.name]
        have = places.get(self.fleet.place_of(number, group.scope), 0)
        total = sum(places.values())
        if group.rule == "affinity":
            return have / total if total else 1.0
        if group.rule == "domains":
            others = self.fleet.domains[group.name].get(self.fleet.place_of(number, group.scope), {})
            return 1.0 / (1 + sum(count for each, count in others.items() if each != request.domain))
        return 1.0 / (1 + max(0, have - group.most + 1))

    def scores(self, request: Request, among: list[int]) -> list[float]:
        """Return the score of each of the hosts: its terms' contributions, added in their order."""
        if not self._own and len(self._scorers) == 2 and not self._soft_groups(request):
            # The usual case, written out: two terms.
            (_a, weight_a, scorer_a), (_b, weight_b, scorer_b) = self._scorers
            first, second = scorer_a(self.fleet, request, among), scorer_b(self.fleet, request, among)
            return [weight_a * a + weight_b * b for a, b in zip(first, second, strict=True)]
        total = [0.0] * len(among)
        for _name, values in self.contributions(request, among):
            total = [a + b for a, b in zip(total, values, strict=True)]
        return total

    def ranked(self, request: Request) -> list[Ranked]:
        """Return every host that can take the machine, best first; equal scores in the order of names."""
        among = self.fitting(request)
        terms = self.contributions(request, among)
        scores = self.scores(request, among)
        names = [name for name, _values in terms]
        rows = list(zip(*(values for _name, values in terms), strict=True)) or [()] * len(among)
        # Sorting keeps equals in their order, which is that of the names, also when reversed.
        best_first = sorted(range(len(among)), key=scores.__getitem__, reverse=True)
        return [Ranked(among[at], scores[at], dict(zip(names, rows[at], strict=True))) for at in best_first]

    def best(self, request: Request) -> int | None:
        """Return the best host, or None when none fits; with `choose`, a seeded one among the best."""
        if self.policy.among > 1:
            ranked = self.ranked(request)[: self.policy.among]
            # Not for secrets: the same seed and request must always make the same choice.
            return Random(f"{self.policy.seed}:{request.id}").choice(ranked).number if ranked else None  # noqa: S311
        hard_apart = self._apart_groups(request)
        if self._own or self.policy.extra or hard_apart is None:
            return self._best_of_all(request)
        shape = self._shape(request)
        if shape.heap is None:
            # The first of its shape: no heap yet, many shapes are seen only once.
            shape.heap = []
            shape.seen = -1
            if self.columns is None or request.groups or request.numa_nodes or not self.fleet.has_even_pools(request):
                return self._best_of_all(request)
            return best_by_numpy(self.columns, self.policy.weights, request)
        self._mend(shape, request)
        return self._first_allowed(shape, hard_apart, request.domain)

    def _apart_groups(self, request: Request) -> list[Group] | None:
        """Return the groups that only keep machines apart; None when another kind needs a look at all hosts."""
        groups = [self.fleet.groups[name] for name in request.groups]
        return None if any(not group.hard or group.rule == "affinity" for group in groups) else groups

    def _first_allowed(self, shape: _Shape, groups: list[Group], domain: int) -> int | None:
        """Return the best host of a shape's heap that the groups allow; the heap keeps what was skipped."""
        heap = shape.heap
        if heap is None:
            raise LookupError("the ranking was not started")
        skipped = []
        answer = None
        while heap:
            score, number = heap[0]
            if shape.score.get(number) != score:
                heapq.heappop(heap)
            elif all(self.fleet.group_allows(group, number, domain) for group in groups):
                answer = number
                break
            else:
                skipped.append(heapq.heappop(heap))
        for each in skipped:
            heapq.heappush(heap, each)
        return answer

    def _best_of_all(self, request: Request) -> int | None:
        among = self._with_room(request)
        if not among:
            return None
        scores = self.scores(request, among)
        together = self._together(request)
        if len(together) > 1:
            for _score, number in sorted(zip((-score for score in scores), among, strict=True)):
                if self._takes_all(number, request, together):
                    return number
        # The first of equals, which is the first by name.
        return among[scores.index(max(scores))]

    def _shape(self, request: Request) -> _Shape:
        # Groups are looked at one by one, see `_first_allowed`.
        key = shape_of(replace(request, groups=(), domain=0) if request.groups else request)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape()
        return shape

    def _mend(self, shape: _Shape, request: Request) -> None:
        log = self.fleet.changed
        behind = len(log) - shape.seen
        if shape.seen < 0 or behind * REBUILD_SHARE > len(self.fleet.hosts) + REBUILD_SHARE:
            among = self._with_room(replace(request, groups=()) if request.groups else request)
            scores = self.scores(request, among)
            shape.score = {number: -score for number, score in zip(among, scores, strict=True)}
            shape.heap = [(score, number) for number, score in shape.score.items()]
            heapq.heapify(shape.heap)
        elif behind:
            heap = shape.heap
            if heap is None:
                raise LookupError("the ranking was not started")
            touched = set(log[shape.seen :])
            for number in touched:
                shape.score.pop(number, None)
            eligible = self.fleet.eligible(request)
            candidates = sorted(touched if eligible is self.fleet.everyone else touched.intersection(eligible))
            among = self._with_room(replace(request, groups=()) if request.groups else request, candidates)
            for number, score in zip(among, self.scores(request, among), strict=True):
                shape.score[number] = -score
                heapq.heappush(heap, (-score, number))
        shape.seen = len(log)
