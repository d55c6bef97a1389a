"""Rows of a fleet whose hosts nobody needs to reach: for tests of what the API decides, not of what a worker does."""

from pathlib import Path
from typing import Any

from virtfleet import clock, database
from virtfleet.ids import new_id
from virtfleet.models import Host
from virtfleet.services import auth, flavors, images, ledger, zones
from virtfleet.services.flavors import Size
from virtfleet.services.images import Facts, NewImage

GIB = 2**30


def add_host(number: int, *, memory_bytes: int = 8 * GIB, cpus: int = 4, state: str = "up", **more: Any) -> str:
    """Register a host as if it had been discovered; return its name."""
    with database.write() as session:
        who = auth.system(session)
        zone = zones.ensure(session, who, "default")
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
