"""What the rows should say, from what is seen: tables of (row, hosts' machines) → change."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from virtfleet.observer import reconcile
from virtfleet.observer.reconcile import VmChange, VmRow
from virtfleet.observer.views import View, view_of

START = datetime(2025, 1, 1, tzinfo=UTC)
GIB = 2**30


def report(*machines: tuple[str, str], at: float = 0.0, pools: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """Return a child's line: machines as (uuid, state as libvirt_objects/host.py says it), `at` seconds after START."""
    return {
        "kind": "report",
        "at": START.timestamp() + at,
        "host": {
            "vcpus": {"total": 4},
            "memory": {"total_bytes": 8 * GIB},
            "pools": list(pools),
            "machines": [
                {"uuid": uuid, "state": state, "vcpus": 2, "memory_bytes": GIB, "name": uuid}
                for uuid, state in machines
            ],
        },
    }


def view(*reports: dict[str, Any]) -> View:
    """Return the view after these reports."""
    seen: View | None = None
    for line in reports:
        seen = view_of(line, seen)
    assert seen is not None
    return seen


def pool(name: str, provisioned: int | None, *, shared: bool = False) -> dict[str, Any]:
    return {"name": name, "provisioned_bytes": provisioned, "capacity_bytes": 100 * GIB, "shared": shared}


def row(state: str = "running", host: str = "a", **more: Any) -> VmRow:
    values: dict[str, Any] = {"id": "vm_1", "uuid": "u1", "host_id": host, "state": state, "pool": "p"}
    return VmRow(**(values | {"disk_bytes": 10} | more))


def change(vm: VmRow, **hosts: View) -> VmChange | None:
    return reconcile.vm_change(vm, hosts, reconcile.sightings(hosts))


@pytest.mark.parametrize(
    ("recorded", "seen", "expected"),
    [
        ("stopped", "running", "running"),
        ("running", "stopped", "stopped"),
        ("running", "paused", "paused"),
        ("paused", "crashed", "crashed"),
        ("running", "suspended", "paused"),
        ("stopped", "stopping", "running"),
        ("missing", "running", "running"),
        ("unknown", "stopped", "stopped"),
    ],
)
def test_a_machine_is_recorded_as_its_host_has_it(recorded: str, seen: str, expected: str) -> None:
    assert change(row(recorded), a=view(report(("u1", seen)))) == VmChange(expected, "a")


@pytest.mark.parametrize(("recorded", "seen"), [("running", "running"), ("running", "stopping"), ("paused", "unknown")])
def test_what_is_right_or_not_known_is_not_changed(recorded: str, seen: str) -> None:
    assert change(row(recorded), a=view(report(("u1", seen)))) is None


@pytest.mark.parametrize("vm", [row("building"), row("deleting"), row("stopped", busy=True)])
def test_a_machine_that_a_job_works_on_is_left_to_it(vm: VmRow) -> None:
    assert change(vm, a=view(report(("u1", "running")))) is None
    assert change(vm, a=view(report(), report(at=5), report(at=10))) is None


def test_what_was_seen_before_the_last_job_ended_says_nothing() -> None:
    vm = row("stopped", job_ended_at=START + timedelta(seconds=3))
    assert change(vm, a=view(report(("u1", "running"), at=2.9))) is None
    assert change(vm, a=view(report(("u1", "running"), at=3.1))) == VmChange("running", "a")


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ((), (("u1", "running"),), VmChange("running", "b")),
        ((), (("u1", "stopped"),), VmChange("stopped", "b")),
        ((("u1", "stopped"),), (("u1", "running"),), VmChange("running", "b")),  # its definition was left behind
        ((("u1", "running"),), (("u1", "paused"),), None),  # on its way: b receives it
        ((("u1", "running"),), (("u1", "stopped"),), None),
        ((("u1", "paused"),), (("u1", "stopped"),), VmChange("paused", "a")),
        ((("u1", "stopped"),), (("u1", "stopped"),), VmChange("stopped", "a")),
        ((("u1", "paused"),), (("u1", "running"),), VmChange("running", "b")),  # it has arrived, a has yet to let go
        ((("u1", "running"),), (("u1", "running"),), None),
    ],
)
def test_a_machine_is_followed_to_where_it_is(here: Any, there: Any, expected: VmChange | None) -> None:
    assert change(row("running"), a=view(report(*here)), b=view(report(*there))) == expected


def test_a_machine_of_a_host_that_is_down_keeps_its_state_unless_it_runs_elsewhere() -> None:
    assert change(row("running"), b=view(report(), report(at=5), report(at=10))) is None
    assert change(row("running"), b=view(report(("u1", "running")))) == VmChange("running", "b")


