# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consolidating: fewer hosts in use, so that the others can be switched off.

The default rule chooses the hosts to keep, the roomiest and those that most machines stand on already, and sends every
other machine there once, to many targets. `volume_ratio` is the rule of S5.10, kept for comparison: it is not monotonic
(see `volume_ratio`), which is why it is not the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step, in_batches
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plans import plan_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import GIB, Standing
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import as_it_stands

RULES = ("fewest_hosts", "volume_ratio")
CLAMP = 0.01
"""The least free share that the volume formula sees: a full host would divide by zero."""
SWAPS = 200
"""How often one kept host is exchanged for another while looking for fewer moves."""


@dataclass(frozen=True, slots=True)
class ConsolidatePolicy:
    """`least_hosts`: keep at least so many in use. `max_moves`: no plan with more. `choices`: sizes to compare."""

    rule: str = "fewest_hosts"
    least_hosts: int = 1
    max_moves: int = 100_000
    per_host: int = 2
    keep_n_plus_one: bool = True
    choices: int = 8


def read_consolidate_policy(value: object) -> ConsolidatePolicy:
    """Read a policy for `consolidate`: None, the name of a rule, or a mapping of options. Raises SchemaError."""
    if isinstance(value, ConsolidatePolicy):
        return value
    plain = ConsolidatePolicy()
    door = Door({} if value is None else {"rule": value} if isinstance(value, str) else value, "policy")
    policy = ConsolidatePolicy(
        rule=door.choice("rule", RULES, plain.rule),
        least_hosts=door.integer("least_hosts", plain.least_hosts, least=1),
        max_moves=door.integer("max_moves", plain.max_moves),
        per_host=door.integer("per_host", plain.per_host, least=1),
        keep_n_plus_one=door.truth("keep_n_plus_one", plain.keep_n_plus_one),
        choices=door.integer("choices", plain.choices, least=1, most=100),
    )
    door.done()
    return policy


def volume_ratio(busy_vcpus: int, vcpus: int, busy_memory_gib: float, memory_gib: float) -> float:
    """Return S5.10's ratio: volume / busy memory, volume = 1 / (1 - cpu) + 1 / (1 - memory).

    The shares are clamped so that a full host does not divide by zero; an idle host is infinite. Not monotonic: on 16
    CPUs and 64 GiB, 2 vCPUs and 4 GiB give 0.55, 8 and 32 give 0.125, 14 and 56 give 0.29, so the half-full host is
    emptied into the nearly idle one (C9).
    """
    if busy_memory_gib <= 0:
        return float("inf")
    cpu = max(CLAMP, 1.0 - busy_vcpus / vcpus) if vcpus else CLAMP
    memory = max(CLAMP, 1.0 - busy_memory_gib / memory_gib) if memory_gib else CLAMP
    return (1.0 / cpu + 1.0 / memory) / busy_memory_gib


def _by_volume(state: State, least_hosts: int) -> dict[int, int]:
    """Empty the host with the lowest ratio into the one with the highest that takes all of it, until none does."""
    standing = Standing(state)
    fleet = standing.fleet
    done: set[int] = set()
    while True:
        ratios = []
        for host in fleet.everyone:
            facts = fleet.hosts[host]
            if standing.usable[host] and standing.on[host]:
                busy_vcpus = fleet.vcpus_usable[host] - fleet.vcpus_free[host]
                busy = (fleet.memory_usable[host] - fleet.memory_free[host]) / GIB
                ratio = volume_ratio(busy_vcpus, facts.vcpus_total, busy, facts.memory_total_bytes / GIB)
                ratios.append((ratio, host))
        ratios.sort()
        if len(ratios) <= least_hosts or not any(_emptied(standing, source, ratios, done) for _r, source in ratios):
            break
    return {vm: standing.host_of(vm) for vm in range(len(standing.vms)) if standing.host_of(vm) != _home(standing, vm)}


def _emptied(standing: Standing, source: int, ratios: list[tuple[float, int]], done: set[int]) -> bool:
    if source in done or not all(standing.is_movable(vm) for vm in standing.on[source]):
        return False
    for _ratio, target in reversed(ratios):
        if target == source or target in done:
            continue
        undo = []
        for vm in sorted(standing.on[source]):
            if not standing.fits(vm, target):
                break
            undo.append((vm, standing.claims[vm]))
            standing.move(vm, target)
        else:
            done.add(source)
            return True
        for vm, claim in reversed(undo):
            standing.move_back(vm, claim)
    return False


def _home(standing: Standing, vm: int) -> int:
    return standing.fleet.index[standing.vms[vm].host]


