# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebalancing: the fewest and lightest moves that make the hosts even enough.

Descent (`balancer.py`), then exchanges (`exchange.py`), then the order (`ordering.py`).
"""

from __future__ import annotations

from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.balancer import (
    NOISE,
    BalancePolicy,
    Balancer,
    read_balance_policy,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.exchange import Exchange
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step, in_batches
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plans import plan_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing


def _search(state: State, policy: BalancePolicy, *, watched: bool) -> tuple[Balancer, list[list[Step]]]:
    """Search, and find an order. The exchanged plan is dropped when it has none; the plain one always has."""
    plain = Balancer(state, policy, watched=watched)
    plain.run()
    refined = Balancer(state, policy, watched=False)
    for vm, host in plain.goal().items():
        refined.board.move(vm, refined.board.place[host])
    Exchange(refined).run()
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
