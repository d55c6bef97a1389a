"""A fleet on the lab, shared by the tests of a file; each test leaves it as it found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet, running

LONGEST_FIRST = (
    *("direct_execution", "every_step_of_a_create", "migrations", "fleet_faults", "fleet", "vm_playbooks"),
    *("vm_migrate_module", "vm_change_playbooks", "vm_snapshot_module", "guests", "image_removal", "observer"),
    *("vm_changes", "storage_modules", "vm_module", "hosts_over_ssh", "guest_image", "guests_inventory"),
    *("cli_on_a_fleet", "vm_update", "lab"),
)
"""The files that take a minute or more: a worker that began one of them late would be the last, and alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file nothing changes."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST_FIRST)}
    here = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.stem, len(place)) if item.path.parent == here else -1)


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
