# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured of a machine, a host or a group, read from plain data: samples, and whether a load lasted.

A metric that is not in a sample is unknown: never 0, never acted on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION

LARGEST_TIME = 1e12


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment (seconds, any epoch). A metric that is not there is unknown."""

    time: float
    values: dict[str, float]


def read_samples(door: Door, now: float) -> list[Sample]:
    """Return the samples until now, the oldest first. Raises SchemaError."""
    samples = []
    for value, path in door.items("samples"):
        inner = Door(value, path)
        values = {}
        time = inner.number("time", least=-LARGEST_TIME, most=LARGEST_TIME)
        for metric, _raw, _where in inner.entries("values"):
            number = inner.door("values").number_or_none(metric)
            if number is not None:
                values[metric] = number
        inner.done()
        samples.append(Sample(time, values))
    return sorted((sample for sample in samples if sample.time <= now), key=lambda sample: sample.time)


def read_now(door: Door) -> float:
    """Return the moment of the decision. Raises SchemaError."""
    return door.number("now", least=-LARGEST_TIME, most=LARGEST_TIME)


def read_last_action(door: Door) -> tuple[str, float] | None:
    """Return what was done last, and when. Raises SchemaError."""
    if not door.has("last_action"):
        return None
    inner = door.door("last_action")
    action = inner.text("action")
    time = inner.number("time", least=-LARGEST_TIME, most=LARGEST_TIME)
    inner.done()
    return action, time


def held_for(
    samples: list[Sample], metric: str, now: float, seconds: float, test: Callable[[float], bool], *, gap: float
) -> bool:
    """Tell whether a metric passed a test over the whole of a window that ends now.

    The window must be covered: a sample at its start or before it, no sample in between without the metric, and no
    longer than `gap` seconds between two.
    """
    later = now
    for sample in reversed(samples):
        if later - sample.time > gap or metric not in sample.values or not test(sample.values[metric]):
            return False
        if sample.time <= now - seconds:
            return True
        later = sample.time
    return False


def decision(kind: str, action: str, text: str, **more: Any) -> dict[str, Any]:
    """Return a decision as the schema writes it."""
    return {"schema_version": SCHEMA_VERSION, "kind": kind, "action": action, "text": text, **more}
