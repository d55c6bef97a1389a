"""Rows of a fleet whose hosts nobody needs to reach: for tests of what the API decides, not of what a worker does."""

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import select
from virtfleet import clock, database
from virtfleet.ids import new_id
from virtfleet.models import Host, Vm
from virtfleet.services import auth, flavors, images, ledger, zones
from virtfleet.services.flavors import Size
from virtfleet.services.images import Facts, NewImage

GIB = 2**30


def add_host(
    number: int,
    *,
    memory_bytes: int = 8 * GIB,
    cpus: int = 4,
    state: str = "up",
    zone_name: str = "default",
    **more: Any,
) -> str:
    """Register a host as if it had been discovered; return its name."""
    with database.write() as session:
        who = auth.system(session)
        zone = zones.ensure(session, who, zone_name)
        info = {
            "vcpus": {"total": cpus, "allocated": 0},
            "memory": {"total_bytes": memory_bytes, "allocated_bytes": 0, "free_bytes": memory_bytes},
            "pools": [
                {
                    "name": "default",
                    "active": True,
                    "shared": False,
                    "capacity_bytes": 100 * GIB,
                    "allocation_bytes": 0,
                    "available_bytes": 100 * GIB,
                    "provisioned_bytes": 0,
                }
            ],
            "networks": [],
            "load": {},
        }
        row = Host(
            id=new_id("hst"),
            number=ledger.next_number(session, "host", number),
            name=f"host{number}",
            uri=f"qemu+tcp://127.0.0.{number}/system",
            zone_id=zone.id,
            state=state,
            info=info,
            observed_at=clock.now(),
            **more,
        )
        session.add(row)
        return row.name


def add_vm(name: str, host: str, *, memory_bytes: int = GIB, vcpus: int = 1, state: str = "running") -> str:
    """Write down a machine as if it had been made on a host; return its id."""
    with database.write() as session:
        who = auth.system(session)
        there = session.scalars(select(Host).where(Host.name == host)).one()
        row = Vm(
            id=new_id("vm"),
            number=ledger.next_number(session, "vm"),
            uuid=str(uuid.uuid4()),
            name=name,
            libvirt_name=name,
            zone_id=there.zone_id,
            host_id=there.id,
            project_id=who.project_id,
            owner_id=who.user_id,
            vcpus=vcpus,
            memory_bytes=memory_bytes,
            disk_bytes=GIB,
            pool="default",
            policy="bin_packing",
            state=state,
        )
        session.add(row)
        return row.id


def furnish(image: Path) -> None:
    """Add a network, an image and a flavor."""
    image.write_bytes(b"\0" * 510 + b"\x55\xaa")
    with database.write() as session:
        who = auth.system(session)
        zones.ensure(session, who, "default")
        network = {"name": "guests", "zone": "default", "kind": "bridge", "source": "br0", "cidr": "10.9.0.0/24"}
        zones.add_network(session, who, **network)
        facts = Facts("sha256:" + "0" * 64, "raw", 512, 512)
        images.register(session, who, NewImage(str(image), "tiny"), facts)
        flavors.create(session, who, "small", Size(1, GIB, GIB))
