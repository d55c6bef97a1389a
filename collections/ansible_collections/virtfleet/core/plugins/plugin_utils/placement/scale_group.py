# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many machines a group needs: by its mean CPU (S4.5-S4.8), or by the change of its request rate (S5.9, C8).

Pure: the same history and rules decide the same. What nobody measures is unknown, never 0, and never acted on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, natural
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale_history import (
    LARGEST_TIME,
    Sample,
    decision,
    held_for,
    read_last_action,
    read_now,
    read_samples,
)


@dataclass(frozen=True, slots=True)
class _Member:
    """A machine of a group: idle, busy, booting, shut_off or error, since a moment."""

    id: str
    state: str
    since: float


MEMBER_STATES = ("idle", "busy", "booting", "shut_off", "error")


def _members(past: Door) -> list[_Member]:
    members = []
    for value, path in past.items("members"):
        door = Door(value, path)
        members.append(
            _Member(
                id=door.text("id"),
                state=door.choice("state", MEMBER_STATES, "busy"),
                since=door.number("since", 0.0, least=-LARGEST_TIME, most=LARGEST_TIME),
            )
        )
        door.done()
    return sorted(members, key=lambda member: natural(member.id))


@dataclass(frozen=True, slots=True)
class _GroupRules:
    least: int
    most: int
    cooldown: float
    boot_timeout: float
    victim: str


def _group_rules(rules: Door) -> _GroupRules:
    least = rules.integer("min", 1, least=1)
    most = rules.integer("max", 10, least=1)
    if most < least:
        raise rules.fail("max", f"at least min, {least}, is wanted, not {most}")
    return _GroupRules(
        least=least,
        most=most,
        cooldown=rules.number("cooldown_seconds", 300.0),
        boot_timeout=rules.number("boot_timeout_seconds", 300.0),
        victim=rules.choice("victim", ("newest", "oldest"), "newest"),
    )


def _before_any(
    kind: str, members: list[_Member], rules: _GroupRules, now: float, last: tuple[str, float] | None
) -> dict[str, Any] | None:
    """Return what is decided before any metric is looked at: broken or starting members, their number, cooldown."""
    for member in members:
        late = member.state == "booting" and now - member.since > rules.boot_timeout
        if member.state == "error" or late:
            why = f"did not come up within {rules.boot_timeout:g} s" if late else "is in error"
            return decision(kind, "replace", f"{member.id} {why}", member=member.id)
    running = [member for member in members if member.state != "shut_off"]
    if len(running) < rules.least:
        return decision(
            kind, "up", f"{len(running)} members run, at least {rules.least} must", member=_dormant(members)
        )
    if len(running) > rules.most:
        victim = _victim(running, rules, idle_only=False)
        return decision(kind, "down", f"{len(running)} members run, at most {rules.most} may", member=victim)
    booting = [member for member in running if member.state == "booting"]
    if booting:
        return decision(kind, "none", f"{booting[0].id} is starting: waiting for it", member=None)
    if last is not None and now - last[1] < rules.cooldown:
        left = rules.cooldown - (now - last[1])
        return decision(
            kind, "none", f"{last[0]} was {now - last[1]:.0f} s ago: waiting {left:.0f} s more", member=None
        )
    return None


def _dormant(members: list[_Member]) -> str | None:
    """Return a stopped member that can be started instead of making a new one (S4.7, C14: members only)."""
    return next((member.id for member in members if member.state == "shut_off"), None)


