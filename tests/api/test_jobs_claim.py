"""Who may run, and when: claims, locks, order, dependencies, leases. No Ansible here."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from virtfleet import clock, database
from virtfleet.jobs import claim, kinds, lifecycle, queue
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Change, Job, JobLock

from tests.api.job_bench import Bench, in_threads

DONE = Outcome("succeeded")


@pytest.fixture(autouse=True)
def _noop(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")


def take(job_id: str | None = None, worker: str = "w", lease: float = 30) -> str | None:
    with database.write() as session:
        job = claim.claim(session, job_id, worker, lease)
    return None if job is None else job.id


def end(bench: Bench, job_id: str, outcome: Outcome = DONE) -> list[str]:
    with database.write() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return lifecycle.close(session, job, outcome)


def test_a_claimed_job_has_an_attempt_a_lease_and_its_locks(bench: Bench) -> None:
    job_id = bench.submit("test.noop", exclusive=("vm:a",), shared=(("host:1", 2),))
    assert take(job_id, "me") == job_id
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.worker) == ("running", 1, "me")
    assert job.attempt_id
    assert job.lease_until is not None
    assert job.lease_until > clock.after(20)
    with database.read() as session:
        assert set(session.scalars(select(JobLock.slot))) == {0}


def test_of_twenty_threads_one_gets_the_job(bench: Bench) -> None:
    job_id = bench.submit("test.noop")
    got: list[str] = []

    def race(number: int) -> None:
        if take(job_id, f"w{number}"):
            got.append(f"w{number}")

    in_threads(20, race)
    assert got == [bench.job(job_id).worker]
    assert bench.job(job_id).attempt == 1


RACER = """
import json, sys
from virtfleet import database
from virtfleet.jobs import claim
got = []
while True:
    with database.write() as session:
        job = claim.claim(session, None, sys.argv[1], 30)
    if job is None:
        break
    got.append(job.id)
