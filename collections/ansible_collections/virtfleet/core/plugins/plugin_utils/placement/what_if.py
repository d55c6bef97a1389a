# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What if: a host, rack or zone is lost, hosts are added, machines come or go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, SchemaError, natural, unique
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.drain import homes_for
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import not_surviving
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.placing import place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import DEFAULT_POLICY, read_policy
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    SCHEMA_VERSION,
    State,
    read_host,
    read_requests,
    read_state,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.score import terms_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import (
    as_it_stands,
    with_hosts_lost,
    without_machines,
)


def _lost(door: Door, state: State) -> set[str]:
    """Return the names of the hosts that an event takes away."""
    known = {host.name for host in state.hosts}
    lost: set[str] = set()
    for value, path in door.items("lose_hosts"):
        if value not in known:
            raise SchemaError(path, f"there is no host {value!r}")
        lost.add(value)
    for key, of in (("lose_rack", "rack"), ("lose_zone", "zone")):
        name = door.text_or_none(key)
        if name is not None:
            gone = {host.name for host in state.hosts if getattr(host, of) == name}
            if not gone:
                raise door.fail(key, f"no host stands in {of} {name!r}")
            lost |= gone
    return lost


def what_if(state: object, event: object, policy: object = DEFAULT_POLICY) -> dict[str, Any]:
    """Return what an event would do. Nothing is planned and nothing moves but what has to.

    `event` holds any of `lose_hosts` (names), `lose_rack`, `lose_zone`, `add_hosts` (hosts), `remove_vms` (ids) and
    `add_vms` (requests). Machines of lost hosts are started again where the policy puts them; then the new ones are
    placed. Raises SchemaError.
    """
    before = read_state(state)
    rules = read_policy(policy)
    door = Door(event, "event")
    lost = _lost(door, before)
    removed = set(door.texts("remove_vms"))
    unknown = sorted(removed - {vm.id for vm in before.vms})
    if unknown:
        raise door.fail("remove_vms", f"there is no machine {unknown[0]!r}")
    added = unique(
        [(host, "hosts") for host in before.hosts]
        + [(read_host(value, path), path) for value, path in door.items("add_hosts")],
        lambda host: host.name,
        "name",
    )
    grown = replace(before, hosts=tuple(sorted(added, key=lambda host: natural(host.name))))
    after = with_hosts_lost(without_machines(grown, removed), lost)
    requests = read_requests(door.raw("add_vms") or [], after)
    door.done()

    standing = Standing(after)
    struck = [number for number, vm in enumerate(standing.vms) if vm.host in lost]
    homes, homeless = homes_for(standing, struck, rules)
    for vm, host in homes.items():
        standing.move(vm, host)
    restarted = [
        {"vm": standing.vms[vm].id, "from": standing.vms[vm].host, "to": standing.fleet.hosts[host].name}
        for vm, host in sorted(homes.items())
    ]
    settled = as_it_stands(standing, without={vm for vm, _text in homeless})
    decision = place(settled, requests, rules, explain=False) if requests else None
    start = terms_of(Standing(before))
    end = terms_of(standing)
    at_risk = [standing.fleet.hosts[host].name for host in not_surviving(Standing(settled))]
    parts = []
    if lost:
        machines = counted(len(struck), "machine")
        parts.append(f"{counted(len(lost), 'host')} lost with {machines}: {len(restarted)} start elsewhere")
        if homeless:
            parts.append(f"{len(homeless)} have no place: {homeless[0][1]}")
    if decision is not None:
        parts.append(decision["summary"])
    if at_risk:
        parts.append(
            f"then the loss of {', '.join(at_risk[:3])}{' …' if len(at_risk) > 3 else ''} could not be absorbed"
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "generation": before.generation,
        "policy": rules.name,
        "lost": sorted(lost, key=natural),
        "restarted": restarted,
        "homeless": [
            {"vm": standing.vms[vm].id, "from": standing.vms[vm].host, "text": text} for vm, text in sorted(homeless)
        ],
        "placements": decision["placements"] if decision is not None else [],
        "unplaced": decision["unplaced"] if decision is not None else [],
        "fits": not homeless and (decision is None or decision["fits"]),
        "score_before": sum(start.values()),
        "score_after": sum(end.values()),
        "n_plus_one": {"after": not at_risk, "hosts_at_risk": at_risk},
        "summary": "; ".join(parts) or "nothing changes",
    }
