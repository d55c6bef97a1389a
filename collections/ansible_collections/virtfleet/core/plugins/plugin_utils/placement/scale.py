# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scaling decisions as pure state machines over a history of samples: the same history and policy decide the same.

Three kinds. `resize` makes one machine larger or smaller, or moves the machine that loads a host (S2.12-S2.17, C3).
`group_cpu` adds machines to a group by its mean CPU (S4.5-S4.8). `group_requests` does so by the change of its request
rate (S5.9, C8). A metric without a source is unknown: never 0, never acted on. Every metric that leads to nothing says
why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, natural
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION

METRICS = ("cpu", "memory", "disk", "io")
KINDS = ("resize", "group_cpu", "group_requests")
SUBJECTS = ("vm", "host")
LARGEST_TIME = 1e12
URGENCY = {"force_up": 0, "ask_up": 1, "ask_down": 2, "none": 3}


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment (seconds, any epoch). A metric that is not there is unknown."""

    time: float
    values: dict[str, float]


def _samples(door: Door, key: str = "samples") -> list[Sample]:
    samples = []
    for value, path in door.items(key):
        inner = Door(value, path)
        values = {}
        time = inner.number("time", least=-LARGEST_TIME, most=LARGEST_TIME)
        for metric, _raw, _where in inner.entries("values"):
            number = inner.door("values").number_or_none(metric)
            if number is not None:
                values[metric] = number
        inner.done()
        samples.append(Sample(time, values))
    return sorted(samples, key=lambda sample: sample.time)


def _last_action(door: Door) -> tuple[str, float] | None:
    if not door.has("last_action"):
        return None
    inner = door.door("last_action")
    action = inner.text("action")
    time = inner.number("time", least=-LARGEST_TIME, most=LARGEST_TIME)
    inner.done()
    return action, time


def held_for(samples: list[Sample], metric: str, now: float, seconds: float, test: Callable[[float], bool]) -> bool:
    """Tell whether a metric passed a test over the whole of a window that ends now.

    The window must be covered: a sample at its start or before it, and no sample in between without the metric.
    """
    for sample in reversed(samples):
        if sample.time > now:
            continue
        if metric not in sample.values or not test(sample.values[metric]):
            return False
        if sample.time <= now - seconds:
            return True
    return False


def _decision(kind: str, action: str, text: str, **more: Any) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "kind": kind, "action": action, "text": text, **more}


def scale(history: object, policy: object) -> dict[str, Any]:
    """Decide whether to scale. `policy.kind` is one of `resize`, `group_cpu`, `group_requests`.

    The answer's `action` is `none`, `ask_up`, `force_up` or `ask_down` for `resize`, and `none`, `up`, `down` or
    `replace` for the groups. Raises SchemaError naming the field that is wrong.
    """
    rules = Door(policy, "policy")
    kind = rules.choice("kind", KINDS, "resize")
    past = Door(history, "history")
    if kind == "resize":
        decision = _resize(past, rules)
    elif kind == "group_cpu":
        decision = _group_cpu(past, rules)
    else:
        decision = _group_requests(past, rules)
    past.done()
    rules.done()
    return decision


@dataclass(frozen=True, slots=True)
class _Limits:
    """C3: up at 80 % for 10 min (ask), at 90 % at once (ask), at 95 % by force; down at 10 % for 10 min or 0 %.

    A limit over 100, or a negative `down_now`, is never reached: so a step is left out.
    """

    up: float
    up_seconds: float
    up_now: float
    force: float
    down: float
    down_seconds: float
    down_now: float
    cooldown: float
    stale: float


@dataclass(frozen=True, slots=True)
class _Past:
    """What is known of a machine or host until now. `agreed`: metrics that may be raised by force, with room left."""

    now: float
    kind: str
    samples: list[Sample]
    agreed: frozenset[str]

    def held(self, metric: str, seconds: float, test: Callable[[float], bool]) -> bool:
        return held_for(self.samples, metric, self.now, seconds, test)


def _resize(past: Door, rules: Door) -> dict[str, Any]:
    limits = _Limits(
        up=rules.number("up_percent", 80.0),
        up_seconds=rules.number("up_seconds", 600.0),
        up_now=rules.number("up_now_percent", 90.0),
        force=rules.number("force_percent", 95.0),
        down=rules.number("down_percent", 10.0),
        down_seconds=rules.number("down_seconds", 600.0),
        down_now=rules.number("down_now_percent", 0.0, least=-1.0),
        cooldown=rules.number("cooldown_seconds", 600.0),
        stale=rules.number("stale_seconds", 120.0),
    )
    now = past.number("now", least=-LARGEST_TIME, most=LARGEST_TIME)
    subject = past.text("subject")
    kind = past.choice("subject_kind", SUBJECTS, "vm")
    samples = [sample for sample in _samples(past) if sample.time <= now]
    last = _last_action(past)
    waiting = past.truth("asked", False)
    # A metric may be raised by force only up to the limit its owner agreed to, and while something is left of it.
    known = _Past(now, kind, samples, frozenset(past.texts("room_agreed")))
    findings = [_finding(known, metric, limits) for metric in METRICS]
    best = min(findings, key=lambda finding: URGENCY[finding["action"]])
    action, text = best["action"], best["text"]
    # An overload right after making something smaller must not wait; everything else does.
    cooling = last is not None and now - last[1] < limits.cooldown and (action == "ask_down" or last[0] != "down")
    if action in ("ask_up", "ask_down") and last is not None and cooling:
        left = limits.cooldown - (now - last[1])
        action, text = "none", f"{text}, but {last[0]} was {now - last[1]:.0f} s ago; waiting {left:.0f} s more"
    elif action in ("ask_up", "ask_down") and waiting:
        action, text = "none", f"{text}; asked already, the answer is still out"
    elif action == "none":
        text = "; ".join(finding["text"] for finding in findings)
    return _decision(
        "resize",
        action,
        f"{subject}: {text}",
        subject=subject,
        subject_kind=kind,
        # Machines ask their owner, hosts the administrator: there it means moving the machine that causes the peak.
        ask=("owner" if kind == "vm" else "admin") if action.startswith("ask") else None,
        means="resize" if kind == "vm" else "migrate",
        metric=best["metric"] if action != "none" else None,
        metrics=findings,
    )


def _finding(past: _Past, metric: str, limits: _Limits) -> dict[str, Any]:
    """Return what one metric asks for, and why."""
    last = past.samples[-1] if past.samples else None
    value = last.values.get(metric) if last is not None else None
    if last is None or value is None:
        action, text = "none", "is unknown: nobody measures it, so it is not acted on"
    elif past.now - last.time > limits.stale:
        action, text = "none", f"was last measured {past.now - last.time:.0f} s ago: too old to act on"
    elif value >= limits.up_now or past.held(metric, limits.up_seconds, lambda each: each >= limits.up):
        action, text = _upward(metric, value, limits, past)
    elif value <= limits.down_now or past.held(metric, limits.down_seconds, lambda each: each <= limits.down):
        action, text = _downward(metric, value, limits, past)
    elif value >= limits.up:
        action, text = "none", f"at {value:g} %, but not yet for {limits.up_seconds:g} s"
    elif value <= limits.down:
        action, text = "none", f"at {value:g} %, but not yet for {limits.down_seconds:g} s"
    else:
        action, text = "none", f"at {value:g} %, between {limits.down:g} and {limits.up:g} %"
    return {"metric": metric, "action": action, "value": value, "text": f"{metric} {text}"}


def _downward(metric: str, value: float, limits: _Limits, past: _Past) -> tuple[str, str]:
    low = f"at {value:g} %"
    if value > limits.down_now:
        low = f"at or under {limits.down:g} % for {limits.down_seconds:g} s"
    if past.kind == "host":
        return "none", f"{low}: a host is not scaled down here, consolidate plans that"
    if metric not in ("cpu", "memory"):
        return "none", f"{low}, but only CPU and memory are made smaller: a disk cannot shrink safely"
    return "ask_down", low


def _upward(metric: str, value: float, limits: _Limits, past: _Past) -> tuple[str, str]:
    if value >= limits.force and (past.kind == "host" or metric in past.agreed):
        return "force_up", f"at {value:g} %, at or over {limits.force:g} %: acted on without asking, within the limit"
    if value >= limits.force:
        return "ask_up", f"at {value:g} %, but no limit was agreed that would allow to act without asking"
    if value >= limits.up_now:
        return "ask_up", f"at {value:g} %, at or over {limits.up_now:g} %"
    return "ask_up", f"at or over {limits.up:g} % for {limits.up_seconds:g} s"


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
            return _decision(kind, "replace", f"{member.id} {why}", member=member.id)
    running = [member for member in members if member.state != "shut_off"]
    if len(running) < rules.least:
        return _decision(
            kind, "up", f"{len(running)} members run, at least {rules.least} must", member=_dormant(members)
        )
    if len(running) > rules.most:
        victim = _victim(running, rules, idle_only=False)
        return _decision(kind, "down", f"{len(running)} members run, at most {rules.most} may", member=victim)
    booting = [member for member in running if member.state == "booting"]
    if booting:
        return _decision(kind, "none", f"{booting[0].id} is starting: waiting for it", member=None)
    if last is not None and now - last[1] < rules.cooldown:
        left = rules.cooldown - (now - last[1])
        return _decision(
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


def _group_cpu(past: Door, rules_door: Door) -> dict[str, Any]:
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
    now = past.number("now", least=-LARGEST_TIME, most=LARGEST_TIME)
    members = _members(past)
    samples = [sample for sample in _samples(past) if sample.time <= now]
    early = _before_any(kind, members, rules, now, _last_action(past))
    if early is not None:
        return early
    running = [member for member in members if member.state != "shut_off"]
    # One mean a sample, over the members that were measured (percent of their own vCPUs).
    means = []
    for sample in samples:
        known = [sample.values[member.id] for member in running if member.id in sample.values]
        means.append(Sample(sample.time, {"cpu": sum(known) / len(known)} if known else {}))
    recent = [each.values["cpu"] for each in means if "cpu" in each.values and each.time >= now - limits.window]
    if not recent or "cpu" not in means[-1].values:
        verdict = _Verdict("none", "the CPU load is unknown: nobody measured it, so nothing is done")
    else:
        mean = sum(recent) / len(recent)
        verdict = _cpu_up(means, mean, members, rules, limits, now=now) or _cpu_down(
            means, mean, running, rules, limits, now=now
        )
    return _decision(kind, verdict.action, verdict.text, member=verdict.member)


@dataclass(frozen=True, slots=True)
class _CpuLimits:
    up: float
    window: float
    margin: float


def _cpu_up(
    means: list[Sample], mean: float, members: list[_Member], rules: _GroupRules, limits: _CpuLimits, *, now: float
) -> _Verdict | None:
    if not held_for(means, "cpu", now, limits.window, lambda each: each > limits.up):
        return None
    text = f"CPU over {limits.up:g} % for {limits.window:g} s, mean {mean:.0f} %"
    count = sum(1 for member in members if member.state != "shut_off")
    if count >= rules.most:
        return _Verdict("none", f"{text}, but {count} members run already, the most allowed")
    return _Verdict("up", text, _dormant(members))


def _cpu_down(
    means: list[Sample], mean: float, running: list[_Member], rules: _GroupRules, limits: _CpuLimits, *, now: float
) -> _Verdict:
    count = len(running)
    if count <= rules.least:
        return _Verdict("none", f"CPU {mean:.0f} %, and {count} members are the fewest allowed")
    limit = limits.up - limits.margin
    rest = mean * count / (count - 1)
    if not held_for(means, "cpu", now, limits.window, lambda each: each * count / (count - 1) < limit):
        return _Verdict("none", f"CPU {mean:.0f} %; one member less would mean {rest:.0f} %")
    text = f"{count - 1} members could carry the load at {rest:.0f} %, under {limit:g} %"
    victim = _victim(running, rules, idle_only=True)
    if victim is None:
        return _Verdict("none", f"{text}, but none is idle: drain one first")
    return _Verdict("down", text, victim)


def _group_requests(past: Door, rules_door: Door) -> dict[str, Any]:
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
    now = past.number("now", least=-LARGEST_TIME, most=LARGEST_TIME)
    members = _members(past)
    samples = [sample for sample in _samples(past) if sample.time <= now]
    early = _before_any(kind, members, rules, now, _last_action(past))
    if early is not None:
        return early
    last = samples[-1] if samples and "requests" in samples[-1].values else None
    before = None
    if last is not None:
        before = next((each for each in reversed(samples) if each.time <= last.time - limits.interval), None)
    if last is None:
        verdict = _Verdict("none", "the request rate is unknown: nobody measured it, so nothing is done")
    elif before is None or "requests" not in before.values:
        verdict = _Verdict("none", f"there is no request rate of {limits.interval:g} s ago to compare with")
    else:
        verdict = _rate_verdict(before, last, members, rules, limits)
    return _decision(kind, verdict.action, verdict.text, member=verdict.member)


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
