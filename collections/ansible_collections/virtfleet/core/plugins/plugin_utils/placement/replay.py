# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaying a trace: machines come and go, each placed by a policy; loads rise and fall, each judged by `scale`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import inf
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Claim
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.placing import Batch, algorithm_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plain import plain_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import DEFAULT_POLICY, read_policy
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale import scale
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    SCHEMA_VERSION,
    Request,
    State,
    read_requests,
    read_state,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import as_it_stands
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.traces import Arrival

HOUR_SECONDS = 3600.0

PATIENT_SCALING: dict[str, Any] = {
    "up_percent": 76,
    "up_seconds": 300,
    "up_now_percent": 1000,
    "force_percent": 1000,
    "down_percent": 24,
    "down_seconds": 3600,
    "down_now_percent": -1,
    "cooldown_seconds": 3600,
    "stale_seconds": 300,
}
"""Up over 75 % for five minutes, down under 25 % for an hour, an hour between two actions; no step acts at once."""


def replay(
    state: object, arrivals: Sequence[Arrival], policy: object = DEFAULT_POLICY, *, at_once: bool = False
) -> dict[str, Any]:
    """Place the machines of a trace as they come; those whose end has come leave first.

    Machines that come at one moment are one batch, placed in the order of the trace. With `at_once` time does not
    pass: all are one batch, in the policy's own order. `hosts_used` is the most at one time, `fullest` the state when
    most machines stood. Raises SchemaError.
    """
    snapshot = read_state(state)
    rules = read_policy(policy)
    requests = read_requests([arrival.request for arrival in arrivals], snapshot)
    if not at_once:
        rules = replace(rules, order="given")
    batch = Batch(snapshot, (), rules, explain=False)
    work = algorithm_of(rules)
    busy = dict.fromkeys(batch.fleet.everyone, 0)
    for vm in snapshot.vms:
        busy[batch.fleet.index[vm.host]] += 1
    ends: list[tuple[float, Request]] = []
    alive: dict[str, Request] = {}
    touched: set[int] = set()
    hosts_used = sum(1 for count in busy.values() if count)
    most, fullest = 0, dict[str, tuple[Request, Claim]]()
    for moment, coming in _by_moment(arrivals, requests, at_once=at_once):
        gone = [request for end, request in ends if end <= moment]
        ends = [each for each in ends if each[0] > moment]
        for request in gone:
            batch.fleet.release(batch.claims[request.id])
            busy[batch.placed[request.id]] -= 1
            del alive[request.id]
        batch.take_on(tuple(request for request, _end in coming))
        work(batch)
        for request, end in coming:
            if request.id in batch.placed:
                alive[request.id] = request
                busy[batch.placed[request.id]] += 1
                touched.add(batch.placed[request.id])
                if not at_once and end is not None:
                    ends.append((end, request))
        hosts_used = max(hosts_used, sum(1 for count in busy.values() if count))
        if len(alive) > most:
            most = len(alive)
            fullest = {name: (request, batch.claims[name]) for name, request in alive.items()}
    rejected = [request.id for request in requests if request.id not in batch.placed]
    return {
        "schema_version": SCHEMA_VERSION,
        "policy": rules.name,
        "machines": len(requests),
        "machines_at_once": most,
        "hosts": len(snapshot.hosts),
        "hosts_used": hosts_used,
        "hosts_touched": len(touched),
        "rejected": [{"request": name, "text": batch.explanations[name]["text"]} for name in rejected],
        "fullest": plain_state(_standing_with(snapshot, fullest)),
        "summary": (
            f"{counted(len(requests), 'machine')} by {rules.name}: at most {most} at one time, "
            f"on {counted(hosts_used, 'host')}; {len(rejected)} rejected"
        ),
    }


def _by_moment(
    arrivals: Sequence[Arrival], requests: Sequence[Request], *, at_once: bool
) -> Iterator[tuple[float, list[tuple[Request, float | None]]]]:
    """Go through the moments at which machines come; who would be gone before it came is not among them."""
    timed = [
        (-inf if at_once or arrival.start is None else arrival.start, request, arrival.end)
        for arrival, request in zip(arrivals, requests, strict=True)
    ]
    timed.sort(key=lambda each: each[0])
    for moment, group in groupby(timed, key=lambda each: each[0]):
        yield moment, [(request, end) for _moment, request, end in group]


def _standing_with(state: State, machines: Mapping[str, tuple[Request, Claim]]) -> State:
    standing = Standing(state)
    for request, claim in machines.values():
        standing.add(request, claim)
    return as_it_stands(standing)


def replay_loads(
    loads: Mapping[str, Sequence[float]], step_seconds: float, policy: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make each machine larger or smaller as its load says, asking `scale` at every sample, and count the flaps.

    A flap is an action within an hour of the one before. `slowest_seconds` is the longest that a load over the upper
    limit waited for its action. The load itself does not change by it: the trace is what it is. Raises SchemaError.
    """
    rules = {**PATIENT_SCALING, **(policy or {})}
    high = min(rules["up_percent"], rules["up_now_percent"], rules["force_percent"])
    low = max(rules["down_percent"], rules["down_now_percent"])
    window = int(max(rules["up_seconds"], rules["down_seconds"]) // step_seconds) + 1
    actions = flaps = 0
    slowest = 0.0
    for name, load in loads.items():
        large, last, hot_since = False, None, None
        for at, value in enumerate(load):
            now = at * step_seconds
            hot_since = (now if hot_since is None else hot_since) if value >= high else None
            # All other loads would be answered `none`.
            if not (value <= low if large else value >= high):
                continue
            samples = [
                {"time": back * step_seconds, "values": {"cpu": load[back]}}
                for back in range(max(0, at - window), at + 1)
            ]
            history: dict[str, Any] = {"now": now, "subject": name, "samples": samples}
            if last is not None:
                history["last_action"] = {"action": last[0], "time": last[1]}
            action = scale(history, rules)["action"]
            if action not in (("ask_down",) if large else ("ask_up", "force_up")):
                continue
            actions += 1
            flaps += last is not None and now - last[1] <= HOUR_SECONDS
            if not large and hot_since is not None:
                slowest = max(slowest, now - hot_since)
            large = not large
            last = ("up" if large else "down", now)
    return {
        "schema_version": SCHEMA_VERSION,
        "machines": len(loads),
        "samples": max((len(load) for load in loads.values()), default=0),
        "actions": actions,
        "flaps": flaps,
        "slowest_seconds": slowest,
        "summary": (
            f"{counted(len(loads), 'machine')}: {actions} times resized, {flaps} of them within an hour of the last; "
            f"an overload waited {slowest / 60:.0f} min at most"
        ),
    }
