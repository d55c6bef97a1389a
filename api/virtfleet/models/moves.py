"""Moves: the room that a machine on its way to another host takes there already."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet import clock
from virtfleet.models.base import Base


class Move(Base):
    """A machine that a job moves, or will; the row goes with the job's end. It is what reserves the target's room."""

    __tablename__ = "moves"
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=clock.now)
