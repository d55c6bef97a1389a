"""The controller: one leads, the other takes over; it does what is due and survives what goes wrong."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from virtfleet import clock, controller, database, settings
from virtfleet.controller import Controller, Duty
from virtfleet.models import Change, IdempotencyKey, Job, JobEvent, Lease

from tests.api.job_bench import Bench, wait_until


def lease() -> Lease | None:
    with database.read() as session:
        found = session.get(Lease, controller.LEASE)
        session.expunge_all()
        return found


def test_only_one_of_two_leads_until_its_lease_ends(fleet_home: Path) -> None:
    done: list[str] = []
    first = Controller([Duty("first", 0.0, lambda: done.append("first"))], 30.0)
    second = Controller([Duty("second", 0.0, lambda: done.append("second"))], 30.0)
    second._me = "elsewhere/1"
    first.step()
    second.step()
    assert done == ["first"]
    with database.write() as session:
        session.get_one(Lease, controller.LEASE).until = clock.now() - timedelta(seconds=1)
    second.step()
    assert done == ["first", "second"]


def test_what_goes_wrong_stops_no_other_duty(fleet_home: Path) -> None:
    done: list[str] = []

    def broken() -> None:
        raise RuntimeError("on purpose")

    Controller([Duty("broken", 1.0, broken), Duty("sound", 1.0, lambda: done.append("sound"))], 30.0).step()
    assert done == ["sound"]


def test_what_is_old_is_forgotten_and_what_is_young_kept(bench: Bench, fleet_home: Path) -> None:
    bench.kind("test.ok", "- ansible.builtin.debug:\n    msg: x")
    old, young, unfinished = (bench.submit("test.ok") for _ in range(3))
    long_ago = clock.now() - timedelta(days=60)
    with database.write() as session:
        for job_id, moment in ((old, long_ago), (young, clock.now())):
            job = session.get_one(Job, job_id)
            job.state, job.ended_at = "succeeded", moment
        session.add(JobEvent(job_id=old, seq=1, time=long_ago, attempt=1, kind="end", text="", data={}))
        session.add(Change(time=long_ago, project_id=None, type="job", id=old, action="updated", data={}))
        key: dict[str, Any] = {"fingerprint": "f", "status": 202, "body": {}, "created_at": long_ago}
        session.add(IdempotencyKey(project_id="prj_1", key="k", location=None, **key))
    folder = settings.load().runs / old / "attempt"
    folder.mkdir(parents=True)
    assert controller.forget_old() == 1
    assert not folder.parent.exists()
    with database.read() as session:
        assert {job.id for job in session.query(Job)} == {young, unfinished}
        assert session.query(JobEvent).filter(JobEvent.job_id == old).count() == 0
        assert session.query(Change).filter(Change.time < clock.now() - timedelta(days=30)).count() == 0
        assert session.query(IdempotencyKey).count() == 0


def started() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "virtfleet.controller"], stderr=subprocess.DEVNULL)


def test_the_second_takes_over_from_a_killed_one_and_gives_back_at_its_end(
    fleet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTFLEET_LEASE_SECONDS", "2")

    def leads(process: subprocess.Popen[bytes]) -> bool:
        held = lease()
        return held is not None and held.holder.endswith(f"/{process.pid}") and held.until > clock.now()

    first = started()
    try:
        wait_until(lambda: leads(first), 30, "the first to lead")
        second = started()
        try:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            wait_until(lambda: leads(second), 30, "the second to lead")
        finally:
            second.terminate()
            assert second.wait(20) == 0
        assert lease() is None
    finally:
        first.kill()
        first.wait()
