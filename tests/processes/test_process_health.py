"""What `/readyz` says is missing, told from the leases that the real processes keep."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from virtfleet import clock, database
from virtfleet.models import Lease
from virtfleet.services import health

from tests.api.job_bench import wait_until

BOUND = 60.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


def missing() -> list[str]:
    with database.read() as session:
        return health.missing(session)


@contextlib.contextmanager
def running(name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the fleet; at the end nothing of it is left."""
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", f"virtfleet.{name}"], stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", health.PROCESSES)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["told to stop", "killed"])
def test_a_process_is_missing_until_it_runs_and_when_it_has_ended(
    fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: signal.Signals
) -> None:
    monkeypatch.setenv("VIRTFLEET_LEASE_SECONDS", "3")
    others = [each for each in health.PROCESSES if each != name]
    assert missing() == list(health.PROCESSES)
    with running(name, tmp_path / "log") as process:
        wait_until(lambda: missing() == others, BOUND, f"{name} to be there")
        process.send_signal(end)
        process.wait(BOUND)
        if end == signal.SIGTERM:
            assert process.returncode == 0
            with database.read() as session:
                assert session.query(Lease).count() == 0
        wait_until(lambda: missing() == list(health.PROCESSES), BOUND, f"{name} to be missing")


def test_one_good_lease_of_many_will_do_and_lapsed_or_strange_ones_do_not(fleet_home: Path) -> None:
    soon, over = clock.now() + timedelta(hours=1), clock.now() - timedelta(seconds=1)
    leases = {"worker:a/1": over, "worker:a/2": soon, "observer": over, "controllers": soon, "control": soon}
    with database.write() as session:
        for name, until in leases.items():
            session.add(Lease(name=name, holder="x", until=until))
    assert missing() == ["observer", "controller"]
