# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions and plans as lines that people read."""

from __future__ import annotations

from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door, SchemaError

NEXT_BEST = 3
"""How many alternatives a line names."""


def explain(result: object) -> list[str]:
    """Return a decision of `place`, a plan, or any other answer of this library as lines, the summary first.

    Raises SchemaError when it is none of them.
    """
    door = Door(result, "result")
    summary = door.raw("summary") or door.raw("text")
    if not isinstance(summary, str):
        raise SchemaError("result", "an answer of this library is wanted; it has a summary or a text")
    lines = [summary]
    for value, path in [*door.items("placements"), *door.items("unplaced")]:
        inner = Door(value, path)
        lines += _explanation(inner.door("explanation"), inner.text_or_none("host"))
    last = None
    for value, path in door.items("moves"):
        inner = Door(value, path)
        batch = inner.integer("batch", 0)
        if batch != last:
            lines.append(f"batch {batch + 1}:")
            last = batch
        lines.append(f"  {inner.raw('text')}")
    lines += [f"left: {Door(value, path).raw('text')}" for value, path in door.items("left")]
    lines += [f"homeless: {Door(value, path).raw('text')}" for value, path in door.items("homeless")]
    lines += [f"  {Door(value, path).raw('text')}" for value, path in door.items("metrics")]
    for value, path in door.items("flavors"):
        inner = Door(value, path)
        lines.append(f"{inner.raw('text')}" + (f"; then {limit}" if (limit := inner.raw("limit")) else ""))
    return lines


def _explanation(why: Door, host: str | None) -> list[str]:
    text = why.raw("text")
    lines = [str(text)]
    ranked: list[Any] = why.raw("ranked") or []
    for each in [each for each in ranked if each["host"] != host][:NEXT_BEST]:
        terms = " + ".join(f"{name} {value:.3f}" for name, value in each["terms"].items())
        lines.append(f"  next {each['host']}: {each['score']:.3f} = {terms}")
    for group in why.raw("refusals") or []:
        count = len(group["hosts"])
        lines.append(f"  refused {count} ({group['code']}), nearest {group['nearest']['text']}")
    return lines
