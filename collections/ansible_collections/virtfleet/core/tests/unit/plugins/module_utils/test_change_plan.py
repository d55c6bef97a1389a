# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.plan import LIVE, NEXT_BOOT, RECREATE, compare, update


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


def effect_of(name: str, now: Any, wanted: Any) -> str:
    return {"hot": LIVE, "anew": RECREATE}.get(name, NEXT_BOOT)


@pytest.mark.parametrize(
    ("wanted", "kept", "live", "changes", "pending"),
    [
        pytest.param({}, {"hot": 1}, {"hot": 2}, [], [], id="what nobody named is left"),
        pytest.param({"hot": 1}, {"hot": 1}, {"hot": 1}, [], [], id="nothing differs"),
        pytest.param({"cold": 2}, {"cold": 1}, None, [("cold", 1, 2, NEXT_BOOT)], [], id="stopped"),
        pytest.param({"cold": 2}, {"cold": 1}, {"cold": 1}, [("cold", 1, 2, NEXT_BOOT)], [], id="running"),
        pytest.param({"cold": 2}, {"cold": 2}, {"cold": 1}, [], [("cold", 1, 2, NEXT_BOOT)], id="waiting for a boot"),
        pytest.param({"cold": 2}, {"cold": 1}, {"cold": 2}, [("cold", 1, 2, LIVE)], [], id="it runs so already"),
        pytest.param({"cold": 2}, {"cold": 1}, {}, [("cold", 1, 2, NEXT_BOOT)], [], id="live value not known"),
        pytest.param({"cold": 2}, {"cold": 2}, {}, [], [], id="live value not known, kept as wanted"),
        pytest.param({"hot": 2}, {"hot": 1}, {"hot": 1}, [("hot", 1, 2, LIVE)], [], id="hot"),
        pytest.param({"hot": 2}, {"hot": 2}, {"hot": 1}, [("hot", 1, 2, LIVE)], [], id="hot, only live differs"),
        pytest.param({"hot": 2}, None, {"hot": 1}, [("hot", 1, 2, LIVE)], [], id="transient"),
        pytest.param(
            {"cold": {"a": 1, "b": 3}},
            {"cold": {"a": 1, "b": 2}},
            {"cold": {"a": 0, "b": 2}},
            [("cold.b", 2, 3, NEXT_BOOT)],
            [("cold.a", 0, 1, NEXT_BOOT)],
            id="parts one by one",
        ),
    ],
)
def test_an_update_is_what_leads_both_definitions_to_what_is_wanted(
    wanted: dict[str, Any],
    kept: dict[str, Any] | None,
    live: dict[str, Any] | None,
    changes: list[tuple[str, Any, Any, str]],
    pending: list[tuple[str, Any, Any, str]],
) -> None:
    found = update(wanted, kept, live, effect_of)
    assert [(c.what, c.before, c.after, c.effect) for c in found.changes] == changes
    assert [(c.what, c.before, c.after, c.effect) for c in found.pending] == pending
    assert found.changed == bool(changes)
    assert [c.what for c in found.next_boot] == [c[0] for c in changes if c[3] == NEXT_BOOT] + [c[0] for c in pending]
    assert found.cycled().changes == (*found.changes, *found.pending)


def test_what_only_a_new_thing_could_have_is_told_and_not_done() -> None:
    found = update({"anew": 2, "hot": 2}, {"anew": 1, "hot": 1}, None, effect_of)
    assert [change.what for change in found.beyond] == ["anew"]
    assert found.names() == ["hot"]
    assert [entry["effect"] for entry in found.as_list()] == [LIVE, RECREATE]
