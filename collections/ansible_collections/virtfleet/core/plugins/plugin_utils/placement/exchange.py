# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchanges after the descent: needless moves dropped, heavy ones replaced by lighter ones, targets exchanged.

What counts is GiB and moves as long as the score stays below `enough`; the price of a move is taken as that of 8 GiB,
since a live migration has a fixed part too.
"""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.balancer import (
    FEW_HOSTS,
    TAKEN,
    Balancer,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.board import Size
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import GIB

WORTHWHILE = 1e-5
"""What an exchange that is no lighter must gain."""
EXCHANGE_ROUNDS = 8
EXCHANGE_PAIRS = 20_000
"""How many pairs of moved machines are compared in a round; with more machines, each with fewer others."""
MOVE_GIB = 8.0
"""What a move weighs beside what it carries, in GiB."""


class Exchange:
    """Exchanges on the board of a search that has come to its end."""

    def __init__(self, search: Balancer) -> None:
        self.search = search
        self.board = search.board
        self.standing = search.standing
        self.home = search.home
        self._targets: dict[Size, list[int]] = {}

    def run(self) -> None:
        """Look for lighter ways to the same: a machine less, another machine, another target. Only below `enough`."""
        board, policy = self.board, self.search.policy
        limit = min(policy.enough, max(board.score(), policy.enough * 0.999))
        if not self.search.goal() or board.score() > policy.enough:
            return
        for _round in range(EXCHANGE_ROUNDS):
            if not self._exchange_round(limit):
                return

    def _weight(self, vm: int) -> float:
        """Return what a move of a machine weighs in an exchange, in GiB."""
        return self.board.size[vm][2] / GIB + MOVE_GIB

    def _exchange_round(self, limit: float) -> bool:
        better = False
        sources = self._lighter_sources()
        for vm in sorted(self.search.goal(), key=lambda each: (-self._weight(each), each)):
            if self.standing.host_of(vm) == self.home[vm]:
                continue
            if self._send_home(vm, limit) or self._replace(vm, limit, sources):
                sources = self._lighter_sources()
                better = True
        return self._retarget() or better

    def _lighter_sources(self) -> dict[Size, list[int]]:
        """Return, for each size, the places that gain most by giving up such a machine that has not moved yet."""
        board = self.board
        wx, wy, dx, dy = board.slopes()
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
            wx, wy, dx, dy = board.slopes()
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
        moved = sorted(self.search.goal())
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
            steps = self.search.swap_steps(vm, other, board.at(vm), board.at(other))
            if steps is not None:
                for each, target in steps:
                    board.move(each, target)
                better = True
        return better
