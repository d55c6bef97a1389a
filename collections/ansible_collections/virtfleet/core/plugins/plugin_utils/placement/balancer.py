# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steepest descent over moves, and over swaps where no move helps, on the score of `score.py`.

Both deviations fall apart into one term a host when taken linearly, so the best target of a machine does not depend on
where it comes from: each step looks at machines' sizes times hosts, not at machines times hosts, and judges the few
best pairs exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.board import Board, Size
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.rules import broken_rules
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import GIB, Standing

NOISE = 1e-9
"""Smaller differences of scores are rounding."""
TAKEN = 3
"""How many of the best sources and targets of each size are paired."""
JUDGED = 12
"""How many of the best pairs are judged exactly."""
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

    def _best_move(self, banned: set[tuple[int, int]]) -> Step | None:
        """Return the machine and the place with the most gain over price, or None when nothing is worth it."""
        board = self.board
        wx, wy, dx, dy = board.slopes()
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
        wx, wy, dx, dy = board.slopes()
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
            steps = self.swap_steps(a, b, one, other)
            if steps is not None:
                return steps
        return None

    def swap_steps(self, a: int, b: int, one: int, other: int) -> list[Step] | None:
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