@pytest.mark.parametrize("state", ["stopped", "paused", "crashed"])
def test_a_silent_hosts_machine_is_not_taken_for_what_was_left_behind_elsewhere(state: str) -> None:
    assert change(row("running"), b=view(report(("u1", state)), report(("u1", state), at=5))) is None


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("paused", "paused"),  # the moment between the two
        (None, "paused"),  # a has let go, and b's word that it goes on is on its way
        ("stopped", "paused"),
    ],
)
def test_the_moment_in_which_a_migration_pauses_a_machine_is_not_recorded(here: str | None, there: str) -> None:
    def machines(state: str | None) -> dict[str, Any]:
        listed = [{"uuid": "u1", "state": state, "vcpus": 1, "memory_bytes": GIB}] if state else []
        return {"at": START.timestamp() + 1, "machines": listed}

    a = view(report(("u1", "running"))).then(machines(here))
    b = view(report()).then(machines(there))
    assert change(row("running"), a=a, b=b) is None


def test_a_machine_left_paused_by_a_migration_counts_as_paused_once_the_host_reports_it_so() -> None:
    paused = view(report(("u1", "paused")))
    assert change(row("running"), a=paused, b=paused) == VmChange("paused", "a")
    assert change(row("running"), a=view(report()), b=paused) == VmChange("paused", "b")


def test_a_machine_is_missing_when_two_reports_in_a_row_lack_it() -> None:
    once = view(report(("u1", "running")), report(at=5))
    assert change(row(), a=once) is None
    assert change(row(), a=view_of(report(at=10), once)) == VmChange("missing", "a")
    assert change(row("missing"), a=view_of(report(at=10), once)) is None


def test_the_first_report_after_a_start_makes_nobody_missing() -> None:
    assert change(row(), a=view(report())) is None


def test_a_look_after_an_event_counts_for_presence_but_not_as_a_report() -> None:
    once = view(report(("u1", "running")), report(at=5))
    gone = once.then({"at": START.timestamp() + 6, "machines": []})
    assert change(row(), a=gone) is None
    back = view(report(), report(at=5)).then(
        {"at": START.timestamp() + 6, "machines": [{"uuid": "u1", "state": "running", "vcpus": 1, "memory_bytes": 1}]}
    )
    assert change(row(), a=back) is None


def test_a_machine_is_not_missing_from_reports_that_are_older_than_its_job() -> None:
    vm = row(job_ended_at=START + timedelta(seconds=7))
    seen = view(report(at=0), report(at=5), report(at=10))
    assert change(vm, a=seen) is None
    assert change(vm, a=view_of(report(at=15), view_of(report(at=10), seen))) == VmChange("missing", "a")


def test_unmanaged_is_what_machines_without_a_row_take() -> None:
    seen = view(report(("u1", "running"), ("other", "running"), ("another", "stopped")))
    assert reconcile.unmanaged(seen, {"u1"}, {}) == {"vcpus": 4, "memory_bytes": 2 * GIB, "pools": {}}


def test_unmanaged_in_a_pool_is_all_that_is_not_a_disk_of_ours() -> None:
    seen = view(report(pools=(pool("p", 100), pool("q", 5), pool("off", None))))
    assert reconcile.unmanaged(seen, (), {"p": 30, "q": 9})["pools"] == {"p": 70, "q": 0}


def test_disks_count_as_ours_only_once_their_machine_is_seen() -> None:
    seen = view(report(("u1", "running"), pools=(pool("p", 100),)))
    rows = [row(), row("building", uuid="u2", disk_bytes=20), row(host="b", uuid="u3", disk_bytes=40)]
    assert reconcile.taken_by_ours("a", seen, rows, {"a": seen}) == {"p": 10}


def test_in_a_shared_pool_the_disks_of_machines_on_other_hosts_are_ours_too() -> None:
    a = view(report(("u1", "running"), pools=(pool("p", 100, shared=True), pool("q", 100))))
    b = view(report(("u2", "running"), ("u3", "running")))
    rows = [row(), row(host="b", uuid="u2", disk_bytes=20), row(host="b", uuid="u3", pool="q", disk_bytes=40)]
    assert reconcile.taken_by_ours("a", a, rows, {"a": a, "b": b}) == {"p": 30}


def test_load_and_free_memory_are_no_news() -> None:
    seen = view(report(pools=(pool("p", 100),)))
    busier = {**seen.info, "load": {"cpu_percent": 90.0}, "pools": [{**pool("p", 200), "available_bytes": 1}]}
    assert reconcile.visible(seen.info) == reconcile.visible(busier)
    grown = {**seen.info, "memory": {"total_bytes": 16 * GIB}}
    assert reconcile.visible(seen.info) != reconcile.visible(grown)
    assert reconcile.visible({}) == {}
