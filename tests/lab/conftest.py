"""A fleet on the lab, shared by the tests of a file; each test leaves it as it found it."""

from collections.abc import Iterator

import pytest
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet, running


@pytest.fixture(scope="module")
def whole_fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for a file of tests: its observer would keep watching the hosts that other files break."""
    with running(lab, tmp_path_factory.mktemp("home")) as fleet:
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with nothing on it before and nothing left of the test afterwards."""
    before = whole_fleet.things()
    yield whole_fleet
    for host in whole_fleet.lab.hosts():
        whole_fleet.lab.undo(host.name)
    whole_fleet.delete_all()
    assert whole_fleet.things() == before
