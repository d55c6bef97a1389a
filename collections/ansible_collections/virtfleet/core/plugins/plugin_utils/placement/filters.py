# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot take a machine: reason codes with what was wanted, what there is and how much is short.

The hard rules apply under every policy. A policy may add filters of its own (`EXTRA`), each a function that answers
with a `Reason` or None, so that what refuses and what explains are the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.expressions import Expression
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Group, Request
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import FULL, LEVELS, level_of, loads

KIB = 1024
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason against one host. `wanted`, `available` and `short_by` are in vCPUs, bytes or percent."""

    code: str
    dimension: str
    text: str
    wanted: float | int | str | None = None
    available: float | int | str | None = None
    short_by: float | int | None = None

    def plain(self) -> dict[str, object]:
        """Return the reason as the schema writes it."""
        return {
            "code": self.code,
            "dimension": self.dimension,
            "wanted": self.wanted,
            "available": self.available,
            "short_by": self.short_by,
            "text": self.text,
        }


ExtraFilter = Callable[[Fleet, Request, int], "Reason | None"]


def in_units(size_bytes: int) -> str:
    """Return a size for a sentence: `1.5 GiB`."""
    size = float(size_bytes)
    unit = 0
    while abs(size) >= KIB and unit < len(UNITS) - 1:
        size /= KIB
        unit += 1
    number = f"{size:.1f}".removesuffix(".0") if unit else str(size_bytes)
    # A shortfall that rounds to 0.0 would read as none at all.
    return f"{number} {UNITS[unit]}"


def _short(code: str, dimension: str, name: str, wanted: int, free: int, *, size: bool) -> Reason:
    shown = in_units if size else str
    missing = wanted - free
    text = f"{name} short by {shown(missing)} ({shown(wanted)} wanted, {shown(max(0, free))} free)"
    return Reason(code, dimension, text, wanted, free, missing)


def standing_reasons(fleet: Fleet, request: Request, number: int) -> list[Reason]:
    """Return what speaks against a host whatever stands on it: life, maintenance, zone, pin, exclusion, tags."""
    host = fleet.hosts[number]
    reasons = []
    if request.host is not None and request.host != host.name:
        text = f"the machine is pinned to {request.host}"
        if request.host not in fleet.index:
            text += ", which is not among the hosts"
        reasons.append(Reason("pinned_elsewhere", "host", text, request.host, host.name))
    if not host.live:
        reasons.append(Reason("not_live", "host", f"not live: {host.error}" if host.error else "not live"))
    if host.maintenance:
        reasons.append(Reason("maintenance", "host", "in maintenance"))
    if request.zone is not None and request.zone != host.zone:
        where = f"in zone {host.zone}" if host.zone else "in no zone"
        reasons.append(Reason("wrong_zone", "zone", f"{where}, zone {request.zone} wanted", request.zone, host.zone))
    if host.name in request.exclude:
        reasons.append(Reason("excluded", "host", "excluded by the request"))
    lacking = sorted(request.tags - host.tags)
    if lacking:
        text = f"lacks the tag{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        reasons.append(Reason("tags_missing", "tags", text, ", ".join(lacking)))
    return reasons


def room_reasons(fleet: Fleet, request: Request, number: int) -> list[Reason]:
    """Return what is short on a host now: vCPUs, memory, each pool, NUMA nodes, the group's hard rule."""
    host = fleet.hosts[number]
    reasons = []
    if fleet.vcpus_free[number] < request.vcpus:
        free = fleet.vcpus_free[number]
        reasons.append(_short("vcpus_short", "vcpus", "vCPUs", request.vcpus, free, size=False))
    if fleet.memory_free[number] < request.memory_bytes:
        free = fleet.memory_free[number]
        reasons.append(_short("memory_short", "memory", "memory", request.memory_bytes, free, size=True))
    for name, wanted in fleet.charges(number, request.disks).items():
        if name not in host.pools:
            reasons.append(Reason("pool_missing", f"pool:{name}", f"has no active pool {name}", name))
        elif fleet.pool_free[name][number] < wanted:
            free = fleet.pool_free[name][number]
            reasons.append(_short("pool_short", f"pool:{name}", f"pool {name}", wanted, free, size=True))
    if request.numa_nodes and fleet.numa_choice(number, request) is None:
        reasons.append(_numa_reason(fleet, request, number))
    for name in request.groups:
        group = fleet.groups[name]
        if group.hard and not fleet.group_allows(group, number, request.domain):
            reasons.append(_group_reason(fleet, group, number))
    return reasons


