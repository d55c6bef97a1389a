"""The controller as a process: the other takes over, and it does what is due."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from virtfleet import clock, database
from virtfleet.ids import new_id
from virtfleet.models import Job, Vm
from virtfleet.services import auth, vms
from virtfleet.services.vms import NewVm

from tests.api.fleet_rows import add_host, furnish
from tests.api.job_bench import Bench, wait_until, worker_process
from tests.api.test_controller import LONG_AGO, ended, lease

BOUND = 60.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


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
