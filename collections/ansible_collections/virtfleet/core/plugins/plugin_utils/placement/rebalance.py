# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebalancing: the fewest and lightest moves that make a fleet even enough.

Steepest descent over moves, and over swaps where no move helps, on the score of `score.py`; then an exchange pass that
drops needless moves and replaces heavy ones by lighter ones; then the order. Both deviations fall apart into one term a
host when taken linearly, so the best target of a machine does not depend on where it comes from: each step looks at
machines' sizes times hosts, not at machines times hosts, and judges the few best pairs exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step, in_batches
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plans import plan_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.rules import broken_rules
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request, State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.score import (
    free_memory_share,
    judged_hosts,
    vcpu_share,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import GIB, Standing

WORTHWHILE = 1e-5
"""What an exchange that is no lighter must gain."""
NOISE = 1e-9
"""Smaller differences of scores are rounding."""
TAKEN = 3
"""How many of the best sources and targets of each size are paired."""
JUDGED = 12
"""How many of the best pairs are judged exactly."""
EXCHANGE_ROUNDS = 8
EXCHANGE_PAIRS = 20_000
"""How many pairs of moved machines are compared in a round; with more machines, each with fewer others."""
SWAP_HOSTS = 6
"""How many of the most uneven hosts are looked at for swaps."""
FEW_HOSTS = 12
"""With so few hosts, swaps compete with moves at every step; with more, only where no move helps."""


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """What a rebalance may cost. The score's unit is the sum of both deviations.

    `enough`: at a lower score, only moves that gain at least `min_gain` are worth it. Above it, any move that gains
    more than its price. `per_gib`: the price of moving a GiB, `per_move`: that of a move, both divided by the number of
    hosts, because what one move can change of the score is so too. `cooldown_seconds`: machines moved less long ago
    stay. `per_host`: moves of one batch that a host may take part in.
    """

    name: str = "balance"
    enough: float = 0.1
    min_gain: float = 0.01
    per_gib: float = 0.004
    per_move: float = 0.008
    max_moves: int = 100_000
    cooldown_seconds: float = 0.0
    per_host: int = 2
    keep_n_plus_one: bool = True


def read_balance_policy(value: object) -> BalancePolicy:
    """Read a policy for `rebalance`: None, or a mapping of options. Raises SchemaError."""
    if isinstance(value, BalancePolicy):
        return value
    plain = BalancePolicy()
    door = Door({} if value is None else value, "policy")
    policy = BalancePolicy(
        name=door.text_or_none("name") or plain.name,
        enough=door.number("enough", plain.enough),
        min_gain=door.number("min_gain", plain.min_gain, least=1e-6),
        per_gib=door.number("per_gib", plain.per_gib),
        per_move=door.number("per_move", plain.per_move, least=1e-6),
        max_moves=door.integer("max_moves", plain.max_moves),
        cooldown_seconds=door.number("cooldown_seconds", plain.cooldown_seconds, most=1e12),
        per_host=door.integer("per_host", plain.per_host, least=1),
        keep_n_plus_one=door.truth("keep_n_plus_one", plain.keep_n_plus_one),
    )
    door.done()
    return policy


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


class Balancer:
    """One search: `run` moves machines on the board and keeps the list of what it did."""

    def __init__(self, state: State, policy: BalancePolicy, *, watched: bool) -> None:
        self.policy = policy
        self.standing = Standing(state)
        self.movable = [
            vm
            for vm in range(len(state.vms))
            if self.standing.is_movable(vm) and not self._is_cooling(state.vms[vm].moved_seconds_ago)
        ]
        self.board = Board(self.standing, self.movable)
        self.home = {vm: self.standing.host_of(vm) for vm in self.movable}
        self.steps: list[Step] = []
        self.best_gain = 0.0
        self.barred_gain = 0.0
        """What the best move would gain that a rule or N+1 forbids."""
        self._targets: dict[Size, list[int]] = {}
        self.watch = Watch(self.standing) if watched else None

    def _is_cooling(self, seconds_ago: float | None) -> bool:
        return seconds_ago is not None and seconds_ago < self.policy.cooldown_seconds

    def price(self, size: Size) -> float:
        """Return what moving a machine of a size costs, in units of the score."""
        return (self.policy.per_gib * size[2] / GIB + self.policy.per_move) / max(1, self.board.count)

    def run(self) -> None:
        """Move, and swap where no move helps, until nothing is worth its price."""
        if self.board.count < 2:
            return
        self._mend_rules()
        banned: set[tuple[int, int]] = set()
        while len(self.steps) < self.policy.max_moves:
            found = self._best_move(banned)
            swap = None
            if (found is None or self.board.count <= FEW_HOSTS) and len(self.steps) + 2 <= self.policy.max_moves:
                swap = self._best_swap(0.0 if found is None else self._net(*found))
            if swap is not None:
                for vm, target in swap:
                    self._go(vm, target)
            elif found is None:
                return
            elif not self._try(*found):
                banned.add(found)

    def _mend_rules(self) -> None:
        """Move machines that break a hard rule where they stand, each to the host that is best for the score."""
        board = self.board
        tried: set[int] = set()
        while len(self.steps) < self.policy.max_moves:
            surplus = [vm for each in broken_rules(self.standing) for vm in each.vms]
            vm = next((vm for vm in surplus if vm in board.size and vm not in tried), None)
            if vm is None:
                return
            tried.add(vm)
            at, size = board.at(vm), board.size[vm]
            found = sorted((board.score_if([(size, at, target)]), target) for target in range(board.count))
            for _score, target in found:
                if target != at and self.standing.fits(vm, board.hosts[target]) and self._try(vm, target):
                    break

    def _try(self, vm: int, target: int) -> bool:
        """Make a move unless it ends N+1."""
        source = self.board.at(vm)
        self._go(vm, target)
        if self.watch is None or self.watch.holds():
            return True
        self.board.move(vm, source)
        self.steps.pop()
        self.watch.moved(self.board.hosts[source], self.board.hosts[target])
        return False

    def _go(self, vm: int, target: int) -> None:
        source = self.standing.host_of(vm)
        self.board.move(vm, target)
        self.steps.append((vm, self.board.hosts[target]))
        if self.watch is not None:
            self.watch.moved(source, self.board.hosts[target])

    def _worth(self, gain: float, price: float, score: float) -> bool:
        needed = self.policy.min_gain if score <= self.policy.enough else price
        return gain > needed + NOISE

    def _parts(self) -> tuple[float, float, list[float], list[float]]:
        """Return each deviation's slope, and the hosts' distances from both means."""
        board, n = self.board, self.board.count
        sx, sxx, sy, syy = board.sums
        mean_x, mean_y = sx / n, sy / n
        deviation_x = sqrt(max(0.0, sxx / n - mean_x * mean_x))
        deviation_y = sqrt(max(0.0, syy / n - mean_y * mean_y))
        slope_x = 1.0 / (2.0 * n * max(deviation_x, 1e-6))
        slope_y = 1.0 / (2.0 * n * max(deviation_y, 1e-6))
        return slope_x, slope_y, [x - mean_x for x in board.x], [y - mean_y for y in board.y]

    def _best_move(self, banned: set[tuple[int, int]]) -> Step | None:
        """Return the machine and the place with the most gain over price, or None when nothing is worth it."""
        board = self.board
        wx, wy, dx, dy = self._parts()
        fleet = self.standing.fleet
        memory_free = [fleet.memory_free[host] for host in board.hosts]
        vcpus_free = [fleet.vcpus_free[host] for host in board.hosts]
        rows = list(zip(range(board.count), dx, dy, board.memory_total, board.vcpus_total, strict=True))
        pairs = []
        for size in board.sizes:
            memory, vcpus, _bytes, _binds = size
            sources = []
            for at, x, y, m_total, c_total in rows:
                if board.there[at].get(size):
                    a, b = memory / m_total, vcpus / c_total
                    sources.append((wx * a * (2.0 * x + a) + wy * b * (b - 2.0 * y), at))
            if not sources:
                continue
            targets = []
            allowed = board.open_to(size)
            for (at, x, y, m_total, c_total), m_free, c_free in zip(rows, memory_free, vcpus_free, strict=True):
                if m_free >= memory and c_free >= vcpus and (allowed is None or at in allowed):
                    a, b = memory / m_total, vcpus / c_total
                    targets.append((wx * a * (a - 2.0 * x) + wy * b * (b + 2.0 * y), at))
            sources.sort()
            targets.sort()
            price = self.price(size)
            for loss, source in sources[:TAKEN]:
                for more, target in targets[:TAKEN]:
                    if source != target:
                        pairs.append((loss + more + price, size, source, target))
        pairs.sort()
        return self._judge(pairs, banned)

    def _judge(self, pairs: list[tuple[float, Size, int, int]], banned: set[tuple[int, int]]) -> Step | None:
        board = self.board
        score = board.score()
        exact = []
        for _estimate, size, source, target in pairs[:JUDGED]:
            gain = score - board.score_if([(size, source, target)])
            exact.append((-(gain - self.price(size)), gain, size, source, target))
        exact.sort()
        self.best_gain = self.barred_gain = 0.0
        for _net, gain, size, source, target in exact:
            possible = next(
                (
                    vm
                    for vm in sorted(board.there[source][size])
                    if (vm, target) not in banned and self.standing.fits(vm, board.hosts[target])
                ),
                None,
            )
            if possible is None:
                self.barred_gain = max(self.barred_gain, gain)
            elif self._worth(gain, self.price(size), score):
                return possible, target
            else:
                self.best_gain = max(self.best_gain, gain)
        return None

    def _net(self, vm: int, target: int) -> float:
        size = self.board.size[vm]
        return self.board.score() - self.board.score_if([(size, self.board.at(vm), target)]) - self.price(size)

    def _best_swap(self, least: float) -> list[Step] | None:
        """Return two moves that exchange machines of the most uneven hosts and others, when that is worth both.

        `least` is what the best single move brings: a swap must bring more.
        """
        board = self.board
        score = board.score()
        if score <= self.policy.enough:
            return None
        wx, wy, dx, dy = self._parts()
        uneven = sorted(range(board.count), key=lambda at: (-(wx * dx[at] * dx[at] + wy * dy[at] * dy[at]), at))
        found = []
        for one in uneven[:SWAP_HOSTS]:
            for other in range(board.count):
                if other == one:
                    continue
                for mine in board.there[one]:
                    for theirs in board.there[other]:
                        if mine[:2] != theirs[:2] and board.there[one][mine] and board.there[other][theirs]:
                            after = board.score_if([(mine, one, other), (theirs, other, one)])
                            net = score - after - self.price(mine) - self.price(theirs)
                            if net > least + NOISE:
                                found.append((-net, mine, theirs, one, other))
        for _net, mine, theirs, one, other in sorted(found)[:JUDGED]:
            a, b = min(board.there[one][mine]), min(board.there[other][theirs])
            steps = self._swap_steps(a, b, one, other)
            if steps is not None:
                return steps
        return None

    def _swap_steps(self, a: int, b: int, one: int, other: int) -> list[Step] | None:
        """Return the swap's moves in an order that has room, or None."""
        standing, hosts = self.standing, self.board.hosts
        for first, to, second, back in ((a, other, b, one), (b, one, a, other)):
            if not standing.fits(first, hosts[to]):
                continue
            old = standing.claims[first]
            standing.move(first, hosts[to])
            fits = standing.fits(second, hosts[back])
            holds = True
            if fits and self.watch is not None:
                self.watch.moved(hosts[one], hosts[other])
                holds = self.watch.holds()
                if holds:
                    other_old = standing.claims[second]
                    standing.move(second, hosts[back])
                    self.watch.moved(hosts[one], hosts[other])
                    holds = self.watch.holds()
                    standing.move_back(second, other_old)
            standing.move_back(first, old)
            if self.watch is not None:
                self.watch.moved(hosts[one], hosts[other])
            if fits and holds:
                return [(first, to), (second, back)]
        return None

    def goal(self) -> dict[int, int]:
        """Return where each machine that moved stands now."""
        return {vm: self.standing.host_of(vm) for vm, home in self.home.items() if self.standing.host_of(vm) != home}

    def exchange(self) -> None:
        """Look for lighter ways to the same: a machine less, another machine, another target. Only below `enough`.

        What counts is GiB and moves as long as the score stays below `enough`; the price of a move is taken as that
        of 8 GiB, since a live migration has a fixed part too.
        """
        board, policy = self.board, self.policy
        limit = min(policy.enough, max(board.score(), policy.enough * 0.999))
        if not self.goal() or board.score() > policy.enough:
            return
        for _round in range(EXCHANGE_ROUNDS):
            if not self._exchange_round(limit):
                return

    def weight(self, vm: int) -> float:
        """Return what a move of a machine weighs in an exchange, in GiB."""
        return self.board.size[vm][2] / GIB + 8.0

    def _exchange_round(self, limit: float) -> bool:
        better = False
        sources = self._lighter_sources()
        for vm in sorted(self.goal(), key=lambda each: (-self.weight(each), each)):
            if self.standing.host_of(vm) == self.home[vm]:
                continue
            if self._send_home(vm, limit) or self._replace(vm, limit, sources):
                sources = self._lighter_sources()
                better = True
        return self._retarget() or better

    def _lighter_sources(self) -> dict[Size, list[int]]:
        """Return, for each size, the places that gain most by giving up such a machine that has not moved yet."""
        board = self.board
        wx, wy, dx, dy = self._parts()
        best: dict[Size, list[int]] = {}
        for size in board.sizes:
            memory, vcpus, _bytes, _binds = size
            found = []
            for at in range(board.count):
                if board.there[at].get(size):
                    a, b = memory / board.memory_total[at], vcpus / board.vcpus_total[at]
                    found.append((wx * a * (2.0 * dx[at] + a) + wy * b * (b - 2.0 * dy[at]), at))
            found.sort()
            best[size] = [at for _loss, at in found[:TAKEN]]
        return best

    def _send_home(self, vm: int, limit: float) -> bool:
        board = self.board
        home = board.place[self.home[vm]]
        if board.score_if([(board.size[vm], board.at(vm), home)]) > limit:
            return False
        if not self.standing.fits(vm, self.home[vm]):
            return False
        board.move(vm, home)
        return True

    def _replace(self, vm: int, limit: float, sources: dict[Size, list[int]]) -> bool:
        """Send a machine home and a lighter one in its stead, when the score allows."""
        board, standing = self.board, self.standing
        size, at, home = board.size[vm], board.at(vm), board.place[self.home[vm]]
        now = board.score()
        best: tuple[float, float, Size, int] | None = None
        for other in board.sizes:
            if other[2] > size[2]:
                continue
            for source in sources[other]:
                if source == at:
                    continue
                score = board.score_if([(size, at, home), (other, source, at)])
                # As heavy a machine must pay by a lower score, which lets another exchange happen.
                allowed = limit if other[2] < size[2] else now - WORTHWHILE
                if score <= allowed and (best is None or (other[2], score) < (best[0], best[1])):
                    best = (other[2], score, other, source)
        if best is None:
            return False
        _bytes, _score, other, source = best
        candidates = [each for each in sorted(board.there[source][other]) if standing.host_of(each) == self.home[each]]
        if not candidates or not standing.fits(vm, board.hosts[home]):
            return False
        board.move(vm, home)
        if standing.fits(candidates[0], board.hosts[at]):
            board.move(candidates[0], at)
            return True
        board.move(vm, at)
        return False

    def _aim_anew(self, vm: int) -> bool:
        """Send a moved machine to another host than before where that lowers the score: it costs nothing."""
        board = self.board
        size, at, home = board.size[vm], board.at(vm), self.home[vm]
        score = board.score()
        found = sorted(
            (after, target)
            for target in self._likely_targets(size)
            if target != at
            and board.hosts[target] != home
            and (after := board.score_if([(size, at, target)])) < score - WORTHWHILE
        )
        for _after, target in found:
            if self.standing.fits(vm, board.hosts[target]):
                board.move(vm, target)
                return True
        return False

    def _likely_targets(self, size: Size) -> list[int]:
        """Return the places to which a machine of a size would best go, by the linear estimate."""
        board = self.board
        if board.count <= FEW_HOSTS:
            return list(range(board.count))
        known = self._targets.get(size)
        if known is None:
            wx, wy, dx, dy = self._parts()
            memory, vcpus = size[0], size[1]
            found = []
            for at in range(board.count):
                a, b = memory / board.memory_total[at], vcpus / board.vcpus_total[at]
                found.append((wx * a * (a - 2.0 * dx[at]) + wy * b * (b + 2.0 * dy[at]), at))
            known = self._targets[size] = [at for _more, at in sorted(found)[:FEW_HOSTS]]
        return known

    def _retarget(self) -> bool:
        """Exchange the targets of moved machines where that lowers the score: it costs nothing."""
        board = self.board
        better = False
        self._targets.clear()
        moved = sorted(self.goal())
        for place, vm in enumerate(moved):
            better = self._aim_anew(vm) or better
            score = board.score()
            best: tuple[float, int] | None = None
            for other in moved[place + 1 : place + 1 + EXCHANGE_PAIRS // len(moved)]:
                a, b = board.at(vm), board.at(other)
                if a == b or board.size[vm] == board.size[other]:
                    continue
                if board.hosts[b] == self.home[vm] or board.hosts[a] == self.home[other]:
                    continue
                after = board.score_if([(board.size[vm], a, b), (board.size[other], b, a)])
                if after < score - WORTHWHILE and (best is None or after < best[0]):
                    best = (after, other)
            if best is None:
                continue
            other = best[1]
            steps = self._swap_steps(vm, other, board.at(vm), board.at(other))
            if steps is not None:
                for each, target in steps:
                    board.move(each, target)
                better = True
        return better


def _search(state: State, policy: BalancePolicy, *, watched: bool) -> tuple[Balancer, list[list[Step]]]:
    """Search, and find an order. The exchanged plan is dropped when it has none; the plain one always has."""
    plain = Balancer(state, policy, watched=watched)
    plain.run()
    refined = Balancer(state, policy, watched=False)
    for vm, host in plain.goal().items():
        refined.board.move(vm, refined.board.place[host])
    refined.exchange()
    steps = len(refined.goal())
    refined.run()
    stable = not refined.steps
    refined.steps = []
    if stable and steps <= len(plain.goal()):
        keep = watched
        batches = in_batches(Standing(state), refined.goal(), per_host=policy.per_host, keep_n_plus_one=keep)
        if batches is not None:
            return refined, batches
    batches = in_batches(Standing(state), plain.goal(), per_host=policy.per_host, keep_n_plus_one=watched)
    if batches is None:
        batches = [[step] for step in plain.steps]
    return plain, batches


def rebalance(state: object, policy: object = None) -> dict[str, Any]:
    """Plan moves that even the load out: `score.py` says what even means, `BalancePolicy` what it may cost.

    No step exceeds a capacity or breaks a rule, and N+1 is kept where it held. A plan run on its own result is empty.
    Raises SchemaError naming the field that is wrong.
    """
    snapshot = read_state(state)
    rules = read_balance_policy(policy)
    watched = rules.keep_n_plus_one and Watch(Standing(snapshot)).holds()
    search, batches = _search(snapshot, rules, watched=watched)
    score = search.board.score() if search.board.count else 0.0
    if len(search.goal()) >= rules.max_moves:
        why = f"stopped at {rules.max_moves} moves, the most allowed"
    elif score <= rules.enough:
        why = f"balanced: the best move gains {search.best_gain:.4f} < {rules.min_gain:g}"
    elif search.barred_gain > max(NOISE, search.best_gain):
        why = f"the best move would gain {search.barred_gain:.4f}, but a rule, the room or N+1 forbids it"
    elif search.best_gain > NOISE:
        why = f"no move is worth its price: the best gains {search.best_gain:.4f}"
    else:
        why = "no move that has room makes it more even"
    return plan_of("rebalance", snapshot, batches, why, more={"policy": rules.name})