class _Packer:
    """Tries to put all machines onto a chosen set of hosts."""

    def __init__(self, state: State) -> None:
        self.state = state
        base = Standing(state)
        self.base = base
        fleet = base.fleet
        self.candidates = [host for host in fleet.everyone if base.usable[host]]
        self.fixed = frozenset(
            base.host_of(vm) for vm in range(len(base.vms)) if not base.is_movable(vm) and base.usable[base.host_of(vm)]
        )
        self.used = frozenset(host for host in self.candidates if base.on[host])
        self.weight = {host: len(base.on[host]) for host in self.candidates}
        self.movable = [vm for vm in range(len(base.vms)) if base.usable[base.host_of(vm)] and base.is_movable(vm)]
        self._room = {host: self._without(host) for host in self.candidates}
        self.wanted = (
            sum(base.vms[vm].memory_bytes for vm in self.movable),
            sum(base.vms[vm].vcpus for vm in self.movable),
        )

    def _without(self, host: int) -> tuple[int, int]:
        """Return what would be free on a host without its movable machines."""
        base = self.base
        mine = [vm for vm in base.on[host] if base.is_movable(vm)]
        memory = base.fleet.memory_free[host] + sum(base.vms[vm].memory_bytes for vm in mine)
        return memory, base.fleet.vcpus_free[host] + sum(base.vms[vm].vcpus for vm in mine)

    def _enough(self, kept: frozenset[int]) -> bool:
        return (
            sum(self._room[host][0] for host in kept) >= self.wanted[0]
            and sum(self._room[host][1] for host in kept) >= self.wanted[1]
        )

    def least(self) -> int:
        """Return the least number of hosts whose room adds up to what is wanted: no packing needs fewer."""
        count = 0
        for dimension in (0, 1):
            total, hosts = 0, 0
            for room in sorted((self._room[host][dimension] for host in self.candidates), reverse=True):
                if total >= self.wanted[dimension]:
                    break
                total += room
                hosts += 1
            count = max(count, hosts)
        return max(count, len(self.fixed))

    def choose(self, count: int) -> frozenset[int] | None:
        """Return `count` hosts to keep: roomy enough together, and as many machines on them already as possible."""
        order = sorted(self.candidates, key=lambda host: (-min(self._shares(host)), -self.weight[host], host))
        rest = [host for host in order if host not in self.fixed]
        kept = set(self.fixed) | set(rest[: max(0, count - len(self.fixed))])
        if not self._enough(frozenset(kept)):
            return None
        for _swap in range(SWAPS):
            swap = self._better_swap(kept)
            if swap is None:
                break
            kept.remove(swap[0])
            kept.add(swap[1])
        return frozenset(kept)

    def _shares(self, host: int) -> tuple[float, float]:
        return self._room[host][0] / max(1, self.wanted[0]), self._room[host][1] / max(1, self.wanted[1])

    def _better_swap(self, kept: set[int]) -> tuple[int, int] | None:
        best: tuple[int, int, int] | None = None
        memory = sum(self._room[host][0] for host in kept) - self.wanted[0]
        vcpus = sum(self._room[host][1] for host in kept) - self.wanted[1]
        for out in sorted(kept - self.fixed):
            for into in self.candidates:
                gain = self.weight[into] - self.weight[out]
                if into in kept or gain <= 0 or (best is not None and gain <= best[0]):
                    continue
                if (
                    memory + self._room[into][0] - self._room[out][0] >= 0
                    and vcpus + self._room[into][1] - self._room[out][1] >= 0
                ):
                    best = (gain, out, into)
        return None if best is None else best[1:]

    def pack(self, kept: frozenset[int]) -> dict[int, int] | None:
        """Return where the machines of all other hosts go, or None. Kept hosts' own machines move only to make room."""
        standing = Standing(self.state)
        waiting = sorted(
            (vm for vm in self.movable if standing.host_of(vm) not in kept), key=lambda vm: (*self._size(vm), vm)
        )
        for vm in waiting:
            if not self._settle(standing, vm, kept):
                return None
        return {vm: standing.host_of(vm) for vm in self.movable if standing.host_of(vm) != _home(standing, vm)}

    def _size(self, vm: int) -> tuple[float]:
        vms = self.base.vms
        return (-(vms[vm].memory_bytes / max(1, self.wanted[0]) + vms[vm].vcpus / max(1, self.wanted[1])),)

    def _settle(self, standing: Standing, vm: int, kept: frozenset[int]) -> bool:
        room = [host for host in sorted(kept) if standing.fits(vm, host)]
        if room:
            standing.move(vm, min(room, key=lambda host: (self._left(standing, host, vm), host)))
            return True
        # Somebody gives way: one lighter machine of a kept host goes to another kept host.
        for host in sorted(kept):
            for other in sorted(standing.on[host], key=lambda each: (standing.moved_bytes(each), each)):
                if not standing.is_movable(other):
                    continue
                for target in sorted(kept - {host}):
                    if not standing.fits(other, target):
                        continue
                    claim = standing.claims[other]
                    standing.move(other, target)
                    if standing.fits(vm, host):
                        standing.move(vm, host)
                        return True
                    standing.move_back(other, claim)
        return False

    def _left(self, standing: Standing, host: int, vm: int) -> float:
        """Return how much would be left of both dimensions, and how unevenly: the tightest and evenest is least."""
        fleet, need = standing.fleet, standing.needs[vm]
        memory = (fleet.memory_free[host] - need.memory_bytes) / max(1, fleet.memory_usable[host])
        vcpus = (fleet.vcpus_free[host] - need.vcpus) / max(1, fleet.vcpus_usable[host])
        return memory + vcpus + abs(memory - vcpus)


