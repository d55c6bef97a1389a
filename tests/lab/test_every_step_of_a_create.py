"""A creation broken at each of its steps: the machine exists exactly once, or nothing of it is left.

The steps are those of the control plane (claimed, run directory written, playbook started, end written) and each call
of libvirt that changes the host. Production code knows nothing of it: workers die in functions that the test wraps, and
libvirt is spoken to through a wire that the test can cut.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from virtfleet.jobs import survivors
from virtfleet.lab import Lab
from virtfleet.lab.layout import LIBVIRT_PORT

from tests.lab.every_step import WHEN
from tests.lab.fleet import QUICK, Fleet, running, wait_until
from tests.lab.libvirt_proxy import Proxy, proxied
from tests.lab.test_storage_modules import ROOT
from tests.lab.traces import traces

pytestmark = pytest.mark.lab

CHANGES = 5
"""Calls that change the host: make the disk, make the seed, upload it, define, start."""
NAME = "step1"
SECONDS = 150.0
PAUSED = 3
"""Its guest would take processor time, and has no part in this."""

# The worker as it is, but for one function that ends it, or fails, as often as is said.
BROKEN_WORKER = """
import importlib, os, signal, sys
where, name, when, how, times = sys.argv[1:]
module, _, inner = where.partition(":")
owner = importlib.import_module("virtfleet." + module)
owner = getattr(owner, inner) if inner else owner
real, left = getattr(owner, name), [int(times)]

def broken(*arguments, **named):
    def happens():
        if left[0] > 0:
            left[0] -= 1
            if how == "kill":
                os.killpg(0, signal.SIGKILL)
            raise getattr(importlib.import_module("sqlalchemy.exc"), how)("on purpose", None, Exception())
    if when == "before":
        happens()
    answer = real(*arguments, **named)
    if when == "after":
        happens()
    return answer

setattr(owner, name, broken)
importlib.import_module("virtfleet.worker").main()
"""


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Iterator[Proxy]:
    """The wire to host1; it knows which calls change a host."""
    host = lab.host("host1")
    with proxied(str(lab.layout.host(1).address), LIBVIRT_PORT) as proxy:
        disk = {"size": "1MiB"}
        options = {"name": "vm-learn", "vcpus": 1, "memory": "32MiB", "disks": [disk], "cloud_init": {"hostname": "x"}}
        proxy.learn("vm", **options, state="paused")
        proxy.learn("vm", name="vm-learn", state="running")
        proxy.learn("vm", name="vm-learn", state="absent", delete_made_volumes=True)
        assert host.name == "host1"
        yield proxy


@pytest.fixture(scope="module")
def wired(lab: Lab, wire: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of one host, reached through the wire; the image's base is in its pool already."""
    with running(lab, tmp_path_factory.mktemp("home"), {"host1": wire.uri}) as fleet:
        fleet.create("warm", wait_for="none", start=False)
        fleet.delete_all()
        yield fleet


@pytest.fixture
def fleet(wired: Fleet) -> Iterator[Fleet]:
    """The fleet; nothing is left of the test."""
    before = traces(wired)
    yield wired
    wired.delete_all()
    assert traces(wired) == before


def ask(fleet: Fleet) -> dict[str, Any]:
    body = {"name": NAME, "wait_for": "none", "paused": True, "user_data": "#cloud-config\n{}\n"}
    return dict(fleet.post("/vms", body)["job"])


def exists_once(fleet: Fleet) -> None:
    """The machine is there once, with the disks made for it, as the row says."""
    vm = fleet.get(f"/vms/{NAME}")
    found = [(host.name, *fleet.domains(host.name)[NAME]) for host in fleet.lab.hosts() if _has(fleet, host.name)]
    assert found == [("host1", vm["uuid"], PAUSED)]
    volumes = {thing for thing in fleet.things()["host1"] if NAME in thing and thing.startswith("volume")}
    assert volumes == {f"volume default/{NAME}-{vm['uuid'][:8]}-{what}" for what in ("root", "seed.iso")}
    assert (vm["state"], vm["error"]) == ("paused", None)


def _has(fleet: Fleet, host: str) -> bool:
    return NAME in fleet.domains(host)