def _numa_reason(fleet: Fleet, request: Request, number: int) -> Reason:
    vcpus, memory = fleet.numa_share(request)
    fitting = sum(1 for free in fleet.numa_free[number] if free[0] >= vcpus and free[1] >= memory)
    text = (
        f"{fitting} of {len(fleet.numa_free[number])} NUMA nodes "
        f"have {vcpus} vCPUs and {in_units(memory)} free, {request.numa_nodes} wanted"
    )
    return Reason("numa_short", "numa", text, request.numa_nodes, fitting, request.numa_nodes - fitting)


def _group_reason(fleet: Fleet, group: Group, number: int) -> Reason:
    places = fleet.members[group.name]
    place = fleet.place_of(number, group.scope)
    if group.rule == "affinity":
        where = ", ".join(sorted(places))
        return Reason("affinity", "group", f"group {group.name} stands together on {where}", where, place)
    if group.rule == "domains":
        others = sorted(fleet.domains[group.name].get(place, ()))
        text = f"{place} holds fault domain {', '.join(map(str, others))} of group {group.name}"
        return Reason("fault_domain", "group", text, None, place)
    have = places.get(place, 0)
    text = f"{place} already holds {have} of group {group.name}, at most {group.most} may"
    return Reason("anti_affinity", "group", text, group.most, have)


def reasons_against(
    fleet: Fleet, request: Request, number: int, extra: tuple[ExtraFilter, ...] = ()
) -> tuple[Reason, ...]:
    """Return every reason against a host, the hard rules' first; empty when it can take the machine."""
    reasons = standing_reasons(fleet, request, number)
    if fleet.hosts[number].live:
        reasons += room_reasons(fleet, request, number)
        for each in extra:
            reason = each(fleet, request, number)
            if reason is not None:
                reasons.append(reason)
    return tuple(reasons)


def cpu_percent(fleet: Fleet, number: int) -> float:
    """Return a host's CPU load in percent: measured, or the promised share of its vCPUs where nobody measured."""
    measured = fleet.hosts[number].load.cpu_percent
    if measured is not None:
        return measured
    usable = fleet.vcpus_usable[number]
    return 100.0 * (usable - fleet.vcpus_free[number]) / usable if usable else 100.0


def full_filter() -> ExtraFilter:
    """Refuse hosts that are at level Full already, over 95 % of anything (S2.9: no more requests)."""

    def refuse(fleet: Fleet, _request: Request, number: int) -> Reason | None:
        name, load = max(loads(fleet, None, number).items(), key=lambda item: item[1])
        if level_of(load) < FULL:
            return None
        limit = LEVELS[-1][0]
        text = f"{name} at {load:.0f} %, level full: no more machines over {limit:g} %"
        return Reason("level_full", "load", text, limit, load, load - limit)

    return refuse


def requirement_filter(expression: Expression) -> ExtraFilter:
    """Refuse hosts that do not fulfil an expression (S5's matchmaking)."""

    def refuse(fleet: Fleet, request: Request, number: int) -> Reason | None:
        if expression.truth(fleet, request, number):
            return None
        text = f"does not fulfil {expression.text}"
        return Reason("requirement", "requirement", text, expression.text)

    return refuse


def threshold_filter(limit_percent: float) -> ExtraFilter:
    """Refuse hosts whose CPU load is at or over a limit (S3.4: the first host under the threshold and with room)."""

    def refuse(fleet: Fleet, _request: Request, number: int) -> Reason | None:
        load = cpu_percent(fleet, number)
        if load < limit_percent:
            return None
        text = f"CPU at {load:.0f} %, under {limit_percent:g} % wanted"
        return Reason("over_threshold", "load", text, limit_percent, load, load - limit_percent)

    return refuse
