"""Backups of machines, as the jobs that made them told; they outlive their machines."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from virtfleet.models.base import Base, Owned, id_column
from virtfleet.models.hosts import Host


class Backup(Owned, Base):
    """A backup. Its files and its manifest lie in a pool of a host; the row goes when they are deleted."""

    __tablename__ = "backups"
    __table_args__ = (UniqueConstraint("host_id", "pool", "vm_uuid", "name"),)
    id: Mapped[str] = id_column()
    name: Mapped[str]
    vm_id: Mapped[str | None] = mapped_column(index=True)
    """The machine's row, which may be gone."""
    vm_uuid: Mapped[str] = mapped_column(index=True)
    vm_name: Mapped[str]
    libvirt_name: Mapped[str]
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), index=True)
    pool: Mapped[str]
    kind: Mapped[str]
    """full or incremental."""
    parent: Mapped[str | None]
    """Name of the backup that it lies over."""
    reason: Mapped[str | None]
    """Why it is a full one although an increment was wanted."""
    quiesced: Mapped[bool]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """What its own files take."""
    disks: Mapped[list[Any]]
    """[{target, volume, capacity_bytes, size_bytes, sha256}]."""
    shape: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What a machine made of it is like: {vcpus, memory_bytes, max_vcpus, max_memory_bytes, pool, flavor, image,
    networks: [ids], ssh_keys}; the last two are missing in old ones."""
    made_at: Mapped[datetime]
    host: Mapped[Host] = relationship(lazy="joined")
