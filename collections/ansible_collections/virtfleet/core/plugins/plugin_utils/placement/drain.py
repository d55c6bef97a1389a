# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draining: every machine off some hosts, each to where the placement policy sends it (S2.52)."""

from __future__ import annotations

from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, SchemaError, list_of, name_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import (
    counted,
    refusal_text,
    rejected_hosts,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ordering import Step, in_batches
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plans import plan_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import (
    DEFAULT_POLICY,
    Policy,
    read_policy,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ranking import Ranking
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import closed

DEFAULT_PER_HOST = 2


def homes_for(standing: Standing, vms: list[int], policy: Policy) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """Return a host for each of some machines, as if they stood nowhere, and those that have none, with the reason.

    The largest are placed first. `standing` is left as it was.
    """
    fleet = standing.fleet
    old = [standing.claims[vm] for vm in vms]
    for claim in old:
        fleet.release(claim)
    ranking = Ranking(fleet, policy, [("rank", 1.0, policy.rank)] if policy.rank is not None else None)
    memory, vcpus = max(1, sum(fleet.memory_usable)), max(1, sum(fleet.vcpus_usable))

    def size(vm: int) -> float:
        return standing.vms[vm].memory_bytes / memory + standing.vms[vm].vcpus / vcpus

    taken = []
    homes: dict[int, int] = {}
    homeless: list[tuple[int, str]] = []
    for vm in sorted(vms, key=lambda each: (-size(each), each)):
        need = standing.needs[vm]
        number = ranking.best(need)
        if number is None:
            homeless.append((vm, refusal_text(need, rejected_hosts(fleet, need, ranking, set()))))
        else:
            taken.append(fleet.claim(number, need))
            homes[vm] = number
    for claim in reversed(taken):
        fleet.release(claim)
    for claim in old:
        fleet.take(claim)
    return homes, homeless


def drain(state: object, hosts: object, policy: object = DEFAULT_POLICY, *, options: object = None) -> dict[str, Any]:
    """Plan the moves that empty hosts. The targets come from the placement policy.

    Machines that cannot go are in `left`, each with the reason of every host. `options`: `per_host`, the moves of one
    batch that a host may take part in, and `keep_n_plus_one`. N+1 is kept among the remaining hosts where it held there
    and the room allows; where not, the plan says so. Raises SchemaError.
    """
    snapshot = read_state(state)
    rules = read_policy(policy)
    door = Door({} if options is None else options, "options")
    per_host = door.integer("per_host", DEFAULT_PER_HOST, least=1)
    keep = door.truth("keep_n_plus_one", True)
    door.done()
    known = {host.name for host in snapshot.hosts}
    names = set()
    for value, path in list_of(hosts, "hosts"):
        name = name_of(value, path)
        if name not in known:
            raise SchemaError(path, f"there is no host {name!r}")
        names.add(name)
    target = closed(snapshot, names)
    standing = Standing(target)
    leaving = [vm for vm in range(len(standing.vms)) if standing.vms[vm].host in names]
    movable = [vm for vm in leaving if standing.is_movable(vm)]
    left = [(vm, _why_not(standing, vm)) for vm in leaving if not standing.is_movable(vm)]
    homes, homeless = homes_for(standing, movable, rules)
    if homeless:
        # What the policy would like leaves some out: packing tightly is the better chance that all fit.
        packed, fewer = homes_for(standing, movable, read_policy("bin_packing"))
        if len(fewer) < len(homeless):
            homes, homeless = packed, fewer
    watched = keep and Watch(Standing(target)).holds()
    batches, late = _ordered(target, homes, per_host, watched=watched)
    left += homeless + [(vm, "no order of the moves has room for it at every step") for vm in late]
    moved = sum(len(batch) for batch in batches)
    why = f"{counted(len(leaving), 'machine')} off {', '.join(sorted(names)) or 'no host'}"
    if left:
        why += f"; {len(left)} must stay: {left[0][1]}"
    elif not moved:
        why = f"nothing to do: no machine stands on {', '.join(sorted(names)) or 'no host'}"
    return plan_of(
        "drain",
        target,
        batches,
        why,
        left=[{"vm": standing.vms[vm].id, "host": standing.vms[vm].host, "text": text} for vm, text in left],
        more={"policy": rules.name, "hosts": sorted(names)},
    )


def _why_not(standing: Standing, vm: int) -> str:
    host = standing.fleet.hosts[standing.host_of(vm)]
    if not host.live:
        return f"{standing.vms[vm].id} cannot be moved: {host.name} is not live"
    stays = standing.vms[vm].stays
    return f"{standing.vms[vm].id} {f'must stay: {stays}' if stays else 'is marked as not movable'}"


def _ordered(
    state: State, homes: dict[int, int], per_host: int, *, watched: bool
) -> tuple[list[list[Step]], list[int]]:
    """Return batches, with N+1 where it can be kept, and the machines for which no order was found."""
    for keep in (True, False) if watched else (False,):
        goal = dict(homes)
        batches = in_batches(Standing(state), goal, per_host=per_host, keep_n_plus_one=keep)
        if batches is not None:
            return batches, []
    # One after the other as far as it goes.
    standing = Standing(state)
    done: list[list[Step]] = []
    late = []
    for vm, host in sorted(homes.items()):
        if standing.fits(vm, host):
            standing.move(vm, host)
            done.append([(vm, host)])
        else:
            late.append(vm)
    return done, late
