"""Volumes that people made, and which machines have them as disks. A machine's own disks have no rows here."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from virtfleet.models.base import Base, Owned, id_column
from virtfleet.models.hosts import Host
from virtfleet.models.vms import Vm


class Volume(Owned, Base):
    """A volume in a pool of a host. It outlives the machines that it was attached to."""

    __tablename__ = "volumes"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = id_column()
    name: Mapped[str]
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    """The host that it was made by; where the pool is shared, all hosts of the zone that share it reach it."""
    pool: Mapped[str]
    volume: Mapped[str]
    """Its name in the pool: from the id, so that no two volumes ever have the same."""
    format: Mapped[str]
    """qcow2 or raw."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    shareable: Mapped[bool] = mapped_column(default=False)
    """Whether several machines may have it at once."""
    state: Mapped[str] = mapped_column(default="creating", index=True)
    """creating, ready or deleting."""
    explanation: Mapped[dict[str, Any]] = mapped_column(default=dict)
    job_id: Mapped[str | None]
    """The last job about it."""
    error: Mapped[dict[str, Any] | None]
    host: Mapped[Host] = relationship(lazy="joined")
    attachments: Mapped[list["Attachment"]] = relationship(
        lazy="selectin", cascade="all, delete-orphan", order_by="Attachment.vm_id", back_populates="volume"
    )

    @property
    def serial(self) -> str:
        """The serial number by which every machine sees it: 20 characters are all that a disk can tell."""
        return f"vol-{self.id[-16:]}"


class Attachment(Base):
    """A volume is a disk of a machine, or is going to be; how, is said by the machine's row."""

    __tablename__ = "attachments"
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True, index=True)
    volume: Mapped[Volume] = relationship(back_populates="attachments")
    vm: Mapped[Vm] = relationship(lazy="joined")
