"""When a worker dies: what it left is found and ended, and the job runs again, once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtfleet import clock, database
from virtfleet.jobs import claim, reaper, supervisor, survivors
from virtfleet.models import Job, Lease

from tests.api.job_bench import Bench, crew, wait_until, worker_process

# The first attempt hangs, in a session of its own; a later one does its work and says so.
HANGS_ONCE = """
- name: Hang in the first attempt
  ansible.builtin.shell: >-
    echo begun >> {folder}/begun;
    test $(wc -l < {folder}/begun) -gt 1 || exec setsid sh -c 'echo $$ > {folder}/pid; exec sleep 300'
- name: Do the work
  ansible.builtin.shell: echo done >> {folder}/done
"""
LEASE = {"VIRTFLEET_LEASE_SECONDS": "1.5"}
BOUND = 120.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


@pytest.fixture
def start(bench: Bench) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def _start() -> subprocess.Popen[bytes]:
        started.append(worker_process(bench, **LEASE))
        return started[-1]

    yield _start
    for process in started:
        process.kill()
        process.wait()


def hanging_job(bench: Bench) -> str:
    bench.kind("test.hangs", HANGS_ONCE.format(folder=bench.folder))
    bench.secrets["sec_1"] = b"the secret"
    variables = {"a": {"$secret": "sec_1"}}
    return bench.submit("test.hangs", ring=True, variables=variables, exclusive=("vm:a",))


def straggler(bench: Bench) -> int:
    notes = bench.folder / "pid"
    wait_until(lambda: notes.exists() and notes.read_text().strip(), BOUND, "the first attempt to hang")
    return int(notes.read_text())


def is_alive(pid: int) -> bool:
    # A zombie is dead, even where the first process of the system is slow to collect it.
    return pid in supervisor.parents()


def reap_until_requeued(job_id: str) -> None:
    wait_until(lambda: job_id in reaper.reap(), BOUND, "the lease to end")


def the_job_runs_once_more(bench: Bench, job_id: str) -> None:
    with crew():
        job = bench.ended(job_id)
    assert (job.state, job.attempt, job.error) == ("succeeded", 2, None)
    assert (bench.folder / "done").read_text() == "done\n"
    events = bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events].count("retried") == 1
    assert [event.kind for event in events].count("end") == 1


def test_a_worker_killed_alone_takes_its_run_with_it_and_the_job_runs_again(
    bench: Bench, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    job_id = hanging_job(bench)
    process = start()
    pid = straggler(bench)
    attempt_id = bench.job(job_id).attempt_id
    assert Path(f"/dev/shm/virtfleet-{attempt_id}").exists() == Path("/dev/shm").is_mount()
    process.kill()
    process.wait()
    # Its supervisor notices the death by itself, before anybody reaps.
    wait_until(lambda: not is_alive(pid), BOUND, "the supervisor to end the run")
    assert bench.job(job_id).state == "running"
    reap_until_requeued(job_id)
    assert not Path(f"/dev/shm/virtfleet-{attempt_id}").exists()
    the_job_runs_once_more(bench, job_id)


def test_a_worker_killed_with_its_supervisor_leaves_a_straggler_that_the_reaper_ends(
    bench: Bench, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    job_id = hanging_job(bench)
    process = start()
    pid = straggler(bench)
    attempt_id = bench.job(job_id).attempt_id or ""
    # The worst case: worker, supervisor and all of Ansible are gone at once, but for what called setsid.
    os.killpg(process.pid, signal.SIGSTOP)
    for victim in survivors.find(attempt_id):
        if victim != pid:
            os.kill(victim, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    assert is_alive(pid)
    assert bench.job(job_id).state == "running"
    reap_until_requeued(job_id)
    assert not is_alive(pid)
    assert survivors.find(attempt_id) == []
    the_job_runs_once_more(bench, job_id)


def test_a_job_whose_attempts_are_used_up_fails(bench: Bench, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    bench.kind("test.hangs", HANGS_ONCE.format(folder=bench.folder), max_attempts=1)
    job_id = bench.submit("test.hangs", ring=True)
    process = start()
    pid = straggler(bench)
    process.kill()
    reap_until_requeued(job_id)
    job = bench.job(job_id)
    assert not is_alive(pid)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_worker_told_to_stop_puts_its_jobs_back(bench: Bench, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    job_id = hanging_job(bench)
    process = start()
    pid = straggler(bench)
    with database.read() as session:
        (row,) = session.query(Lease).filter(Lease.name.startswith("worker:")).all()
        assert row.until > clock.now()
    process.terminate()
    assert process.wait(timeout=BOUND) == 0
    assert not is_alive(pid)
    job = bench.job(job_id)
    # The attempt does not count: a fleet may be restarted as often as its people like.
    assert (job.state, job.attempt, job.max_attempts) == ("queued", 1, 4)
    with database.read() as session:
        assert session.query(Lease).filter(Lease.name.startswith("worker:")).count() == 0
    the_job_runs_once_more(bench, job_id)


def test_the_job_of_another_machine_is_left_alone_for_a_while(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")
    job_id = bench.submit("test.noop")
    with database.write() as session:
        claim.claim(session, job_id, "elsewhere/4026531836/1-abcd", -1)
    assert reaper.reap() == []
    assert bench.job(job_id).state == "running"
    with database.write() as session:
        job = session.get(Job, job_id)
        assert job is not None
        job.lease_until = clock.after(-3600)
    assert reaper.reap(elsewhere=False) == []
    assert reaper.reap() == [job_id]
    assert bench.job(job_id).state == "queued"


def test_a_job_that_was_to_be_cancelled_does_not_run_again(bench: Bench) -> None:
    bench.kind("test.noop", "- debug:")
    job_id = bench.submit("test.noop")
    with database.write() as session:
        claim.claim(session, job_id, f"{reaper.machine()}/1-dead", -1)
    bench.cancel(job_id)
    assert reaper.reap() == [job_id]
    assert bench.job(job_id).state == "cancelled"
