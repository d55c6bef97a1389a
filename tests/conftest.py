"""What tests of several rooms share: a lab of real libvirt hosts, and the home of a fleet."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Imported where it is used: it brings libvirt and the collection, and a test that wants Ansible's own loader
    # of collections must have neither imported before.
    from virtfleet.lab import Lab

    from tests.api.job_bench import Bench

# A shell that runs something in the background has it ignore SIGINT, and whatever that starts; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NAME_OF_A_TEST_LAB = re.compile(r"test-(\d+)(-.+)?")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Lab]":
    """A lab of three hosts, up, one per test session (and per worker of pytest-xdist); gone afterwards.

    Tests undo what they break and remove what they make. To reuse a lab that is up while you write tests, name it:
    VIRTFLEET_TEST_LAB=lab, and VIRTFLEET_TEST_HOME when it is not in your usual VIRTFLEET_HOME. That one is left up.
    """
    from virtfleet.lab import Lab

    reused = os.environ.get("VIRTFLEET_TEST_LAB")
    if reused:
        home = os.environ.get("VIRTFLEET_TEST_HOME")
        there = Lab(reused, Path(home) if home else None)
        there.up()
        yield there
        return
    remove_labs_of_dead_test_runs()
    fresh = Lab(f"test-{os.getpid()}", tmp_path_factory.mktemp("fleet"), say=print)
    try:
        fresh.up(3)
        yield fresh
    finally:
        fresh.down()


def remove_labs_of_dead_test_runs() -> None:
    """Take down the labs of test runs that were killed before they could do it themselves."""
    from virtfleet.lab import Lab, LabError, registry

    for entry in registry.entries():
        found = NAME_OF_A_TEST_LAB.fullmatch(entry.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            with suppress(LabError):
                Lab(entry.name, entry.folder.parents[1]).down()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | str]:
    """An empty database with all its tables, since the migrations take their time: a file, or a URL of PostgreSQL."""
    from virtfleet import database, migrations, settings

    from tests import databases

    home = tmp_path_factory.mktemp("migrated")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("VIRTFLEET_HOME", str(home))
        made: Path | str = home / "virtfleet.db"
        server = databases.server()
        if server is not None:
            made = stack.enter_context(databases.made(server, f"test_{os.getpid()}"))
            patch.setenv("VIRTFLEET_DATABASE_URL", made)
        settings.load.cache_clear()
        migrations.upgrade()
        database.dispose()
        patch.undo()
        settings.load.cache_clear()
        yield made


@pytest.fixture(scope="session")
def place_of_homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process's tests have their homes, one after another: at one address a database keeps its engine, which
    has by then compiled the statements that all of them use."""
    return tmp_path_factory.mktemp("place") / "home"


@pytest.fixture
def fleet_home(
    place_of_homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_database: Path | str
) -> Iterator[Path]:
    """A fresh VIRTFLEET_HOME with an empty database, settings read anew, nothing left open afterwards.

    What it held lies in the test's own folder in the end.
    """
    from virtfleet import database, settings
    from virtfleet.jobs import queue

    from tests import databases

    home = place_of_homes
    home.mkdir(mode=0o700)
    with ExitStack() as stack:
        stack.callback(lambda: home.rename(tmp_path / "home"))
        if isinstance(migrated_database, Path):
            shutil.copyfile(migrated_database, home / migrated_database.name)
        else:
            stack.enter_context(databases.as_it_is(migrated_database))
            monkeypatch.setenv("VIRTFLEET_DATABASE_URL", migrated_database)
        monkeypatch.setenv("VIRTFLEET_HOME", str(home))
        settings.load.cache_clear()
        yield home
        queue.forget_bells()
        database.dispose()
        settings.load.cache_clear()


@pytest.fixture
def bench(fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Bench":
    """A project, an owner and two hosts in a fresh fleet; kinds and what is registered for them are the test's own."""
    from virtfleet.jobs import kinds

    from tests.api.job_bench import Bench

    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    monkeypatch.setattr(kinds, "_finishers", {})
    monkeypatch.setattr(kinds, "_secret_readers", [])
    return Bench(tmp_path)
