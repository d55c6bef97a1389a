"""Snapshots of machines, as the last job that looked at them saw them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet.models.base import Base, id_column


class Snapshot(Base):
    """A snapshot. libvirt is the truth; the rows of a machine are written anew at the end of each job about them."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("vm_id", "name"),)
    id: Mapped[str] = id_column()
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    mode: Mapped[str]
    """internal or external."""
    memory: Mapped[bool]
    state: Mapped[str | None]
    """State of the machine when it was made."""
    description: Mapped[str]
    parent: Mapped[str | None]
    current: Mapped[bool]
    disks: Mapped[list[Any]]
    """[{target, mode, path}]: where on the host what was kept lies."""
    made_at: Mapped[datetime]
    observed_at: Mapped[datetime]
