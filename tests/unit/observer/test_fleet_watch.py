"""The observer's loop over libvirt's test driver, with a real database that is not always there for it."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtfleet import database, settings
from virtfleet.models import Host, Lease, Vm
from virtfleet.observer import fleet
from virtfleet.observer.fleet import FleetWatch

from tests.unit.observer.conftest import AddHost, AddVm

MACHINE = "6695eb01-f6a4-8304-79aa-97f2502e193f"
"""The one that the test driver has from the start, running."""
BOUND = 60.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come about within {BOUND:g} s"
        time.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts are looked at often, and nobody waits long for the database."""
    monkeypatch.setenv("VIRTFLEET_OBSERVE_SECONDS", "0.2")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr(fleet, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(fleet, "CALM_SECONDS", 0.2)


def children() -> list[str]:
    found = []
    for commandline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = commandline.read_bytes().split(b"\0")
            if b"virtfleet.observer.child" in words and b"%d" % os.getpid() in words:
                found.append(commandline.parent.name)
    return found


@contextlib.contextmanager
def watching() -> Iterator[FleetWatch]:
    watch = FleetWatch(settings.load())
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(BOUND)
    assert not thread.is_alive()
    assert children() == []


@contextlib.contextmanager
def somebody_writing(home: Path) -> Iterator[None]:
    """Hold the database's write lock."""
    other = sqlite3.connect(home / "virtfleet.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


def host() -> Host:
    with database.read() as session:
        found = session.get_one(Host, "a")
        session.expunge_all()
        return found


def lease() -> Lease | None:
    with database.read() as session:
        found = session.get(Lease, fleet.LEASE)
        session.expunge_all()
        return found


def test_what_a_host_says_gets_into_the_rows_and_nothing_is_left_at_the_end(
    impatient: None, add_host: AddHost, add_vm: AddVm
) -> None:
    add_host("a", uri="test:///default")
    add_vm(MACHINE, "a", "stopped")
    with watching():
        wait_until(lambda: host().state == "up", "the host's answer")
        with database.read() as session:
            assert session.get_one(Vm, MACHINE).state == "running"
        assert lease() is not None
        assert len(children()) == 1
    assert lease() is None


def test_a_busy_database_holds_the_observer_up_and_no_more(
    impatient: None, fleet_home: Path, add_host: AddHost, caplog: pytest.LogCaptureFixture
) -> None:
    add_host("a", uri="test:///default")
    with watching():
        wait_until(lambda: host().state == "up", "the host's answer")
        same = children()
        with somebody_writing(fleet_home):
            wait_until(lambda: "could not be written" in caplog.text, "a write that fails")
            wait_until(lambda: "the database could not be used" in caplog.text, "a beat that fails")
            seen, alive = host().observed_at, lease()
        wait_until(lambda: host().observed_at != seen, "the host seen again")
        wait_until(lambda: alive is None or (lease() or alive).until > alive.until, "the next beat")
        assert host().state == "up"
        assert children() == same


def test_the_observer_ends_while_the_database_is_busy(impatient: None, fleet_home: Path, add_host: AddHost) -> None:
    add_host("a", uri="test:///default")
    with watching() as watch:
        wait_until(lambda: host().state == "up", "the host's answer")
        with somebody_writing(fleet_home):
            watch.stop()
            wait_until(lambda: children() == [], "the child's end")
