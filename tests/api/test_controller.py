"""The controller: one leads, the other takes over; it does what is due and survives what goes wrong."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from virtfleet import clock, controller, database, settings
from virtfleet.controller import Controller, Duty
from virtfleet.models import Change, IdempotencyKey, Job, JobEvent, Lease

from tests.api.job_bench import Bench

LONG_AGO = timedelta(days=60)
BOUND = 60.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


def lease() -> Lease | None:
    with database.read() as session:
        found = session.get(Lease, controller.LEASE)
        session.expunge_all()
        return found


def lapse() -> None:
    with database.write() as session:
        session.get_one(Lease, controller.LEASE).until = clock.now() - timedelta(seconds=1)


def two_controllers() -> tuple[Controller, Controller, list[str]]:
    """Return two controllers, and the list into which they write their names when they do their one duty."""
    done: list[str] = []
    first = Controller([Duty("first", 0.0, lambda: done.append("first"))], 30.0)
    second = Controller([Duty("second", 0.0, lambda: done.append("second"))], 30.0)
    return first, second, done


def test_only_one_of_two_leads_until_its_lease_ends(fleet_home: Path) -> None:
    first, second, done = two_controllers()
    first.step()
    second.step()
    assert done == ["first"]
    lapse()
    second.step()
    assert done == ["first", "second"]


def test_one_that_lost_its_lease_does_nothing_more_and_takes_nothing_along_at_its_end(
    fleet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, done = two_controllers()
    first.step()
    lapse()
    second.step()
    monkeypatch.setattr(first, "_lease_seconds", 0.0)  # it is time for it to renew
    first.step()
    assert done == ["first", "second"]
    held = lease()
    first.close()
    assert held is not None
    assert (lease() or held).holder == held.holder
    second.close()
    assert lease() is None


def test_a_leader_keeps_its_lease_by_renewing_it(fleet_home: Path) -> None:
    leader = Controller([], 0.0)
    leader.step()
    before = lease()
    leader.step()
    after = lease()
    assert before is not None
    assert after is not None
    assert (after.holder, after.until > before.until) == (before.holder, True)


def test_what_goes_wrong_stops_no_other_duty(fleet_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def broken() -> None:
        raise RuntimeError("on purpose")

    tired = Controller([Duty("broken", 0.0, broken), Duty("sound", 0.0, lambda: done.append("sound"))], 30.0)
    tired.step()
    tired.step()
    assert done == ["sound", "sound"]
    assert caplog.text.count("broken went wrong") == 2


def ended(job_id: str, at: datetime) -> Path:
    """Let a job have ended; return the folder of its attempts, which there is."""
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.ended_at = "succeeded", at
    folder = settings.load().runs / job_id
    (folder / "attempt").mkdir(parents=True)
    return folder


def test_what_is_old_is_forgotten_and_what_is_young_kept(bench: Bench, fleet_home: Path) -> None:
    bench.kind("test.ok", "- ansible.builtin.debug:\n    msg: x")
    old, young, unfinished = (bench.submit("test.ok") for _ in range(3))
    now, long_ago = clock.now(), clock.now() - LONG_AGO
    old_folder, young_folder = ended(old, long_ago), ended(young, now)
    with database.write() as session:
        for job_id, moment in ((old, long_ago), (young, now)):
            event: dict[str, Any] = {"seq": 1, "attempt": 1, "kind": "end", "text": "", "data": {}}
            session.add(JobEvent(job_id=job_id, time=moment, **event))
            session.add(Change(time=moment, project_id=None, type="test", id=job_id, action="updated", data={}))
            key: dict[str, Any] = {"fingerprint": "f", "status": 202, "body": {}, "created_at": moment}
            session.add(IdempotencyKey(project_id="prj_1", key=job_id, location=None, **key))
    assert controller.forget_old() == 1
    assert (old_folder.exists(), young_folder.exists()) == (False, True)
    with database.read() as session:
        assert {job.id for job in session.query(Job)} == {young, unfinished}
        assert {event.job_id for event in session.query(JobEvent)} == {young}
        assert {change.id for change in session.query(Change).filter(Change.type == "test")} == {young}
        assert {answer.key for answer in session.query(IdempotencyKey)} == {young}


def test_a_job_that_an_unfinished_one_needs_is_not_forgotten(bench: Bench, fleet_home: Path) -> None:
    bench.kind("test.ok", "- ansible.builtin.debug:\n    msg: x")
    needed = bench.submit("test.ok")
    waiting = bench.submit("test.ok", needs=[needed])
    ended(needed, clock.now() - LONG_AGO)
    assert controller.forget_old() == 0
    ended(waiting, clock.now() - LONG_AGO)
    assert controller.forget_old() == 2


def test_a_big_backlog_is_forgotten_in_rounds(bench: Bench, fleet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "MOST_AT_ONCE", 2)
    bench.kind("test.ok", "- ansible.builtin.debug:\n    msg: x")
    for _ in range(3):
        ended(bench.submit("test.ok"), clock.now() - LONG_AGO)
    assert [controller.forget_old() for _ in range(3)] == [2, 1, 0]
