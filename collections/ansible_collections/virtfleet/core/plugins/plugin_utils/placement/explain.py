# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explanations, for people and as data: what was chosen and why, what else there was, what stood in the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.filters import Reason, reasons_against
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.ranking import Ranked, Ranking
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request

LABELS = {
    "vcpus_short": "vCPUs short",
    "memory_short": "memory short",
    "pool_short": "pool short",
    "pool_missing": "pool missing",
    "numa_short": "NUMA nodes short",
    "not_live": "not live",
    "maintenance": "in maintenance",
    "wrong_zone": "other zone",
    "pinned_elsewhere": "pinned elsewhere",
    "excluded": "excluded",
    "tags_missing": "tags missing",
    "affinity": "affinity",
    "anti_affinity": "anti-affinity",
    "fault_domain": "fault domains",
    "over_threshold": "over the threshold",
    "level_full": "level full",
    "requirement": "requirement not fulfilled",
}


def counted(number: int, noun: str) -> str:
    """Return `1 host`, `2 hosts`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _distance(reasons: tuple[Reason, ...]) -> tuple[int, float]:
    """Return how far a refused host is from taking the machine: fewer reasons first, then the relative shortfall."""
    far = 0.0
    for reason in reasons:
        if reason.short_by is None or not isinstance(reason.wanted, (int, float)):
            far += 1000.0
        else:
            far += reason.short_by / max(1.0, float(reason.wanted))
    return len(reasons), far


def nearest_miss(rejected: Iterable[tuple[str, tuple[Reason, ...]]]) -> tuple[str, tuple[Reason, ...]] | None:
    """Return the refused host that comes nearest to taking the machine."""
    return min(rejected, key=lambda each: _distance(each[1]), default=None)


def refusals(rejected: list[tuple[str, tuple[Reason, ...]]]) -> list[dict[str, Any]]:
    """Group refused hosts by their first reason's code, each group with its nearest miss."""
    groups: dict[str, list[tuple[str, tuple[Reason, ...]]]] = {}
    for host, reasons in rejected:
        groups.setdefault(reasons[0].code, []).append((host, reasons))
    answer = []
    for code, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        nearest = nearest_miss(members)
        if nearest is None:
            raise LookupError("no rejected host to explain")
        answer.append(
            {
                "code": code,
                "hosts": [host for host, _reasons in members],
                "nearest": {"host": nearest[0], "text": miss(nearest)},
            }
        )
    return answer


def miss(refused: tuple[str, tuple[Reason, ...]]) -> str:
    """Return a refused host in words: `h7: memory short by 1.5 GiB (8 GiB wanted, 6.5 GiB free)`."""
    host, reasons = refused
    return f"{host}: {'; '.join(reason.text for reason in reasons)}"


def refusal_text(request: Request, rejected: list[tuple[str, tuple[Reason, ...]]]) -> str:
    """Return why no host takes a machine, in one sentence."""
    if not rejected:
        return f"{request.id} cannot be placed: there are no hosts"
    nearest = nearest_miss(rejected)
    if nearest is None:
        raise LookupError("no rejected host to explain")
    counts = ", ".join(
        f"{LABELS.get(group['code'], group['code'])} on {len(group['hosts'])}" for group in refusals(rejected)
    )
    closest = miss(nearest)
    if len(rejected) == 1:
        return f"{request.id} fits on no host: {closest}"
    return f"{request.id} fits on none of {len(rejected)} hosts: {counts}; nearest {closest}"


def rejected_hosts(
    fleet: Fleet, request: Request, ranking: Ranking, chosen: set[int]
) -> list[tuple[str, tuple[Reason, ...]]]:
    """Return the refused hosts with every reason; `chosen` are those that were not refused."""
    rejected = []
    for number, host in enumerate(fleet.hosts):
        if number not in chosen:
            reasons = reasons_against(fleet, request, number, ranking.policy.extra)
            if not reasons and chosen:
                # It takes this machine, but was passed over for the others that must stand beside it.
                reasons = (_whole_group(fleet, request),)
            if reasons:
                rejected.append((host.name, reasons))
    return rejected


def _whole_group(fleet: Fleet, request: Request) -> Reason:
    names = [name for name in request.groups if fleet.groups[name].rule == "affinity" and fleet.groups[name].hard]
    return Reason("affinity", "group", f"not all machines of group {', '.join(names)} can stand there")


def chosen_text(fleet: Fleet, request: Request, ranked: list[Ranked], number: int, refused: int) -> str:
    """Return why a host was chosen, in one sentence."""
    host = fleet.hosts[number].name
    mine = next((each for each in ranked if each.number == number), None)
    if mine is None:
        return f"{request.id} on {host}"
    other = next((each for each in ranked if each.number != number), None)
    terms = " + ".join(f"{name} {value:.3f}" for name, value in mine.terms.items())
    text = f"{request.id} on {host}: score {mine.score:.3f}"
    if len(mine.terms) > 1:
        text += f" = {terms}"
    elif mine.terms:
        text += f" ({next(iter(mine.terms))})"
    if other is not None:
        text += f"; next {fleet.hosts[other.number].name} {other.score:.3f}"
    elif not refused:
        text += "; the only host"
    if refused:
        text += f"; {counted(refused, 'host')} refused"
    return text


def explanation(
    fleet: Fleet,
    request: Request,
    ranked: list[Ranked],
    rejected: list[tuple[str, tuple[Reason, ...]]],
    number: int | None,
) -> dict[str, Any]:
    """Return an explanation as the schema writes it."""
    if number is None:
        text = refusal_text(request, rejected)
    else:
        text = chosen_text(fleet, request, ranked, number, len(rejected))
    return {
        "chosen": None if number is None else fleet.hosts[number].name,
        "text": text,
        "ranked": [
            {"host": fleet.hosts[number_].name, "score": score, "terms": terms} for number_, score, terms in ranked
        ],
        "rejected": [{"host": host, "reasons": [reason.plain() for reason in reasons]} for host, reasons in rejected],
        "refusals": refusals(rejected),
    }
