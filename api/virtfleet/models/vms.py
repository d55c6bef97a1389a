"""Machines: what was asked for, where they are, and how they were last seen."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from virtfleet.models.base import Base, Owned, id_column
from virtfleet.models.hosts import Address, Host, Zone


class Vm(Owned, Base):
    """A virtual machine. The row in state `building` is the reservation of what it will take."""

    __tablename__ = "vms"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = id_column()
    number: Mapped[int] = mapped_column(unique=True)
    """S1's vmid: never reused."""
    uuid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    label: Mapped[str | None]
    """The name it was asked for by S1's contract, where names may be equal; None for all others."""
    libvirt_name: Mapped[str] = mapped_column(index=True)
    zone_id: Mapped[str] = mapped_column(ForeignKey("zones.id"), index=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    flavor_id: Mapped[str | None] = mapped_column(ForeignKey("flavors.id"))
    image_id: Mapped[str | None] = mapped_column(ForeignKey("images.id"))
    flavor: Mapped[str | None]
    """Name of the flavor when the machine was made; kept when the flavor goes."""
    image: Mapped[str | None]
    vcpus: Mapped[int]
    max_vcpus: Mapped[int | None]
    """How many it can have without a reboot; None: as many as it has."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    max_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """How much it can have without a reboot; None: as much as it has. This is what is promised to it."""
    disk_bytes: Mapped[int] = mapped_column(BigInteger)
    pool: Mapped[str]
    state: Mapped[str] = mapped_column(default="building", index=True)
    """building, running, stopped, paused, crashed, deleting, missing (its host no longer has it) or unknown."""
    seen_addresses: Mapped[list[Any]] = mapped_column(default=list)
    """IP addresses that the machine was last seen with; on a network with DHCP the only ones known."""
    attached: Mapped[list[Any]] = mapped_column(default=list)
    """Disks beside those it was made with, as the API shows them."""
    spec: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The machine as module `vm` takes it; a secret in it is a reference."""
    policy: Mapped[str]
    explanation: Mapped[dict[str, Any]] = mapped_column(default=dict)
    job_id: Mapped[str | None]
    """The last job that touched the machine."""
    error: Mapped[dict[str, Any] | None]
    observed_at: Mapped[datetime | None]
    host: Mapped[Host] = relationship(lazy="joined")
    zone: Mapped[Zone] = relationship(lazy="joined", overlaps="zone")
    addresses: Mapped[list[Address]] = relationship(
        lazy="selectin", order_by=Address.position, cascade="all, delete-orphan"
    )

    @property
    def promised_memory_bytes(self) -> int:
        """Return what it may come to use without anybody being asked again."""
        return self.memory_bytes if self.max_memory_bytes is None else self.max_memory_bytes
