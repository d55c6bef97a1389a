# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Scaling decisions: when to act, when to ask, when to leave it, and the reason each time."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError, scale

MINUTE = 60.0


def steady(minutes: int, step: float = 30.0, **values: float) -> list[dict[str, Any]]:
    """Return samples of the last minutes, one every half minute, up to time 0."""
    count = int(minutes * MINUTE / step)
    return [{"time": -step * n, "values": dict(values)} for n in range(count + 1)]


def resize(samples: list[dict[str, Any]], policy: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return scale({"now": 0, "subject": "vm1", "samples": samples, **more}, {"kind": "resize", **(policy or {})})


@pytest.mark.parametrize(
    ("samples", "action"),
    [
        (steady(10, cpu=80.0), "ask_up"),
        (steady(9, cpu=80.0), "none"),
        (steady(10, cpu=79.9), "none"),
        (steady(0, cpu=90.0), "ask_up"),
        (steady(0, cpu=89.9), "none"),
        (steady(0, memory=90.0), "ask_up"),
        (steady(0, disk=90.0), "ask_up"),
        (steady(0, cpu=95.0), "ask_up"),
        (steady(10, cpu=10.0), "ask_down"),
        (steady(9, cpu=10.0), "none"),
        (steady(10, cpu=10.1), "none"),
        (steady(0, cpu=0.0), "ask_down"),
        (steady(0, cpu=0.1), "none"),
        (steady(10, memory=10.0), "ask_down"),
        (steady(0, disk=0.0), "none"),
        (steady(10, io=99.0), "none"),
        (steady(10, cpu=50.0), "none"),
        (steady(10, memory=85.0), "ask_up"),
        (steady(10, disk=85.0), "ask_up"),
        (steady(10, disk=1.0), "none"),
        ([], "none"),
    ],
)
def test_the_thresholds_are_those_of_the_decision(samples: list[dict[str, Any]], action: str) -> None:
    """C3: 80 for 10 min ask, 90 ask at once; downward 10 for 10 min, 0 at once; down is never forced."""
    decision = resize(samples)
    assert decision["action"] == action
    assert decision["text"].startswith("vm1: ")
    assert decision["ask"] == ("owner" if action.startswith("ask") else None)


def test_force_is_only_used_within_the_limit_the_owner_agreed_to() -> None:
    assert resize(steady(0, memory=95.0), room_agreed=["memory"])["action"] == "force_up"
    assert resize(steady(0, memory=94.9), room_agreed=["memory"])["action"] == "ask_up"
    assert resize(steady(0, memory=95.0), room_agreed=["cpu"])["action"] == "ask_up"
    assert resize(steady(0, cpu=0.0), room_agreed=["cpu"])["action"] == "ask_down"


def test_a_metric_without_a_source_is_unknown_and_never_acted_on() -> None:
    decision = resize(steady(10, cpu=50.0))
    memory = next(each for each in decision["metrics"] if each["metric"] == "memory")
    assert (memory["action"], memory["value"]) == ("none", None)
    assert "unknown" in memory["text"]
    assert resize(steady(0, cpu=0.0), {"down_now_percent": -1})["action"] == "none"
    hole = steady(10, cpu=85.0)
    hole[5] = {"time": hole[5]["time"], "values": {"cpu": None}}
    assert resize(hole)["action"] == "none"
    assert "too old" in resize([{"time": -300, "values": {"cpu": 99.0}}])["text"]


def test_a_spike_in_the_window_starts_it_anew() -> None:
    samples = steady(10, cpu=85.0)
    samples[4]["values"]["cpu"] = 60.0
    decision = resize(samples)
    assert decision["action"] == "none"
    assert "not yet for 600 s" in decision["text"]


def test_asking_twice_and_acting_twice_is_avoided() -> None:
    assert "asked already" in resize(steady(10, cpu=85.0), asked=True)["text"]
    after = resize(steady(10, cpu=85.0), last_action={"action": "up", "time": -60})
    assert after["action"] == "none"
    assert "waiting 540 s more" in after["text"]
    assert resize(steady(10, cpu=5.0), last_action={"action": "up", "time": -60})["action"] == "none"
    assert resize(steady(10, cpu=5.0), last_action={"action": "down", "time": -60})["action"] == "none"
    # Made smaller a minute ago and overloaded now: that does not wait.
    assert resize(steady(10, cpu=85.0), last_action={"action": "down", "time": -60})["action"] == "ask_up"


def test_a_host_asks_the_administrator_and_is_never_scaled_down() -> None:
    hot = resize(steady(10, cpu=85.0), subject_kind="host")
    assert (hot["action"], hot["ask"], hot["means"]) == ("ask_up", "admin", "migrate")
    assert resize(steady(0, cpu=96.0), subject_kind="host")["action"] == "force_up"
    assert resize(steady(10, cpu=5.0), subject_kind="host")["action"] == "none"


@pytest.mark.parametrize("metric", ["cpu", "memory", "disk", "io"])
def test_a_host_is_judged_by_every_metric_and_the_machine_that_causes_the_peak_is_named(metric: str) -> None:
    """S2.15: find the machine that caused the peak. One that nobody measures is not taken for the cause."""
    machines = [
        {"id": "m10", "values": {metric: 40.0}},
        {"id": "m2", "values": {metric: 40.0}},
        {"id": "m3", "values": {metric: 10.0}},
        {"id": "m4", "values": {}},
    ]
    hot = resize(steady(10, **{metric: 80.0}), subject_kind="host", machines=machines)
    assert (hot["action"], hot["metric"], hot["machine"]) == ("ask_up", metric, "m2")
    assert "m2 takes most of it, 40 %" in hot["text"]
    blind = resize(steady(0, **{metric: 90.0}), subject_kind="host", machines=machines[3:])
    assert (blind["action"], blind["machine"]) == ("ask_up", None)
    assert "which machine causes it is unknown" in blind["text"]
    assert resize(steady(10, **{metric: 79.9}), subject_kind="host", machines=machines)["machine"] is None


def test_a_machine_whose_host_is_full_has_to_move_before_it_grows() -> None:
    """S2.12: scale up "if it can, or else migrate and scale up"."""
    assert resize(steady(0, memory=91.0), host_full=["memory"])["means"] == "migrate_and_resize"
    assert "has to move first" in resize(steady(0, memory=91.0), host_full=["memory"])["text"]
    assert resize(steady(0, memory=91.0), host_full=["cpu"])["means"] == "resize"
    assert resize(steady(0, cpu=0.0), host_full=["cpu"])["means"] == "resize"


def test_time_without_a_measurement_is_no_part_of_a_window() -> None:
    two = [{"time": -600, "values": {"cpu": 85.0}}, {"time": 0, "values": {"cpu": 85.0}}]
    assert resize(two)["action"] == "none"
    assert resize(two, {"stale_seconds": 600})["action"] == "ask_up"


def test_what_was_measured_before_the_last_action_says_nothing_about_after() -> None:
    forced = {"samples": steady(0, cpu=99.0), "room_agreed": ["cpu"]}
    assert (
        "before the last action"
        in scale({"now": 20, "subject": "v", "last_action": {"action": "up", "time": 10}, **forced}, {})["text"]
    )
    again = {"now": 0, "subject": "v", "last_action": {"action": "up", "time": -10}, **forced}
    assert scale(again, {})["action"] == "force_up"


def test_a_disk_is_never_made_smaller_and_the_reason_is_told() -> None:
    assert "cannot shrink" in resize(steady(10, disk=1.0))["text"]


def group(loads: list[float], minutes: int = 5, policy: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    names = [f"m{n}" for n in range(len(loads))]
    members = [{"id": name, "state": "idle" if n else "busy", "since": float(n)} for n, name in enumerate(names)]
    history = {"now": 0, "members": members, "samples": steady(minutes, **dict(zip(names, loads, strict=True))), **more}
    return scale(history, {"kind": "group_cpu", **(policy or {})})


@pytest.mark.parametrize(
    ("loads", "action", "member"),
    [
        ([85.0, 90.0], "up", None),
        ([80.0, 80.0], "none", None),
        ([20.0, 20.0], "down", "m1"),
        ([32.4, 32.4], "down", "m1"),
        ([32.5, 32.5], "none", None),
        ([80.1, 80.1], "up", None),
        ([33.0, 33.0], "none", None),
        ([45.0, 45.0], "none", None),
        ([20.0, 20.0, 20.0], "down", "m2"),
        ([10.0], "none", None),
    ],
)
def test_a_group_grows_when_hot_and_shrinks_when_the_rest_could_carry_it(
    loads: list[float], action: str, member: str | None
) -> None:
    """S4.5-S4.8: mean over 80 % goes up; mean * n / (n - 1) under 80 % less the margin of 15 goes down."""
    decision = group(loads)
    assert (decision["action"], decision["member"]) == (action, member)


def test_a_member_nobody_measures_is_neither_idle_nor_busy() -> None:
    """The mean of the others decides only where it would be the same whatever the unknown one does."""
    members = [{"id": f"m{n}", "state": "idle", "since": float(n)} for n in range(3)]

    def decide(**values: float) -> dict[str, Any]:
        return scale({"now": 0, "members": members, "samples": steady(5, **values)}, {"kind": "group_cpu"})

    assert decide(m0=20.0, m1=20.0, m2=20.0)["action"] == "down"
    idle = decide(m0=20.0, m1=20.0)
    assert (idle["action"], "the load of m2 is unknown" in idle["text"]) == ("none", True)
    assert decide(m0=0.0, m1=0.0)["action"] == "down"
    assert decide(m0=100.0, m1=100.0)["action"] == "none"
    assert decide(m0=100.0, m1=100.0, m2=41.0)["action"] == "up"


def test_a_group_that_was_measured_long_ago_is_left_alone() -> None:
    old = [{"time": -600 - each["time"], "values": {"m0": 99.0}} for each in steady(0)]
    assert "unknown" in group([99.0], samples=old)["text"]
    rate = {
        "now": 0,
        "members": [{"id": "a"}],
        "samples": [{"time": t, "values": {"requests": 9 - t}} for t in (-520, -400)],
    }
    assert "unknown" in scale(rate, {"kind": "group_requests"})["text"]
    rate["samples"] = [{"time": -500, "values": {"requests": 9.0}}, {"time": 0, "values": {"requests": 90.0}}]
    assert "to compare with" in scale(rate, {"kind": "group_requests"})["text"]


def test_a_group_does_not_flap_on_its_own_border() -> None:
    # One at 80.5 % becomes two at 40.25 %; by S4's rule without a margin two at 39.9 % would become one again.
    assert group([80.5])["action"] == "up"
    for noise in (39.0, 40.0, 41.0):
        assert group([noise, noise])["action"] == "none"


def test_a_group_waits_for_what_it_did_last() -> None:
    assert "waiting" in group([99.0], last_action={"action": "up", "time": -10})["text"]
    starting = [{"id": "m0", "state": "busy", "since": 0}, {"id": "m1", "state": "booting", "since": -60}]
    assert "starting" in group([99.0, 0.0], members=starting)["text"]
    stuck = [{"id": "m0", "state": "busy", "since": 0}, {"id": "m1", "state": "booting", "since": -301}]
    decision = group([99.0, 0.0], members=stuck)
    assert (decision["action"], decision["member"]) == ("replace", "m1")


def test_a_group_starts_only_its_own_stopped_members_and_keeps_its_bounds() -> None:
    """C14: S4 booted any inactive domain of the host."""
    members = [{"id": "m0", "state": "busy"}, {"id": "m1", "state": "shut_off"}]
    assert group([99.0, 0.0], members=members)["member"] == "m1"
    assert group([99.0, 99.0], policy={"max": 2})["action"] == "none"
    assert group([1.0, 1.0], policy={"min": 2})["action"] == "none"
    assert group([1.0], policy={"min": 2})["action"] == "up"
    assert group([50.0] * 3, policy={"max": 2})["action"] == "down"
    busy = [{"id": f"m{n}", "state": "busy", "since": n} for n in range(2)]
    assert "none is idle" in group([5.0, 5.0], members=busy)["text"]


def test_a_group_without_measurements_is_left_alone() -> None:
    history = {"now": 0, "members": [{"id": "m0"}, {"id": "m1"}], "samples": steady(5, other=1.0)}
    decision = scale(history, {"kind": "group_cpu"})
    assert decision["action"] == "none"
    assert "unknown" in decision["text"]


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        (8.5, 10.2, "up"),
        (8.5, 10.19, "none"),
        (8.49, 10.2, "none"),
        (8.4, 20.0, "none"),
        (10.0, 11.9, "none"),
        (10.0, 8.0, "down"),
        (9.6, 1.0, "none"),
        (9.7, 7.76, "down"),
        (9.7, 7.77, "none"),
        (9.69, 7.7, "none"),
    ],
)
def test_the_request_rate_scales_by_its_change_with_floors(before: float, after: float, action: str) -> None:
    """S5.9's diagram (C8): up from 8.5/s by 20 %, down from 9.7/s by 20 %, every two minutes."""
    history = {
        "now": 0,
        "members": [{"id": "a", "since": 0}, {"id": "b", "since": 1}],
        "samples": [{"time": -120, "values": {"requests": before}}, {"time": 0, "values": {"requests": after}}],
    }
    decision = scale(history, {"kind": "group_requests"})
    assert decision["action"] == action
    assert decision["member"] == ("b" if action == "down" else None)


