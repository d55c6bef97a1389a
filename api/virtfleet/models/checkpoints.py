"""Checkpoints of machines, as the last job that looked at them saw them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet.models.base import Base, id_column


class Checkpoint(Base):
    """libvirt's mark in a machine's disks. The rows of a machine are written anew at the end of each job about them."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("vm_id", "name"),)
    id: Mapped[str] = id_column()
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    description: Mapped[str]
    parent: Mapped[str | None]
    disks: Mapped[list[Any]]
    """Names of the disks whose changes are noted."""
    made_at: Mapped[datetime]
    observed_at: Mapped[datetime]
