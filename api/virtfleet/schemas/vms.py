"""Machines."""

from typing import Any, Literal

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import io_limits
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from pydantic import Field, model_validator

from virtfleet.models import Vm
from virtfleet.schemas.base import In, Moment, Out, Paging, Size, Text
from virtfleet.schemas.images import LARGEST_VCPUS
from virtfleet.schemas.jobs import JobOut
from virtfleet.schemas.vm_settings import VmSettings

SMALLEST_MEMORY = 16 * 2**20
SMALLEST_DISK = 2**20
LARGEST = 2**50


class VmWish(In):
    """How a machine should be; a name is enough, the rest has defaults."""

    flavor: Text | None = None
    vcpus: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS)
    memory: Size | None = Field(default=None, ge=SMALLEST_MEMORY, le=LARGEST)
    max_vcpus: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS, description="vCPUs without a reboot.")
    max_memory: Size | None = Field(
        default=None, ge=SMALLEST_MEMORY, le=LARGEST, description="Memory without a reboot; this is what is promised."
    )
    disk: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST)
    image: Text | None = None
    count: int = Field(default=1, ge=1, le=100, description="More than one are called name-1, name-2, …")
    all_or_nothing: bool = Field(default=False, description="When one cannot be made, make none.")
    zone: Text | None = None
    host: Text | None = Field(default=None, description="The only host that will do.")
    pool: Text | None = None
    network: Text | None = Field(default=None, description="A network of the zone, or none.")
    address: Text | None = Field(default=None, description="An address of the network; a free one if left out.")
    filter: Text | None = Field(default=None, description="The network filter that guards its card.")
    policy: Text | dict[str, Any] | None = Field(default=None, description="A placement policy.")
    ssh_keys: list[str] = Field(default_factory=list, max_length=100)
    user_data: str | None = Field(default=None, description="cloud-init user data; kept as a secret.")
    wait_for: Literal["none", "running", "address", "agent"] | None = None
    start: bool = True
    paused: bool = Field(default=False, description="Start it, but let it wait for the action resume.")


class VmIn(VmWish):
    """A machine, or several, to create."""

    name: Text


class PlacementIn(VmWish):
    """A machine to place, to see where it would go."""

    name: Text = "vm"


class VmAction(In):
    """What is to be done with a machine."""

    action: Literal["start", "stop", "reboot", "reset", "pause", "resume", "save"]
    force: bool = Field(default=False, description="Stop or reboot: when it does not obey in time, cut the power.")
    grace: float | None = Field(default=None, ge=0, le=3600, description="Stop or reboot: seconds it may take.")


class IoLimits(In):
    """Limits of a disk. Those left out are none; one for both directions excludes those for one."""

    bytes_per_second: Text | None = Field(default=None, description="With a unit, such as 10MiB.")
    read_bytes_per_second: Text | None = None
    write_bytes_per_second: Text | None = None
    iops: int | None = Field(default=None, ge=0, le=LARGEST)
    read_iops: int | None = Field(default=None, ge=0, le=LARGEST)
    write_iops: int | None = Field(default=None, ge=0, le=LARGEST)

    @model_validator(mode="after")
    def _usable(self) -> "IoLimits":
        try:
            io_limits(self.model_dump())
        except VirtfleetError as error:
            raise ValueError(f"{error.obstacle}. {error.hint}") from error
        return self

    def given(self) -> dict[str, Any]:
        """Return those that are limits."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Topology(In):
    """How a machine's vCPUs look. Their product is the most it can have; sockets follow when left out."""

    sockets: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS)
    cores: int = Field(default=1, ge=1, le=LARGEST_VCPUS)
    threads: int = Field(default=1, ge=1, le=LARGEST_VCPUS)


