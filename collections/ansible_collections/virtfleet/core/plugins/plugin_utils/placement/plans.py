# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: an ordered list of moves with their reasons, in batches that can run side by side."""

from __future__ import annotations

from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.filters import in_units
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import not_surviving
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION, State
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.score import (
    deviation,
    free_memory_share,
    judged_hosts,
    vcpu_share,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import GIB, Standing


class Scorekeeper:
    """The score of a standing, kept up to date move by move."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._judged = judged_hosts(standing)
        self._at = {host: place for place, host in enumerate(self._judged)}
        self._memory = [free_memory_share(standing, host) for host in self._judged]
        self._vcpus = [vcpu_share(standing, host) for host in self._judged]

    def moved(self, *hosts: int) -> None:
        """Take note that machines came to or left these hosts."""
        for host in hosts:
            place = self._at.get(host)
            if place is not None:
                self._memory[place] = free_memory_share(self._standing, host)
                self._vcpus[place] = vcpu_share(self._standing, host)

    def score(self) -> float:
        """Return the score now."""
        return deviation(self._memory) + deviation(self._vcpus)


def memory_percent(standing: Standing, host: int) -> float:
    """Return how much of a host's memory is promised, in percent, its reserve counted as promised."""
    total = standing.fleet.hosts[host].memory_total_bytes
    return 100.0 * (1.0 - standing.fleet.memory_free[host] / total) if total else 100.0


def _used(standing: Standing) -> int:
    return sum(1 for machines in standing.on if machines)


def plan_of(
    kind: str,
    state: State,
    batches: list[list[Step]],
    why: str,
    *,
    left: list[dict[str, Any]] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a plan as the schema writes it: the batches replayed on the state, each move with what it changes.

    `why` is the plan's reason in one sentence, `left` what could not be done.
    """
    standing = Standing(state)
    keeper = Scorekeeper(standing)
    hosts = standing.fleet.hosts
    used_before = _used(standing)
    before = keeper.score()
    weak_before = not_surviving(standing)
    moves: list[dict[str, Any]] = []
    now = before
    for number, batch in enumerate(batches):
        for vm, target in batch:
            source = standing.host_of(vm)
            size = standing.moved_bytes(vm)
            memory = {end: [memory_percent(standing, at)] for end, at in (("from", source), ("to", target))}
            standing.move(vm, target)
            keeper.moved(source, target)
            after = keeper.score()
            memory["from"].append(memory_percent(standing, source))
            memory["to"].append(memory_percent(standing, target))
            text = (
                f"move {standing.vms[vm].id} {hosts[source].name} → {hosts[target].name}: "
                f"score {now:.4f} → {after:.4f}, "
                f"{hosts[source].name} memory {memory['from'][0]:.0f} → {memory['from'][1]:.0f} %, "
                f"{hosts[target].name} {memory['to'][0]:.0f} → {memory['to'][1]:.0f} %, {in_units(size)}"
            )
            moves.append(
                {
                    "vm": standing.vms[vm].id,
                    "from": hosts[source].name,
                    "to": hosts[target].name,
                    "batch": number,
                    "bytes": size,
                    "score_before": now,
                    "score_after": after,
                    "memory_percent": memory,
                    "text": text,
                }
            )
            now = after
    moved = sum(move["bytes"] for move in moves)
    summary = why
    if moves:
        summary = (
            f"{counted(len(moves), 'move')} in {len(batches)} batch{'es' if len(batches) > 1 else ''}, "
            f"{in_units(moved)}, score {before:.4f} → {now:.4f}: {why}"
        )
    weak_after = not_surviving(standing)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "generation": state.generation,
        "score_before": before,
        "score_after": now,
        "moves": moves,
        "batches": [[standing.vms[vm].id for vm, _target in batch] for batch in batches],
        "moved_bytes": moved,
        "moved_gib": moved / GIB,
        "hosts_total": len(hosts),
        "hosts_used_before": used_before,
        "hosts_used_after": _used(standing),
        "n_plus_one": {
            "before": not weak_before,
            "after": not weak_after,
            "hosts_at_risk": [hosts[host].name for host in weak_after],
        },
        "left": left or [],
        **(more or {}),
        "summary": summary,
    }