def _victim(running: list[_Member], rules: _GroupRules, *, idle_only: bool) -> str | None:
    """Return the member to stop: never the first made (S5.8), idle ones before busy ones."""
    oldest_first = sorted(running, key=lambda member: (member.since, natural(member.id)))
    choice = oldest_first[1:]
    if rules.victim == "newest":
        choice.reverse()
    idle = [member for member in choice if member.state == "idle"]
    if idle:
        return idle[0].id
    return choice[0].id if choice and not idle_only else None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a metric says about a group."""

    action: str
    text: str
    member: str | None = None


def group_cpu(past: Door, rules_door: Door) -> dict[str, Any]:
    """S4.5-S4.8: up when the mean was over the threshold for the whole window; down when the rest could carry the load.

    S4's down rule (threshold - mean) * n > threshold says: mean * n / (n - 1) < threshold. Its border is the same load
    as the up rule's, so noise on it flaps; hence a margin and a cooldown.
    """
    kind = "group_cpu"
    rules = _group_rules(rules_door)
    limits = _CpuLimits(
        up=rules_door.number("up_percent", 80.0),
        window=rules_door.number("window_seconds", 120.0),
        margin=rules_door.number("margin_percent", 15.0),
    )
    now = read_now(past)
    members = _members(past)
    samples = read_samples(past, now)
    early = _before_any(kind, members, rules, now, read_last_action(past))
    if early is not None:
        return early
    running = [member for member in members if member.state != "shut_off"]
    lows, highs = _means(samples, running)
    recent = [each for each in lows if "cpu" in each.values and each.time >= now - limits.window]
    if not recent or recent[-1] is not lows[-1]:
        verdict = _Verdict("none", "the CPU load is unknown: nobody measured it, so nothing is done")
    else:
        verdict = _cpu_up(lows, members, rules, limits, now=now) or _cpu_down(highs, running, rules, limits, now=now)
        unknown = [member.id for member in running if member.id not in samples[-1].values]
        if unknown:
            verdict = replace(verdict, text=f"{verdict.text}; the load of {', '.join(unknown)} is unknown")
    return decision(kind, verdict.action, verdict.text, member=verdict.member)


def _means(samples: list[Sample], running: list[_Member]) -> tuple[list[Sample], list[Sample]]:
    """Return the least and the most that the members' mean can have been at each sample, percent of their own vCPUs.

    The two differ where a member was not measured: it may have been idle, or busy.
    """
    lows, highs = [], []
    for sample in samples:
        known = [sample.values[member.id] for member in running if member.id in sample.values]
        missing = len(running) - len(known)
        lows.append(Sample(sample.time, {"cpu": sum(known) / len(running)} if known else {}))
        highs.append(Sample(sample.time, {"cpu": (sum(known) + 100.0 * missing) / len(running)} if known else {}))
    return lows, highs


def _mean(means: list[Sample], since: float) -> float:
    recent = [each.values["cpu"] for each in means if "cpu" in each.values and each.time >= since]
    return sum(recent) / len(recent)


@dataclass(frozen=True, slots=True)
class _CpuLimits:
    up: float
    window: float
    margin: float


def _cpu_up(
    means: list[Sample], members: list[_Member], rules: _GroupRules, limits: _CpuLimits, *, now: float
) -> _Verdict | None:
    if not held_for(means, "cpu", now, limits.window, lambda each: each > limits.up, gap=limits.window):
        return None
    text = f"CPU over {limits.up:g} % for {limits.window:g} s, mean {_mean(means, now - limits.window):.0f} %"
    count = sum(1 for member in members if member.state != "shut_off")
    if count >= rules.most:
        return _Verdict("none", f"{text}, but {count} members run already, the most allowed")
    return _Verdict("up", text, _dormant(members))


def _cpu_down(
    means: list[Sample], running: list[_Member], rules: _GroupRules, limits: _CpuLimits, *, now: float
) -> _Verdict:
    count, mean = len(running), _mean(means, now - limits.window)
    if count <= rules.least:
        return _Verdict("none", f"CPU {mean:.0f} %, and {count} members are the fewest allowed")
    limit = limits.up - limits.margin
    rest = mean * count / (count - 1)
    if not held_for(
        means, "cpu", now, limits.window, lambda each: each * count / (count - 1) < limit, gap=limits.window
    ):
        return _Verdict("none", f"CPU {mean:.0f} %; one member less would mean {rest:.0f} %")
    text = f"{count - 1} members could carry the load at {rest:.0f} %, under {limit:g} %"
    victim = _victim(running, rules, idle_only=True)
    if victim is None:
        return _Verdict("none", f"{text}, but none is idle: drain one first")
    return _Verdict("down", text, victim)


def group_requests(past: Door, rules_door: Door) -> dict[str, Any]:
    """S5.9 as the diagram has it (C8), looked at every two minutes. The rate is the sum over all members.

    Up when the rate grew by 20 % from at least 8.5/s, down when it fell by 20 % from at least 9.7/s.
    """
    kind = "group_requests"
    rules = _group_rules(rules_door)
    limits = _RateLimits(
        interval=rules_door.number("interval_seconds", 120.0, least=1.0),
        up_floor=rules_door.number("up_floor", 8.5),
        up_ratio=rules_door.number("up_ratio", 1.2),
        down_floor=rules_door.number("down_floor", 9.7),
        down_ratio=rules_door.number("down_ratio", 0.8),
    )
    now = read_now(past)
    members = _members(past)
    samples = read_samples(past, now)
    early = _before_any(kind, members, rules, now, read_last_action(past))
    if early is not None:
        return early
    last = samples[-1] if samples and "requests" in samples[-1].values else None
    before = None
    if last is not None:
        before = next((each for each in reversed(samples) if each.time <= last.time - limits.interval), None)
    if last is None or now - last.time > limits.interval:
        verdict = _Verdict("none", "the request rate is unknown: nobody measured it, so nothing is done")
    elif before is None or last.time - before.time > 2 * limits.interval or "requests" not in before.values:
        verdict = _Verdict("none", f"there is no request rate of {limits.interval:g} s ago to compare with")
    else:
        verdict = _rate_verdict(before, last, members, rules, limits)
    return decision(kind, verdict.action, verdict.text, member=verdict.member)


@dataclass(frozen=True, slots=True)
class _RateLimits:
    interval: float
    up_floor: float
    up_ratio: float
    down_floor: float
    down_ratio: float


def _rate_verdict(
    before: Sample, last: Sample, members: list[_Member], rules: _GroupRules, limits: _RateLimits
) -> _Verdict:
    was, rate = before.values["requests"], last.values["requests"]
    change = f"{was:g}/s to {rate:g}/s in {last.time - before.time:.0f} s"
    running = [member for member in members if member.state != "shut_off"]
    if was >= limits.up_floor and rate >= limits.up_ratio * was:
        if len(running) < rules.most:
            return _Verdict("up", f"requests rose from {change}", _dormant(members))
        return _Verdict("none", f"requests rose from {change}, but {len(running)} members are the most allowed")
    if was >= limits.down_floor and rate <= limits.down_ratio * was:
        if len(running) > rules.least:
            return _Verdict("down", f"requests fell from {change}", _victim(running, rules, idle_only=False))
        return _Verdict("none", f"requests fell from {change}, but {len(running)} members are the fewest allowed")
    return _Verdict("none", f"requests went from {change}: no change that counts")