def test_the_request_rate_keeps_bounds_and_cooldown() -> None:
    def decide(before: float, after: float, last: float | None = None, **rules: int) -> dict[str, Any]:
        samples = [{"time": -120, "values": {"requests": before}}, {"time": 0, "values": {"requests": after}}]
        history: dict[str, Any] = {"now": 0, "members": [{"id": "a"}, {"id": "b", "since": 1}], "samples": samples}
        if last is not None:
            history["last_action"] = {"action": "up", "time": last}
        return scale(history, {"kind": "group_requests", **rules})

    assert "the most allowed" in decide(10.0, 20.0, max=2)["text"]
    assert "the fewest allowed" in decide(20.0, 10.0, min=2)["text"]
    assert "waiting 1 s more" in decide(10.0, 20.0, last=-299.0)["text"]
    assert decide(10.0, 20.0, last=-300.0)["action"] == "up"


def test_the_request_rate_needs_something_to_compare_with() -> None:
    history = {"now": 0, "members": [{"id": "a"}], "samples": [{"time": 0, "values": {"requests": 9.0}}]}
    assert "to compare with" in scale(history, {"kind": "group_requests"})["text"]
    assert "unknown" in scale({**history, "samples": []}, {"kind": "group_requests"})["text"]


@pytest.mark.parametrize(
    ("history", "policy", "path"),
    [
        ({"now": 0, "members": []}, {"kind": "luck"}, "policy.kind"),
        ({"now": 0, "members": []}, {"kind": "group_cpu", "min": 3, "max": 2}, "policy.max"),
        ({"now": "noon", "subject": "v"}, {"kind": "resize"}, "history.now"),
        (
            {"now": 0, "subject": "v", "samples": [{"time": 0, "values": {"cpu": "9"}}]},
            {},
            "history.samples[0].values.cpu",
        ),
        ({"now": 0, "subject": "v", "sample": []}, {}, "history.sample"),
    ],
)
def test_a_wrong_history_is_refused_naming_the_field(history: object, policy: object, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        scale(history, policy)
    assert caught.value.path == path