class VmPatch(VmSettings):
    """What is to be different about a machine. Without a reboot as far as that goes."""

    name: Text | None = Field(default=None, description="What it is to be called; it must be stopped for that.")
    vcpus: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS)
    max_vcpus: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS, description="vCPUs without a reboot.")
    memory: Size | None = Field(default=None, ge=SMALLEST_MEMORY, le=LARGEST)
    max_memory: Size | None = Field(default=None, ge=SMALLEST_MEMORY, le=LARGEST, description="Without a reboot.")
    disk: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST, description="The size to grow to.")
    grow_disk_by: Size | None = Field(default=None, ge=1, le=LARGEST, description="How much to grow by.")
    topology: Topology | None = Field(default=None, description="How its vCPUs look.")
    autostart: bool | None = Field(default=None, description="Whether it starts with its host.")
    io: IoLimits | None = Field(default=None, description="Limits of its disks.")
    allow_power_cycle: bool = Field(default=False, description="Stop and start it for what needs that.")
    force: bool = Field(default=False, description="When it does not shut down in time, cut its power.")
    grace: float | None = Field(default=None, ge=0, le=3600, description="Seconds that shutting down may take.")

    @model_validator(mode="after")
    def _something(self) -> "VmPatch":
        how = {"allow_power_cycle", "force", "grace"}
        if not any(value is not None for name, value in self.model_dump().items() if name not in how):
            raise ValueError("nothing is to be changed")
        if self.disk is not None and self.grow_disk_by is not None:
            raise ValueError("disk and grow_disk_by exclude each other")
        return self


class VmQuery(Paging):
    """Which machines."""

    state: str | None = None
    host: str | None = None
    zone: str | None = None
    name: str | None = None


class VmOut(Out):
    """A machine: what was asked for, where it is, how it was last seen."""

    id: str
    number: int
    uuid: str
    name: str
    project: str
    owner: str
    state: str
    host: str
    zone: str
    address: str | None
    addresses: list[str]
    mac: str | None
    networks: list[dict[str, Any]]
    vcpus: int
    memory: str
    memory_bytes: int
    max_vcpus: int | None
    max_memory: str | None
    max_memory_bytes: int | None
    autostart: bool
    io: dict[str, Any]
    settings: dict[str, Any]
    disk: str
    disk_bytes: int
    pool: str
    flavor: str | None
    image: str | None
    policy: str
    explanation: dict[str, Any]
    job: str | None
    error: dict[str, Any] | None
    created_at: Moment
    updated_at: Moment
    observed_at: Moment | None
    generation: int

    @classmethod
    def of(cls, row: Vm, *, project: str, owner: str) -> "VmOut":
        """Make it from a row."""
        reserved = [address.address for address in row.addresses if address.address]
        known = list(dict.fromkeys([*reserved, *row.seen_addresses]))
        plain = ("id", "number", "uuid", "name", "state", "vcpus", "memory_bytes", "disk_bytes", "pool", "flavor")
        return cls(
            **{name: getattr(row, name) for name in (*plain, "image", "policy", "explanation", "error")},
            project=project,
            owner=owner,
            host=row.host.name,
            zone=row.zone.name,
            address=known[0] if known else None,
            addresses=known,
            mac=row.addresses[0].mac if row.addresses else None,
            networks=[
                {"network": each.network.name, "address": each.address, "mac": each.mac} for each in row.addresses
            ],
            memory=format_size(row.memory_bytes),
            max_vcpus=row.max_vcpus,
            max_memory=None if row.max_memory_bytes is None else format_size(row.max_memory_bytes),
            max_memory_bytes=row.max_memory_bytes,
            autostart=bool(row.spec.get("autostart", False)),
            io=row.spec.get("io") or {},
            settings={name: row.spec[name] for name in VmSettings.model_fields if row.spec.get(name) is not None},
            disk=format_size(row.disk_bytes),
            job=row.job_id,
            created_at=row.created_at,
            updated_at=row.updated_at,
            observed_at=row.observed_at,
            generation=row.generation,
        )


class VmsAccepted(Out):
    """A creation under way."""

    job: JobOut
    vms: list[VmOut]
