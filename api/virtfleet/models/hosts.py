"""Hosts, the zones they stand in, and the networks and addresses of those zones."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from virtfleet.models.base import Base, Stamped, id_column


class Zone(Stamped, Base):
    """An inventory group of hosts among which machines may be placed and moved."""

    __tablename__ = "zones"
    id: Mapped[str] = id_column()
    name: Mapped[str] = mapped_column(unique=True)


class Host(Stamped, Base):
    """A hypervisor, and what was last seen of it."""

    __tablename__ = "hosts"
    id: Mapped[str] = id_column()
    number: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(unique=True)
    uri: Mapped[str] = mapped_column(unique=True)
    zone_id: Mapped[str] = mapped_column(ForeignKey("zones.id"), index=True)
    variables: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Inventory variables of the host besides its URI (SSH user, shared pools, …)."""
    maintenance: Mapped[bool] = mapped_column(default=False)
    reserved_vcpus: Mapped[int] = mapped_column(default=0)
    reserved_memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    vcpu_ratio: Mapped[float | None]
    """vCPUs promised per real one; None = the fleet's setting."""

    state: Mapped[str] = mapped_column(default="unknown")
    """unknown (never seen), up, or down."""
    error: Mapped[str | None]
    """Why the host is down, as a sentence; None while it is up."""
    observed_at: Mapped[datetime | None]
    """When the host last answered."""
    info: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The last `host_info` of the host, without its machines."""
    unmanaged: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What machines that are not ours take: {vcpus, memory_bytes, pools: {name: bytes}}."""
    zone: Mapped[Zone] = relationship(lazy="joined")


class Network(Stamped, Base):
    """A network of a zone that machines are joined to, with the addresses it hands out."""

    __tablename__ = "networks"
    __table_args__ = (UniqueConstraint("zone_id", "name"),)
    id: Mapped[str] = id_column()
    name: Mapped[str]
    zone_id: Mapped[str] = mapped_column(ForeignKey("zones.id"), index=True)
    kind: Mapped[str] = mapped_column(default="bridge")
    """bridge: a bridge of that name on every host joins one L2; nat: libvirt's own network, host-local, DHCP."""
    source: Mapped[str]
    """Name of the bridge, or of the libvirt network."""
    cidr: Mapped[str | None]
    gateway: Mapped[str | None]
    first: Mapped[str | None]
    last: Mapped[str | None]
    dns: Mapped[list[Any]] = mapped_column(default=list)


class Address(Stamped, Base):
    """One address and its MAC, held by one machine from its reservation to its deletion."""

    __tablename__ = "addresses"
    __table_args__ = (UniqueConstraint("network_id", "address"),)
    id: Mapped[str] = id_column()
    network_id: Mapped[str] = mapped_column(ForeignKey("networks.id"), index=True)
    address: Mapped[str | None]
    """None on a network that hands out addresses itself (DHCP)."""
    mac: Mapped[str] = mapped_column(unique=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id"), index=True)
    position: Mapped[int] = mapped_column(default=0)
    filter: Mapped[str | None]
    """The network filter of its card; None: it has none."""
    network: Mapped[Network] = relationship(lazy="joined")
