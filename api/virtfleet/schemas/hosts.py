"""Hosts, zones, networks, capacity."""

from typing import Any, Literal

from pydantic import Field

from virtfleet.models import Host, Network, Zone
from virtfleet.schemas.base import In, Moment, Out, Size, Source, Text

NETWORK = ("name", "active", "bridge", "forward")
"""What a host tells of each of its networks; /hosts/{ref}/networks tells all."""


class HostIn(In):
    """A host to register."""

    uri: Source = Field(
        description="A libvirt URI, an address, or user@address.", examples=["qemu+ssh://root@10.0.0.5/system"]
    )
    name: Text | None = None
    zone: Text | None = None
    variables: dict[str, Any] = Field(
        default_factory=dict, description="virtfleet_shared_pools (a list), ansible_host, ansible_port, ansible_user."
    )


class HostPatch(In):
    """What of a host is to change."""

    maintenance: bool | None = Field(default=None, description="No machine is placed on a host in maintenance.")
    zone: Text | None = None
    reserved_vcpus: int | None = Field(default=None, ge=0, le=100_000)
    reserved_memory: Size | None = None
    vcpu_ratio: float | None = Field(default=None, gt=0, le=1000)


class HostOut(Out):
    """A host as it was last seen."""

    id: str
    number: int
    name: str
    uri: str
    zone: str
    state: str
    error: str | None
    observed_at: Moment | None
    maintenance: bool
    vcpus: dict[str, Any]
    memory: dict[str, Any]
    pools: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    load: dict[str, Any]
    kvm: bool | None
    versions: dict[str, Any]
    variables: dict[str, Any]
    created_at: Moment
    updated_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Host, figures: dict[str, Any]) -> "HostOut":
        """Make it from a row, and what `services.capacity` says of it."""
        return cls(
            id=row.id,
            number=row.number,
            name=row.name,
            uri=row.uri,
            zone=row.zone.name,
            state=row.state,
            error=row.error,
            observed_at=row.observed_at,
            maintenance=row.maintenance,
            vcpus=figures["vcpus"],
            memory=figures["memory"],
            pools=figures["pools"],
            networks=[{key: each.get(key) for key in NETWORK} for each in row.info.get("networks") or []],
            load=row.info.get("load") or {},
            kvm=row.info.get("kvm"),
            versions={
                "libvirt": row.info.get("libvirt_version"),
                "hypervisor": row.info.get("hypervisor_version"),
            },
            variables=row.variables,
            created_at=row.created_at,
            updated_at=row.updated_at,
            generation=row.generation,
        )


class ZoneIn(In):
    """A zone to make."""

    name: Text


class ZoneOut(Out):
    """A zone."""

    id: str
    name: str
    created_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Zone) -> "ZoneOut":
        """Make it from a row."""
        return cls.model_validate(row)


class NetworkIn(In):
    """A network that the hosts of a zone have."""

    name: Text
    zone: Text = "default"
    kind: Literal["bridge", "nat"] = Field(
        default="bridge",
        description="bridge: one L2 over the hosts, addresses by us; nat: libvirt's, host-local, DHCP.",
    )
    source: Text = Field(description="Name of the bridge, or of the libvirt network, on every host.")
    cidr: Text | None = Field(default=None, examples=["10.78.0.0/24"])
    gateway: Text | None = None
    first: Text | None = Field(default=None, description="First address to hand out.")
    last: Text | None = Field(default=None, description="Last address to hand out.")
    dns: list[Text] = Field(default_factory=list, max_length=8)


class NetworkOut(Out):
    """A network."""

    id: str
    name: str
    zone: str
    kind: str
    source: str
    cidr: str | None
    gateway: str | None
    first: str | None
    last: str | None
    dns: list[str]
    created_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Network, zone: str) -> "NetworkOut":
        """Make it from a row and its zone's name."""
        fields = ("id", "name", "kind", "source", "cidr", "gateway", "first", "last", "dns", "created_at", "generation")
        return cls(zone=zone, **{name: getattr(row, name) for name in fields})
