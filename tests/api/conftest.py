"""A fleet of one test: its own home, settings, database and queue."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from virtfleet import database, migrations, settings
from virtfleet.jobs import kinds, queue

from tests.api.job_bench import Bench


@pytest.fixture
def fleet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh VIRTFLEET_HOME with an empty database, settings read anew, nothing left open afterwards."""
    home = tmp_path / "home"
    monkeypatch.setenv("VIRTFLEET_HOME", str(home))
    settings.load.cache_clear()
    migrations.upgrade()
    yield home
    queue.forget_bells()
    database.dispose()
    settings.load.cache_clear()


@pytest.fixture
def bench(fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A project, an owner and two hosts in a fresh fleet; kinds and what is registered for them are the test's own."""
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    monkeypatch.setattr(kinds, "_finishers", {})
    monkeypatch.setattr(kinds, "_secret_readers", [])
    return Bench(tmp_path)