print(json.dumps(got))
"""


def test_processes_never_get_the_same_job(bench: Bench) -> None:
    submitted = [bench.submit("test.noop") for _ in range(40)]
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, f"w{number}"], stdout=subprocess.PIPE, env=dict(os.environ))
        for number in range(4)
    ]
    got = [job_id for racer in racers for job_id in json.loads(racer.communicate(timeout=120)[0])]
    assert sorted(got) == sorted(submitted)


def test_a_machine_has_one_job_at_a_time_in_order_of_arrival(bench: Bench) -> None:
    """Five threads, eighteen jobs on three machines: never two at once on one, and always the oldest first."""
    jobs = [bench.submit("test.noop", exclusive=(f"vm:{number % 3}",)) for number in range(18)]
    machine = {job_id: number % 3 for number, job_id in enumerate(jobs)}
    busy: set[int] = set()
    order: dict[int, list[str]] = {0: [], 1: [], 2: []}
    guard = threading.Lock()
    wrong: list[str] = []

    def run(number: int) -> None:
        while len(order[0]) + len(order[1]) + len(order[2]) < len(jobs):
            job_id = take(None, f"w{number}")
            if job_id is None:
                threading.Event().wait(0.01)
                continue
            with guard:
                if machine[job_id] in busy:
                    wrong.append(job_id)
                busy.add(machine[job_id])
                order[machine[job_id]].append(job_id)
            threading.Event().wait(0.002)
            with guard:
                busy.discard(machine[job_id])
            end(bench, job_id)

    in_threads(5, run)
    assert not wrong
    for number in range(3):
        assert order[number] == jobs[number::3]


def test_a_younger_job_waits_even_when_the_older_one_cannot_run_yet(bench: Bench) -> None:
    first = bench.submit("test.noop")
    older = bench.submit("test.noop", exclusive=("vm:a",), needs=(first,))
    younger = bench.submit("test.noop", exclusive=("vm:a",))
    assert take(younger) is None
    assert take(older) is None
    assert take(first) == first
    assert end(bench, first) == [older]
    assert take(older) == older
    assert end(bench, older) == [younger]


def test_all_locks_or_none(bench: Bench) -> None:
    holder = bench.submit("test.noop", exclusive=("vm:b",))
    both = bench.submit("test.noop", exclusive=("vm:a", "vm:b"))
    assert take(holder)
    assert take(both) is None
    with database.read() as session:
        taken = session.scalars(select(JobLock).where(JobLock.job_id == both, JobLock.slot.is_not(None))).all()
        assert not taken
    assert end(bench, holder) == [both]
    assert take(both) == both


def test_a_shared_resource_is_had_by_so_many_at_once(bench: Bench) -> None:
    jobs = [bench.submit("test.noop", shared=(("host:1", 3),)) for _ in range(5)]
    assert [take(job_id) is not None for job_id in jobs] == [True, True, True, False, False]
    assert end(bench, jobs[1])[0] == jobs[3]
    assert take(jobs[3]) == jobs[3]
    assert take(jobs[4]) is None


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_fails_with_the_one_that_it_needs(bench: Bench, state: Any) -> None:
    first = bench.submit("test.noop")
    second = bench.submit("test.noop", needs=(first,))
    third = bench.submit("test.noop", needs=(second,))
    error = {"code": "pool_full", "message": "The pool is full.", "hint": ""}
    end(bench, first, Outcome(state, error=error))
    for job_id in (second, third):
        job = bench.job(job_id)
        assert job.state == "failed"
        assert job.error is not None
        assert job.error["code"] == "dependency_failed"
        assert "The pool is full." in job.error["message"]


def test_a_job_submitted_after_what_it_needs_failed_fails_too(bench: Bench) -> None:
    first = bench.submit("test.noop")
    end(bench, first, kinds.failure("x", "It broke."))
    second = bench.submit("test.noop", needs=(first,))
    assert take(second) is None
    with database.write() as session:
        assert lifecycle.close_if_hopeless(session, second) == []
    assert bench.job(second).state == "failed"


def test_a_job_with_a_time_waits_for_it(bench: Bench) -> None:
    later = bench.submit("test.noop", not_before=clock.after(60))
    due = bench.submit("test.noop", not_before=clock.after(-1))
    assert take(later) is None
    assert take(None) == due


def test_a_job_cannot_want_a_resource_twice(bench: Bench) -> None:
    with pytest.raises(ValueError, match="twice"):
        bench.submit("test.noop", exclusive=("vm:a",), shared=(("vm:a", 2),))
    with pytest.raises(ValueError, match="limit"):
        bench.submit("test.noop", shared=(("vm:a", 0),))


def test_a_queued_job_is_cancelled_at_once_and_its_finisher_told(bench: Bench) -> None:
    told: list[Outcome] = []

    @kinds.finisher("test.noop")
    def _finish(_session: Any, _job: Job, outcome: Outcome) -> None:
        told.append(outcome)

    holder = bench.submit("test.noop", exclusive=("vm:a",))
    waiting = bench.submit("test.noop", exclusive=("vm:a",))
    bench.cancel(holder)
    assert bench.job(holder).state == "cancelled"
    assert [outcome.state for outcome in told] == ["cancelled"]
    bench.cancel(holder)
    assert len(told) == 1
    assert [event.kind for event in bench.events(holder)] == ["end"]
    assert take(waiting) == waiting


def test_a_finisher_that_raises_does_not_lose_the_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    @kinds.finisher("test.noop")
    def _finish(session: Any, job: Job, _outcome: Outcome) -> None:
        session.add(Change(time=clock.now(), project_id=None, type="wrong", id=job.id, action="created", data={}))
        session.flush()
        raise RuntimeError("the secret reason")

    job_id = bench.submit("test.noop", exclusive=("vm:a",))
    next_one = bench.submit("test.noop", exclusive=("vm:a",))
    take(job_id)
    assert end(bench, job_id, Outcome("succeeded", result={"h1": {}})) == [next_one]
    job = bench.job(job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "internal"
    assert "secret reason" not in json.dumps(job.error)
    assert "secret reason" in caplog.text
    with database.read() as session:
        assert session.scalar(select(Change).where(Change.type == "wrong")) is None
    assert bench.events(job_id)[-1].kind == "end"


def test_a_job_submitted_at_the_end_of_another_is_rung_for(bench: Bench) -> None:
    followers: list[str] = []

    @kinds.finisher("test.noop")
    def _finish(session: Any, job: Job, _outcome: Outcome) -> None:
        given: dict[str, Any] = {"project_id": job.project_id, "owner_id": job.owner_id}
        given |= {"host_ids": [], "variables": {}, "subjects": []}
        if not followers:
            followers.append(lifecycle.submit(session, "test.noop", **given).id)

    assert end(bench, bench.submit("test.noop")) == followers


def test_no_crowd_of_waiting_jobs_hides_one_that_can_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "MOST_CANDIDATES", 3)
    blocker = bench.submit("test.noop", exclusive=("vm:a",))
    take(blocker)
    for _ in range(4):
        bench.submit("test.noop", exclusive=("vm:a",))
    hidden = bench.submit("test.noop", exclusive=("vm:b",))
    assert queue.sweep(quiet_seconds=0.0) == []
    assert queue.sweep(quiet_seconds=0.0) == [hidden]


def test_the_change_feed_tells_of_every_step(bench: Bench) -> None:
    job_id = bench.submit("test.noop")
    end(bench, job_id)
    with database.read() as session:
        rows = session.scalars(select(Change).where(Change.type == "job", Change.id == job_id)).all()
        assert [(row.action, row.data["state"]) for row in rows] == [("created", "queued"), ("updated", "succeeded")]


def test_the_sweeper_rings_for_what_nobody_rang_for(bench: Bench) -> None:
    forgotten = bench.submit("test.noop")
    waits = bench.submit("test.noop", not_before=clock.after(60))
    blocked = bench.submit("test.noop", needs=(forgotten,))
    assert queue.sweep(quiet_seconds=60) == []
    assert queue.sweep(quiet_seconds=0) == [forgotten]
    assert queue.bell().waiting() == 1
    assert queue.sweep() == []
    assert {bench.job(job_id).state for job_id in (waits, blocked)} == {"queued"}


def test_ringing_never_raises(bench: Bench, fleet_home: Path) -> None:
    queue.forget_bells()
    (fleet_home / "queue.db").write_bytes(b"this is no database" * 100)
    queue.ring(["job_1"])


def test_what_rings_is_json_with_nothing_but_an_id(bench: Bench) -> None:
    queue.ring(["job_1"])
    (raw,) = queue.bell().huey.storage.enqueued_items()
    message = json.loads(bytes(raw))
    assert message["args"] == ["job_1"]
    assert not message["kwargs"]


def test_the_holder_of_a_lease_alone_may_close(bench: Bench) -> None:
    job_id = bench.submit("test.noop")
    take(job_id, "old", lease=-1)
    attempt_id = bench.job(job_id).attempt_id or ""
    with database.write() as session:
        assert claim.standing(session, {job_id: attempt_id}, "old") == {job_id: "mine"}
        assert claim.take_over(session, job_id, "reaper", 30) is not None
        assert claim.take_over(session, job_id, "another reaper", 30) is None
        assert claim.held(session, job_id, attempt_id, "old") is None
        assert claim.standing(session, {job_id: attempt_id}, "old") == {job_id: "lost"}
        claim.renew(session, {job_id: attempt_id}, "old", 1000)
    lease = bench.job(job_id).lease_until
    assert lease is not None
    assert lease < clock.after(100)
