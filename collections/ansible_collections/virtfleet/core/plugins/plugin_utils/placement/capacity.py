# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many more machines of each flavor fit, and how many so that the loss of any one host can still be absorbed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, SchemaError, list_of, unique
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted, miss, nearest_miss
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.filters import in_units, reasons_against
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import read_policy
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ranking import Ranking
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    SCHEMA_VERSION,
    Request,
    State,
    read_request,
    read_state,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing

MOST = 100_000
"""Counting ends here: a flavor that takes next to nothing fits for ever."""


def _read_flavors(value: object) -> tuple[Request, ...]:
    flavors = []
    for flavor, path in list_of(value, "flavors"):
        door = Door(flavor, path)
        name = door.text("name")
        plain = {key: each for key, each in flavor.items() if key != "name"}
        if "id" in plain or "host" in plain:
            raise SchemaError(f"{path}.{'id' if 'id' in plain else 'host'}", "a flavor has a name and no host")
        flavors.append((read_request({**plain, "id": name}, path), path))
    return unique(flavors, lambda each: each.id, "name")


def fill(fleet: Fleet, flavor: Request, most: int) -> list[int]:
    """Claim up to `most` machines of a flavor, always on the host that is emptiest then; return the hosts in turn.

    For one flavor alone every order gives the same number; the emptiest first leaves most for the loss of a host.
    """
    ranking = Ranking(fleet, read_policy("worst_fit"))
    hosts: list[int] = []
    while len(hosts) < most:
        number = ranking.best(flavor)
        if number is None:
            break
        fleet.claim(number, flavor)
        hosts.append(number)
    return hosts


def _holds_with(state: State, flavor: Request, hosts: list[int]) -> bool:
    """Tell whether N+1 holds with more machines of a flavor on these hosts."""
    standing = Standing(state)
    for number in hosts:
        standing.add(flavor, standing.fleet.claim_for(number, flavor))
    return Watch(standing).holds()


def most_with_spare(state: State, flavor: Request, hosts: list[int]) -> int:
    """Return how many of the machines placed on `hosts` in turn may be there so that N+1 holds; by halving."""
    if not _holds_with(state, flavor, []):
        return 0
    low, high = 0, len(hosts)
    while low < high:
        middle = (low + high + 1) // 2
        if _holds_with(state, flavor, hosts[:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def capacity(state: object, flavors: object) -> dict[str, Any]:
    """Return how many more machines of each flavor fit, each flavor taken alone.

    A flavor is a request with a `name` instead of `id`. `fits` counts real places, host by host. `fits_n_plus_one` is
    how many may be added, spread out, so that the loss of any one host can still be absorbed (at least so many: another
    spread may allow a few more). Raises SchemaError.
    """
    snapshot = read_state(state)
    wanted = _read_flavors(flavors)
    for number, flavor in enumerate(wanted):
        known = {group.name for group in snapshot.groups}
        for group in flavor.groups:
            if group not in known:
                raise SchemaError(f"flavors[{number}].groups", f"there is no group {group!r}")
    fleet = Fleet(snapshot)
    usable = [number for number in fleet.everyone if fleet.hosts[number].live and not fleet.hosts[number].maintenance]
    answers = []
    for flavor in wanted:
        trial = Fleet(snapshot)
        hosts = fill(trial, flavor, MOST)
        spare = most_with_spare(snapshot, replace(flavor, groups=()), hosts)
        by_host: dict[str, int] = {}
        for number in hosts:
            name = fleet.hosts[number].name
            by_host[name] = by_host.get(name, 0) + 1
        refused = [(host.name, reasons_against(trial, flavor, number)) for number, host in enumerate(trial.hosts)]
        nearest = nearest_miss([each for each in refused if each[1]])
        answers.append(
            {
                "flavor": flavor.id,
                "fits": len(hosts),
                "fits_n_plus_one": spare,
                "by_host": by_host,
                "limit": miss(nearest) if nearest is not None else None,
                "text": f"{counted(len(hosts), 'machine')} of {flavor.id} fit, {spare} with one host lost",
            }
        )
    memory = sum(max(0, fleet.memory_free[number]) for number in usable)
    vcpus = sum(max(0, fleet.vcpus_free[number]) for number in usable)
    return {
        "schema_version": SCHEMA_VERSION,
        "generation": snapshot.generation,
        "hosts": len(usable),
        "vcpus": {"usable": sum(fleet.vcpus_usable[number] for number in usable), "free": vcpus},
        "memory": {"usable_bytes": sum(fleet.memory_usable[number] for number in usable), "free_bytes": memory},
        "flavors": answers,
        "summary": "; ".join(
            [f"{vcpus} vCPUs and {in_units(memory)} free on {counted(len(usable), 'host')}"]
            + [str(answer["text"]) for answer in answers]
        ),
    }