@contextmanager
def broken_worker(fleet: Fleet, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that breaks where it is told to; the fleet's own hears nothing until this one has ended."""
    own = fleet.pid_of("worker")
    os.kill(own, signal.SIGSTOP)
    log = (fleet.home / "broken-worker.log").open("ab")
    worker = subprocess.Popen(
        [sys.executable, "-c", BROKEN_WORKER, *words],
        env={**os.environ, **QUICK, "VIRTFLEET_HOME": str(fleet.home)},
        cwd=ROOT,
        start_new_session=True,
        stdout=log,
        stderr=log,
    )
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(60)
        log.close()
        os.kill(own, signal.SIGCONT)


STEPS = [
    pytest.param("jobs.claim", "claim", "after", id="claiming"),
    pytest.param("jobs.attempts", "prepare", "before", id="claimed"),
    pytest.param("jobs.runner", "_furnish", "after", id="run directory written"),
    pytest.param("jobs.runner", "_read", "before", id="playbook started"),
    pytest.param("jobs.work", "_write_end", "before", id="playbook ended"),
    pytest.param("jobs.work", "_write_end", "after", id="end written, not committed"),
    pytest.param("jobs.work:Worker", "_close", "after", id="end committed, nobody told"),
]


@pytest.mark.parametrize(("where", "name", "when"), STEPS)
def test_a_worker_that_is_killed_at_any_step_of_its_own(fleet: Fleet, where: str, name: str, when: str) -> None:
    with broken_worker(fleet, where, name, when, "kill", "1") as worker:
        job = ask(fleet)
        assert worker.wait(SECONDS) == -signal.SIGKILL
    ended = fleet.ended(job, SECONDS)
    assert ended["state"] == "succeeded", ended["error"]
    exists_once(fleet)


@pytest.mark.parametrize("times", ["2", "9"])
@pytest.mark.parametrize("when", WHEN)
def test_an_end_that_cannot_be_written_is_written_later(fleet: Fleet, when: str, times: str) -> None:
    """A few times the worker tries itself; then the job is put back, and its playbook finds all done."""
    with broken_worker(fleet, "jobs.work", "_write_end", when, "OperationalError", times):
        job = ask(fleet)
        ended = fleet.ended(job, SECONDS)
    assert ended["state"] == "succeeded", ended["error"]
    exists_once(fleet)


def test_an_end_that_goes_wrong_in_the_service_is_told_and_the_machine_is_removed(fleet: Fleet) -> None:
    with broken_worker(fleet, "services.vms.endings", "_keep", "before", "OperationalError", "1"):
        job = ask(fleet)
        ended = fleet.ended(job, SECONDS)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "internal")
    wait_until(lambda: fleet.http.get(f"/vms/{NAME}").status_code == 404, SECONDS, "the machine to be removed")


# Every call is met both before and after, and both ways: all four combinations of each would tell no more.
KILLS = [(number, when, (number + (when == "after")) % 2 == 0) for number in range(1, CHANGES + 1) for when in WHEN]


@pytest.mark.parametrize(("number", "when", "whole_group"), KILLS)
def test_a_worker_that_is_killed_at_any_change_of_the_host(
    fleet: Fleet, wire: Proxy, number: int, when: str, whole_group: bool
) -> None:
    wire.arm(number, when, lambda: kill(fleet, whole_group))
    job = ask(fleet)
    assert wire.acted.wait(SECONDS)
    ended = fleet.ended(job, SECONDS)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2), ended["error"]
    exists_once(fleet)


def kill(fleet: Fleet, whole_group: bool) -> None:
    """End the worker, and with `whole_group` at the same time all that it has started."""
    worker = fleet.pid_of("worker")
    runs = [run.name for run in fleet.home.glob("runs/*/*")] if whole_group else []
    os.kill(worker, signal.SIGSTOP)
    for pid in {pid for run in runs for pid in survivors.find(run)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.killpg(worker, signal.SIGKILL)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("number", range(1, CHANGES + 1))
def test_a_connection_that_is_cut_at_any_change_of_the_host(fleet: Fleet, wire: Proxy, number: int, when: str) -> None:
    wire.arm(number, when, lambda: None)
    job = ask(fleet)
    ended = fleet.ended(job, SECONDS)
    assert wire.acted.is_set()
    assert ended["state"] == "failed", ended
    assert "host1" in ended["error"]["message"]
    assert ended["error"]["hint"]
    wait_until(lambda: fleet.http.get(f"/vms/{NAME}").status_code == 404, SECONDS, "the clean-up")
