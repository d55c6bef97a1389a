"""What a caller wants of a new machine, and what becomes of it together with the fleet's defaults."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from virtfleet import names, settings
from virtfleet.errors import Problem
from virtfleet.models import Flavor, Host, Image, Network, Zone
from virtfleet.services import flavors, images, nwfilters, zones
from virtfleet.services.auth import Principal
from virtfleet.services.flavors import DEFAULT_SIZE, Size
from virtfleet.services.lookup import find

MOST_AT_ONCE = 100
NO_NETWORK = "none"
WAITS = ("none", "running", "address", "agent")
NEEDS_A_GUEST = ("address", "agent")
KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [\x20-\x7e]*)?", re.ASCII)
LONGEST_KEY = 8192
LONGEST_USER_DATA = 256 * 1024


@dataclass(frozen=True)
class NewVm:
    """The request. Sizes are bytes; None leaves the choice to the flavor, the settings or placement."""

    name: str
    count: int = 1
    all_or_nothing: bool = False
    flavor: str | None = None
    vcpus: int | None = None
    memory_bytes: int | None = None
    max_vcpus: int | None = None
    max_memory_bytes: int | None = None
    """What it can have without a reboot; None: no more than it has."""
    disk_bytes: int | None = None
    image: str | None = None
    zone: str | None = None
    host: str | None = None
    pool: str | None = None
    network: str | None = None
    address: str | None = None
    filter: str | None = None
    """The network filter of its card."""
    policy: str | Mapping[str, Any] | None = None
    ssh_keys: Sequence[str] = ()
    user_data: str | None = field(default=None, repr=False)
    wait_for: str | None = None
    start: bool = True
    paused: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings, as module `vm` takes them."""
    label: str | None = None
    """The name that S1's contract shows for it: there, names may be equal."""


@dataclass(frozen=True)
class Plan:
    """The request with everything decided but the hosts."""

    zone: Zone
    flavor: Flavor | None
    size: Size
    image: Image
    network: Network | None
    pool: str
    policy: str | Mapping[str, Any]
    wait_for: str
    max_memory_bytes: int | None = None

    @property
    def policy_name(self) -> str:
        """The policy in one word."""
        return self.policy if isinstance(self.policy, str) else str(self.policy.get("name", "custom"))

    def request(self, name: str, host: str | None, exclude: Sequence[str] = ()) -> dict[str, Any]:
        """Return the machine as placement takes it."""
        return {
            "id": name,
            "vcpus": self.size.vcpus,
            "memory_bytes": self.max_memory_bytes or self.size.memory_bytes,
            "disks": [{"pool": self.pool, "size_bytes": self.size.disk_bytes, "overlay": True}],
            "zone": self.zone.name,
            "host": host,
            "exclude": list(exclude),
        }


def _invalid(field_name: str, detail: str, hint: str) -> Problem:
    return Problem("invalid", detail, hint, errors=[{"field": field_name, "message": detail}])


def check(new: NewVm) -> None:
    """Check what can be checked without looking at the fleet. Raises Problem `invalid`."""
    names.check(new.name, "vm")
    if not 1 <= new.count <= MOST_AT_ONCE:
        raise _invalid("count", f"{new.count} machines cannot be made at once.", f"Ask for 1 to {MOST_AT_ONCE}.")
    if new.count > 1 and (new.address is not None):
        raise _invalid("address", "Several machines cannot have one address.", "Leave the address away.")
    if new.filter is not None:
        nwfilters.check_name(new.filter)
    for key in new.ssh_keys:
        if len(key) > LONGEST_KEY or not KEY.fullmatch(key.strip()):
            raise _invalid("ssh_keys", "One of the SSH keys is not a public key.", "Give a line of a .pub file.")
    if new.user_data is not None and (len(new.user_data.encode()) > LONGEST_USER_DATA or "\0" in new.user_data):
        raise _invalid("user_data", "The user data are larger than 256 KiB, or binary.", "Give a text that is smaller.")
    if new.wait_for is not None and new.wait_for not in WAITS:
        raise _invalid("wait_for", "That cannot be waited for.", f"Use one of {', '.join(WAITS)}.")
    if new.paused and not new.start:
        raise _invalid("paused", "What is not started cannot be paused.", "Leave one of the two away.")
    if new.paused and new.wait_for in NEEDS_A_GUEST:
        raise _invalid(
            "wait_for", f"A paused machine has no {new.wait_for} yet.", "Wait for nothing, or do not pause it."
        )


def decide(session: Session, who: Principal, new: NewVm) -> Plan:
    """Fill in the defaults. Raises Problem for things that do not exist, and for a disk smaller than the image."""
    chosen = settings.load()
    zone = _zone(session, new)
    size, flavor = size_of(session, who, new)
    for most, now, name in (
        (new.max_vcpus, size.vcpus, "max_vcpus"),
        (new.max_memory_bytes, size.memory_bytes, "max_memory"),
    ):
        if most is not None and most < now:
            raise _invalid(name, f"{name} is less than what the machine is to have.", "Leave it away, or raise it.")
    image = images.choose(session, who, new.image)
    if image.virtual_size_bytes > size.disk_bytes:
        raise Problem(
            "invalid",
            f"Image {image.name!r} is {_mib(image.virtual_size_bytes)} large; the disk would be "
            f"{_mib(size.disk_bytes)}.",
            "Choose a larger flavor or disk.",
            errors=[{"field": "disk", "message": "smaller than the image"}],
        )
    # S1 knows no networks: its machines are joined to one if there is one.
    without = new.network == NO_NETWORK or (new.label is not None and not zones.networks(session, zone))
    network = None if without else zones.network(session, zone, new.network)
    if network is None and new.filter is not None:
        raise _invalid("filter", "Without a network it has no card to filter.", "Leave the filter away.")
    by_dhcp = network is not None and network.kind == "nat"
    return Plan(
        zone=zone,
        flavor=flavor,
        size=size,
        image=image,
        network=network,
        pool=names.check(new.pool or chosen.pool, "pool"),
        max_memory_bytes=new.max_memory_bytes,
        policy=new.policy if new.policy is not None else chosen.policy,
        wait_for=new.wait_for or ("address" if by_dhcp and new.start and not new.paused else "running"),
    )


def _zone(session: Session, new: NewVm) -> Zone:
    if new.host is not None and new.zone is None:
        return find(session, Host, "host", new.host).zone
    return zones.choose(session, new.zone)


def size_of(session: Session, who: Principal, new: NewVm) -> tuple[Size, Flavor | None]:
    """Return what a machine will take, and the flavor that says so. Raises Problem `not_found`."""
    complete = None not in (new.vcpus, new.memory_bytes, new.disk_bytes)
    flavor = None if complete and new.flavor is None else flavors.choose(session, who, new.flavor)
    base = DEFAULT_SIZE if flavor is None else Size(flavor.vcpus, flavor.memory_bytes, flavor.disk_bytes)
    size = Size(
        vcpus=base.vcpus if new.vcpus is None else new.vcpus,
        memory_bytes=base.memory_bytes if new.memory_bytes is None else new.memory_bytes,
        disk_bytes=base.disk_bytes if new.disk_bytes is None else new.disk_bytes,
    )
    return size, flavor


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
