"""A fleet's database with a project, a zone, hosts and machines, for what the observer writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtfleet import database
from virtfleet.models import Host, Project, User, Vm, Zone

AddVm = Callable[..., None]
AddHost = Callable[..., None]
MIB = 2**20


@pytest.fixture
def fleet_home(fleet_home: Path) -> Path:
    """A fresh home with a database in which there is a zone to stand in."""
    with database.write() as session:
        session.add(Project(id="prj_1", name="default"))
        session.flush()
        session.add(User(id="usr_1", name="admin", project_id="prj_1"))
        session.add(Zone(id="zon_1", name="zone-a"))
    return fleet_home


@pytest.fixture
def add_host(fleet_home: Path) -> AddHost:
    """Return what registers the host `name` under its name as id."""

    def add(name: str, uri: str = "", **values: Any) -> None:
        with database.write() as session:
            number = session.query(Host).count() + 1
            uri_or_any = uri or f"qemu+tcp://{name}.invalid/system"
            session.add(Host(id=name, number=number, name=name, uri=uri_or_any, zone_id="zon_1", **values))

    return add


@pytest.fixture
def add_vm(fleet_home: Path) -> AddVm:
    """Return what gives the machine `uuid` a row, with its UUID as id, on a host."""

    def add(uuid: str, host: str, state: str, **values: Any) -> None:
        row: dict[str, Any] = {"vcpus": 1, "memory_bytes": 32 * MIB, "disk_bytes": 0, "pool": "default"}
        with database.write() as session:
            names = {"id": uuid, "uuid": uuid, "name": uuid, "libvirt_name": uuid}
            owners = {"project_id": "prj_1", "owner_id": "usr_1", "zone_id": "zon_1", "policy": "bin_packing"}
            number = session.query(Vm).count() + 1
            session.add(Vm(**(row | names | owners | values), number=number, host_id=host, state=state))

    return add
