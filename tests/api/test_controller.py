"""The controller: one leads, the other takes over; it does what is due and survives what goes wrong."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from virtfleet import clock, controller, database, settings
from virtfleet.controller import Controller, Duty
from virtfleet.ids import new_id
from virtfleet.models import Change, IdempotencyKey, Job, JobEvent, Lease, Vm
from virtfleet.services import auth, vms
from virtfleet.services.vms import NewVm

from tests.api.fleet_rows import add_host, furnish
from tests.api.job_bench import Bench, wait_until, worker_process

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


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The controller as a process of its own; at the end nothing of it is left."""
    with (folder / "controller.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "virtfleet.controller"], stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def leads(process: subprocess.Popen[bytes]) -> bool:
    held = lease()
    return held is not None and f"/{process.pid}-" in held.holder and held.until > clock.now()


def test_the_second_takes_over_from_a_killed_one_and_gives_back_at_its_end(
    fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTFLEET_LEASE_SECONDS", "3")
    with running(tmp_path) as first:
        wait_until(lambda: leads(first), BOUND, "the first to lead")
        with running(tmp_path) as second:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            wait_until(lambda: leads(second), BOUND, "the second to lead")
            second.terminate()
            assert second.wait(BOUND) == 0
    assert lease() is None
    assert "Traceback" not in (tmp_path / "controller.log").read_text()


def test_one_that_is_told_to_stop_lets_the_next_one_lead_at_once(
    fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the test waits: the next one can lead only because the lease was given back.
    monkeypatch.setenv("VIRTFLEET_LEASE_SECONDS", str(10 * BOUND))
    with running(tmp_path) as first:
        wait_until(lambda: leads(first), BOUND, "the first to lead")
        first.send_signal(signal.SIGINT)
        assert first.wait(BOUND) == 0
    with running(tmp_path) as second:
        wait_until(lambda: leads(second), BOUND, "the second to lead")
        second.terminate()
        assert second.wait(BOUND) == 0


def test_the_process_sweeps_reaps_and_forgets(bench: Bench, fleet_home: Path, tmp_path: Path) -> None:
    bench.kind("test.ok", "- ansible.builtin.debug:\n    msg: x")
    unrung, lost, old, young = (bench.submit("test.ok") for _ in range(4))
    folder, kept = ended(old, clock.now() - LONG_AGO), ended(young, clock.now())
    with database.write() as session:
        session.get_one(Job, unrung).created_at = clock.now() - timedelta(hours=1)
        job = session.get_one(Job, lost)
        # Of another machine, so that nobody but the controller may touch it.
        job.state, job.attempt, job.attempt_id, job.worker = "running", 1, new_id("att"), "elsewhere/1/2-dead"
        job.lease_until = clock.now() - timedelta(hours=1)
    with running(tmp_path) as process:
        worker = worker_process(bench)
        try:
            assert bench.ended(unrung, BOUND).state == "succeeded"
            assert bench.ended(lost, BOUND).state == "succeeded"
        finally:
            worker.terminate()
            worker.wait(BOUND)
        wait_until(lambda: not folder.exists(), BOUND, "the old job's folder to go")
        process.terminate()
        assert process.wait(BOUND) == 0
    assert bench.job(lost).attempt == 2
    assert kept.exists()
    with database.read() as session:
        assert session.get(Job, old) is None
    assert "Traceback" not in (tmp_path / "controller.log").read_text()


def test_the_process_tries_clean_ups_again(fleet_home: Path, tmp_path: Path) -> None:
    auth.first_start()
    add_host(1)
    furnish(tmp_path / "tiny.img")
    with database.write() as session:
        creating, _made = vms.create(session, auth.system(session), NewVm(name="web1"))
        creating.state, creating.ended_at = "failed", clock.now() - timedelta(hours=1)
        session.query(Vm).one().state = "deleting"

    def cleaning() -> bool:
        with database.read() as session:
            return session.query(Job).filter(Job.kind == "vm.delete", Job.state == "queued").count() == 1

    with running(tmp_path):
        wait_until(cleaning, BOUND, "the clean-up")


def test_the_process_knows_what_services_do_at_the_end_of_jobs() -> None:
    program = (
        "from virtfleet import controller; from virtfleet.jobs import kinds; "
        "controller.duties(); print(*kinds._finishers)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "vm.create" in said.split()
