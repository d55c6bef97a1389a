# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules over groups: which are broken now, and which machines would have to move to mend them."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Group
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing


@dataclass(frozen=True, slots=True)
class Broken:
    """A hard rule that does not hold, the machines that are too many where they stand, and the sentence for it."""

    group: str
    vms: tuple[int, ...]
    text: str


def broken_rules(standing: Standing) -> list[Broken]:
    """Return the hard rules that do not hold. The machines named are the lightest to move."""
    members: dict[str, dict[str, list[int]]] = {}
    fleet = standing.fleet
    for number, vm in enumerate(standing.vms):
        for name in vm.groups:
            place = fleet.place_of(standing.host_of(number), fleet.groups[name].scope)
            members.setdefault(name, {}).setdefault(place, []).append(number)
    broken = []
    for name in sorted(members):
        group = fleet.groups[name]
        if group.hard:
            found = _of_group(standing, group, members[name])
            if found is not None:
                broken.append(found)
    return broken


def _of_group(standing: Standing, group: Group, places: dict[str, list[int]]) -> Broken | None:
    def lightest(vms: list[int], count: int) -> list[int]:
        return sorted(vms, key=lambda vm: (standing.moved_bytes(vm), vm))[:count]

    order = sorted(places, key=lambda place: (-len(places[place]), place))
    surplus: list[int] = []
    if group.rule == "affinity":
        surplus = [vm for place in order[1:] for vm in places[place]]
        text = f"group {group.name} should stand together but stands on {', '.join(sorted(places))}"
    elif group.rule == "domains":
        for place in order:
            of = [standing.vms[vm].domain for vm in places[place]]
            kept = max(sorted(set(of)), key=of.count)
            surplus += [vm for vm in places[place] if standing.vms[vm].domain != kept]
        text = f"machines of different fault domains of group {group.name} stand in one {group.scope}"
    else:
        for place in order:
            surplus += lightest(places[place], max(0, len(places[place]) - group.most))
        text = f"at most {group.most} of group {group.name} may stand in one {group.scope}"
    return Broken(group.name, tuple(surplus), text) if surplus else None