def _counts(least: int, used: int, choices: int) -> list[int]:
    """Return the numbers of hosts to try, fewest first: every one near the least, then in growing steps."""
    counts = []
    at, step = least, 1
    while at < used:
        counts.append(at)
        if len(counts) >= choices:
            step *= 2
        at += step
    return counts


def consolidate(state: object, policy: object = None) -> dict[str, Any]:
    """Plan the moves that leave the fewest hosts in use, every step within capacity and rules.

    `choices` shows hosts freed against moves for other numbers of hosts. N+1 is kept where it held, the freed hosts
    counting as spare until somebody switches them off. A plan run on its own result is empty. Raises SchemaError.
    """
    snapshot = read_state(state)
    rules = read_consolidate_policy(policy)
    packer = _Packer(snapshot)
    used = len(packer.used)
    found = _once(snapshot, rules)
    chosen, choices = list(found.batches), found.choices
    standing = _standing_after(snapshot, chosen)
    # Emptied hosts make other packings possible: it looks again until there is nothing left to do.
    more = found.batches
    while more:
        left = replace(rules, max_moves=rules.max_moves - sum(len(batch) for batch in chosen))
        more = _once(as_it_stands(standing), left).batches
        chosen += more
        for vm, host in (step for batch in more for step in batch):
            standing.move(vm, host)
    if len(chosen) > len(found.batches):
        goal = {
            vm: standing.host_of(vm) for vm in range(len(standing.vms)) if standing.host_of(vm) != _home(standing, vm)
        }
        watched = rules.keep_n_plus_one and Watch(Standing(snapshot)).holds()
        direct = in_batches(Standing(snapshot), goal, per_host=rules.per_host, keep_n_plus_one=watched)
        if direct is not None and sum(map(len, direct)) <= sum(map(len, chosen)):
            chosen = direct
        choices[found.at] = _choice(snapshot, goal, used)
    freed = [standing.fleet.hosts[host].name for host in sorted(packer.used) if not standing.on[host]]
    left_used = used - len(freed)
    left_used += sum(1 for host in packer.candidates if host not in packer.used and standing.on[host])
    why = f"{counted(used, 'host')} in use → {left_used}, {len(freed)} emptied"
    if not chosen:
        why = f"nothing to do: the machines of {counted(used, 'host')} fit on no fewer"
        if choices:
            why = f"no plan within {rules.max_moves} moves: the cheapest needs {choices[-1]['moves']}"
    return plan_of(
        "consolidate",
        snapshot,
        chosen,
        why,
        more={"rule": rules.rule, "hosts_before": used, "hosts_after": left_used, "freed": freed, "choices": choices},
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What one look came to: the plan, the choices it was taken from, and which of them it is."""

    batches: list[list[Step]]
    choices: list[dict[str, Any]]
    at: int


def _once(snapshot: State, rules: ConsolidatePolicy) -> _Found:
    packer = _Packer(snapshot)
    used = len(packer.used)
    watched = rules.keep_n_plus_one and Watch(Standing(snapshot)).holds()
    choices: list[dict[str, Any]] = []
    if rules.rule == "volume_ratio":
        goal = _by_volume(snapshot, rules.least_hosts)
        batches = in_batches(Standing(snapshot), goal, per_host=rules.per_host, keep_n_plus_one=watched)
        if batches is None or len(goal) > rules.max_moves:
            return _Found([], choices, 0)
        return _Found(batches, [_choice(snapshot, goal, used)], 0)
    chosen: list[list[Step]] = []
    at = 0
    for count in _counts(max(rules.least_hosts, packer.least()), used, rules.choices):
        if len(choices) >= rules.choices:
            break
        kept = packer.choose(count)
        packed = packer.pack(kept) if kept is not None else None
        if packed is None or (choices and len(packed) >= choices[-1]["moves"]):
            continue
        if not chosen and len(packed) <= rules.max_moves:
            ordered = in_batches(Standing(snapshot), packed, per_host=rules.per_host, keep_n_plus_one=watched)
            if ordered is None:
                continue
            chosen, at = ordered, len(choices)
        choices.append(_choice(snapshot, packed, used))
    return _Found(chosen, choices, at)


def _standing_after(snapshot: State, batches: list[list[Step]]) -> Standing:
    standing = Standing(snapshot)
    for vm, host in (step for batch in batches for step in batch):
        standing.move(vm, host)
    return standing


def _choice(state: State, goal: dict[int, int], used: int) -> dict[str, Any]:
    standing = Standing(state)
    gib = sum(standing.moved_bytes(vm) for vm in goal) / GIB
    for vm, host in goal.items():
        standing.move(vm, host)
    now = sum(1 for host in standing.fleet.everyone if standing.usable[host] and standing.on[host])
    return {"hosts_used": now, "hosts_freed": used - now, "moves": len(goal), "moved_gib": gib}
