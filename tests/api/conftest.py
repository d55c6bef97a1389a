"""The fleet that tests of decisions begin with: rows only, no host that anybody needs to reach."""

from pathlib import Path

import pytest
from virtfleet.services import auth

from tests.api.fleet_rows import add_host, furnish


@pytest.fixture
def two_hosts(fleet_home: Path, tmp_path: Path) -> None:
    """A fresh fleet of two hosts, with a network, an image and a flavor."""
    auth.first_start()
    add_host(1)
    add_host(2)
    furnish(tmp_path / "tiny.img")
