# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making one machine larger or smaller, or moving the machine that loads a host (S2.12-S2.17, C3).

Pure: the same history and limits decide the same. Every metric that leads to nothing says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, natural
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale_history import (
    Sample,
    decision,
    held_for,
    read_last_action,
    read_now,
    read_samples,
)

METRICS = ("cpu", "memory", "disk", "io")
SUBJECTS = ("vm", "host")
URGENCY = {"force_up": 0, "ask_up": 1, "ask_down": 2, "none": 3}


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
    """What is known of a machine or host until now. `agreed`: metrics that may be raised by force, with room left.

    `acted`: when the last action was taken; what was measured before it says nothing about after.
    """

    now: float
    kind: str
    samples: list[Sample]
    agreed: frozenset[str]
    stale: float
    acted: float | None

    def held(self, metric: str, seconds: float, test: Callable[[float], bool]) -> bool:
        return held_for(self.samples, metric, self.now, seconds, test, gap=self.stale)


def resize(past: Door, rules: Door) -> dict[str, Any]:
    """Decide about one machine or host. Raises SchemaError."""
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
    now = read_now(past)
    subject = past.text("subject")
    kind = past.choice("subject_kind", SUBJECTS, "vm")
    samples = read_samples(past, now)
    last = read_last_action(past)
    waiting = past.truth("asked", False)
    # A metric may be raised by force only up to the limit its owner agreed to, and while something is left of it.
    agreed = frozenset(past.texts("room_agreed"))
    known = _Past(now, kind, samples, agreed, limits.stale, None if last is None else last[1])
    cramped = frozenset(past.texts("host_full"))
    machines = _machines(past)
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
    metric = best["metric"] if action != "none" else None
    means, machine = ("resize", None) if kind == "vm" else ("migrate", None)
    if metric is not None and kind == "host":
        machine, cause = _cause(machines, metric)
        text += f"; {cause}"
    elif metric in cramped and action != "ask_down":
        means = "migrate_and_resize"
        text += "; its host has no room for more, so it has to move first"
    return decision(
        "resize",
        action,
        f"{subject}: {text}",
        subject=subject,
        subject_kind=kind,
        # Machines ask their owner, hosts the administrator: there it means moving the machine that causes the peak.
        ask=("owner" if kind == "vm" else "admin") if action.startswith("ask") else None,
        means=means,
        metric=metric,
        machine=machine,
        metrics=findings,
    )


def _machines(past: Door) -> list[tuple[str, dict[str, float]]]:
    """Return the machines of a host with what each takes of the host, in percent."""
    machines = []
    for value, path in past.items("machines"):
        door = Door(value, path)
        values = door.door("values")
        known = {metric: values.number_or_none(metric) for metric in METRICS}
        values.done()
        machines.append((door.text("id"), {name: each for name, each in known.items() if each is not None}))
        door.done()
    return machines


def _cause(machines: list[tuple[str, dict[str, float]]], metric: str) -> tuple[str | None, str]:
    """Return the machine that takes most of its host (S2.15), and that as a sentence."""
    known = [(values[metric], name) for name, values in machines if metric in values]
    if not known:
        return None, f"which machine causes it is unknown: nobody measures their {metric}"
    most, name = min(known, key=lambda each: (-each[0], natural(each[1])))
    return name, f"{name} takes most of it, {most:g} %"


def _finding(past: _Past, metric: str, limits: _Limits) -> dict[str, Any]:
    """Return what one metric asks for, and why."""
    last = past.samples[-1] if past.samples else None
    value = last.values.get(metric) if last is not None else None
    if last is None or value is None:
        action, text = "none", "is unknown: nobody measures it, so it is not acted on"
    elif past.now - last.time > limits.stale:
        action, text = "none", f"was last measured {past.now - last.time:.0f} s ago: too old to act on"
    elif past.acted is not None and last.time < past.acted:
        action, text = "none", f"at {value:g} %, measured before the last action"
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
    if past.kind == "vm" and metric == "io":
        return "none", f"at {value:g} %, but no rule makes a machine's I/O larger"
    if value >= limits.force and (past.kind == "host" or metric in past.agreed):
        return "force_up", f"at {value:g} %, at or over {limits.force:g} %: acted on without asking, within the limit"
    if value >= limits.force:
        return "ask_up", f"at {value:g} %, but no limit was agreed that would allow to act without asking"
    if value >= limits.up_now:
        return "ask_up", f"at {value:g} %, at or over {limits.up_now:g} %"
    return "ask_up", f"at or over {limits.up:g} % for {limits.up_seconds:g} s"
