# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.plan import LIVE, NEXT_BOOT, RECREATE, compare


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (None, None, []),
        ({"a": 1}, {"a": 1}, []),
        (None, {"a": 1}, [("exists", False, True, LIVE)]),
        ({"a": 1}, None, [("exists", True, False, LIVE)]),
        ({"a": 1}, {"a": 2}, [("a", 1, 2, LIVE)]),
        ({"a": 1}, {"a": 1, "b": None}, []),
        ({"a": 1}, {"b": 1}, [("a", 1, None, LIVE), ("b", None, 1, LIVE)]),
        (
            {"m": {"max": 1, "now": 1}},
            {"m": {"max": 2, "now": 2}},
            [("m.max", 1, 2, RECREATE), ("m.now", 1, 2, NEXT_BOOT)],
        ),
        ({"m": None}, {"m": {"max": 2}}, [("m", None, {"max": 2}, NEXT_BOOT)]),
        ({"l": [1, 2]}, {"l": [2, 1]}, [("l", [1, 2], [2, 1], LIVE)]),
    ],
)
def test_the_plan_is_the_difference(
    before: dict[str, Any] | None, after: dict[str, Any] | None, changes: list[tuple[str, Any, Any, str]]
) -> None:
    plan = compare(before, after, {"m": NEXT_BOOT, "m.max": RECREATE})
    assert [(c.what, c.before, c.after, c.effect) for c in plan.changes] == changes
    assert plan.changed == bool(changes)
    assert [entry["what"] for entry in plan.as_list()] == [what for what, *_rest in changes]


def test_a_plan_knows_what_it_touches() -> None:
    plan = compare({"m": {"max": 1}, "maximum": 1}, {"m": {"max": 2}, "maximum": 1}, {"m": RECREATE})
    assert plan.touches("m")
    assert plan.touches("m.max")
    assert not plan.touches("max", "maximum")
    assert [change.what for change in plan.with_effect(RECREATE)] == ["m.max"]
