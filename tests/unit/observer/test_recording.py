"""What is seen, in the rows of a real database: written once, told once, with the age of the sight."""

from datetime import UTC, datetime, timedelta
from typing import Any

from virtfleet import database
from virtfleet.models import Change, Host, Vm
from virtfleet.observer.recording import Status, record
from virtfleet.observer.views import View, view_of

from tests.unit.observer.conftest import AddHost, AddVm

START = datetime(2025, 1, 1, tzinfo=UTC)
GIB = 2**30


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def machines(*states: tuple[str, str], at: float) -> dict[str, Any]:
    """Return a child's line after an event: machines as (uuid, state), seen `at` seconds after START."""
    listed = [{"uuid": uuid, "state": state, "vcpus": 2, "memory_bytes": GIB} for uuid, state in states]
    return {"kind": "machines", "at": moment(at).timestamp(), "machines": listed}


def report(*states: tuple[str, str], at: float, cpu_percent: float = 1.0) -> dict[str, Any]:
    """Return a child's whole report: machines as (uuid, state), seen `at` seconds after START."""
    host = {
        "vcpus": {"total": 4},
        "memory": {"total_bytes": 8 * GIB},
        "pools": [],
        "load": {"cpu_percent": cpu_percent},
        "machines": machines(*states, at=at)["machines"],
    }
    return {"kind": "report", "at": moment(at).timestamp(), "host": host}


def write(at: float, views: dict[str, View], **down: str) -> None:
    """Record the views of hosts that answer, and why the others do not, `at` seconds after START."""
    statuses = {name: Status("up", None, moment(at)) for name in views}
    statuses |= {name: Status("down", reason, None) for name, reason in down.items()}
    with database.write() as session:
        record(session, moment(at), statuses, views)


def host(name: str) -> Host:
    with database.read() as session:
        found = session.get_one(Host, name)
        session.expunge_all()
        return found


def vm(uuid: str) -> Vm:
    with database.read() as session:
        found = session.get_one(Vm, uuid)
        session.expunge_all()
        return found


def told(identifier: str) -> list[str]:
    with database.read() as session:
        changes = session.query(Change).filter(Change.id == identifier).order_by(Change.seq)
        return [change.data["state"] for change in changes]


def test_a_new_state_is_written_and_told_once(add_host: AddHost, add_vm: AddVm) -> None:
    add_host("a")
    add_vm("u1", "a", "stopped")
    seen = view_of(report(("u1", "running"), at=1), None)
    write(2, {"a": seen})
    write(3, {"a": seen})
    row = vm("u1")
    assert (row.state, row.generation, told("u1")) == ("running", 2, ["running"])
    assert row.observed_at == moment(1), "when it was seen, not when that was written"
    assert (host("a").state, host("a").generation, told("a")) == ("up", 2, ["up"])


def test_seen_again_is_no_change_but_it_is_younger(add_host: AddHost, add_vm: AddVm) -> None:
    add_host("a")
    add_vm("u1", "a", "running")
    first = view_of(report(("u1", "running"), at=1), None)
    write(1, {"a": first})
    before, host_before = vm("u1"), host("a")
    write(10, {"a": view_of(report(("u1", "running"), at=10, cpu_percent=90.0), first)})
    after, host_after = vm("u1"), host("a")
    assert (after.generation, after.updated_at) == (before.generation, before.updated_at)
    assert (before.observed_at, after.observed_at) == (moment(1), moment(10))
    assert (host_after.generation, host_after.updated_at) == (host_before.generation, host_before.updated_at)
    assert host_after.observed_at == moment(10)
    assert host_after.info["load"] == {"cpu_percent": 90.0}
    assert (told("u1"), told("a")) == ([], ["up"])


def test_a_machine_of_a_host_that_fell_silent_keeps_its_state_and_its_age(add_host: AddHost, add_vm: AddVm) -> None:
    add_host("a")
    add_host("b")
    add_vm("u1", "a", "running")
    left_behind = view_of(report(("u1", "stopped"), at=1), None)
    write(1, {"a": view_of(report(("u1", "running"), at=1), None), "b": left_behind})
    write(60, {"b": view_of(report(("u1", "stopped"), at=60), left_behind)}, a="It is silent.")
    row, silent = vm("u1"), host("a")
    assert (row.state, row.host_id, row.observed_at) == ("running", "a", moment(1))
    assert (silent.state, silent.error, silent.observed_at) == ("down", "It is silent.", moment(1))
    assert silent.info["vcpus"]["total"] == 4, "what it had is still known"


def test_a_machine_moves_in_one_change(add_host: AddHost, add_vm: AddVm) -> None:
    add_host("a")
    add_host("b")
    add_vm("u1", "a", "running")
    here = view_of(report(("u1", "running"), at=1), None)
    there = view_of(report(("u1", "paused"), at=1), None)
    write(1, {"a": here, "b": there})
    here = here.then(machines(("u1", "paused"), at=2))
    write(2, {"a": here, "b": there})
    there = there.then(machines(("u1", "running"), at=3))
    write(3, {"a": here, "b": there})
    write(4, {"a": here.then(machines(at=4)), "b": there})
    row = vm("u1")
    assert (row.state, row.host_id, row.generation, told("u1")) == ("running", "b", 2, ["running"])


def test_what_is_not_ours_is_used_capacity_and_a_change_of_the_host(add_host: AddHost, add_vm: AddVm) -> None:
    add_host("a")
    add_vm("u1", "a", "running")
    write(1, {"a": view_of(report(("u1", "running"), at=1), None)})
    before = host("a")
    write(5, {"a": view_of(report(("u1", "running"), ("foreign", "stopped"), at=5), None)})
    after = host("a")
    assert before.unmanaged == {"vcpus": 0, "memory_bytes": 0, "pools": {}}
    assert after.unmanaged == {"vcpus": 2, "memory_bytes": GIB, "pools": {}}
    assert after.generation == before.generation + 1


def test_a_machine_that_is_gone_is_missing_and_keeps_the_age_of_its_last_sight(
    add_host: AddHost, add_vm: AddVm
) -> None:
    add_host("a")
    add_vm("u1", "a", "running")
    first = view_of(report(("u1", "running"), at=1), None)
    write(1, {"a": first})
    second = view_of(report(at=6), first)
    write(6, {"a": second})
    assert vm("u1").state == "running"
    write(11, {"a": view_of(report(at=11), second)})
    assert (vm("u1").state, vm("u1").observed_at, told("u1")) == ("missing", moment(1), ["missing"])
    write(16, {"a": view_of(report(at=16), second)})
    assert told("u1") == ["missing"]


def test_a_report_older_than_what_a_job_has_told_does_not_undo_it(add_host: AddHost) -> None:
    """Networks, filters and secrets: a job that has changed one knows better than a reading that was made before."""
    add_host("a")
    before, after = report(at=1), report(at=9)
    for each in (before, after):
        each["host"]["networks"] = []
    known = {**before["host"], "networks": [{"name": "made"}], "told_at": moment(5).timestamp()}
    with database.write() as session:
        session.get_one(Host, "a").info = known
    write(10, {"a": view_of(before, None)})
    assert host("a").info["networks"] == [{"name": "made"}]
    write(20, {"a": view_of(after, None)})
    assert host("a").info["networks"] == []
