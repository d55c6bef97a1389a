"""Jobs: one playbook run each, the locks they need, what happened in them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet.models.base import Base, Owned, UtcDateTime, id_column

UNFINISHED = ("queued", "running")


class Job(Owned, Base):
    """One playbook run. The row is the truth about it; the queue only rings a bell."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_open", "state", "number"),)
    id: Mapped[str] = id_column()
    number: Mapped[int] = mapped_column(unique=True)
    """Order of arrival."""
    kind: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(default="queued")
    """queued, running, succeeded, failed or cancelled."""
    subjects: Mapped[list[Any]] = mapped_column(default=list)
    """What the job is about: [{type, id, name}]."""
    host_ids: Mapped[list[Any]] = mapped_column(default=list)
    """The hosts whose inventory the run gets."""
    variables: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Variables of the playbook; a secret is the leaf {"$secret": id}."""
    context: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the service that made the job needs at its end."""
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    attempt_id: Mapped[str | None]
    """In the environment of every process of the attempt, so that stragglers are found."""
    max_attempts: Mapped[int] = mapped_column(default=3)
    timeout: Mapped[float] = mapped_column(default=300.0)
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    """{code, message, hint} of a job that failed."""
    started_at: Mapped[datetime | None]
    first_task_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class JobDependency(Base):
    """`job_id` waits until `needs_id` has succeeded, and fails when that failed."""

    __tablename__ = "job_dependencies"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    needs_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True)


class JobLock(Base):
    """A lock a job needs. Held while `slot` is set: (resource, slot) is unique.

    An exclusive lock uses slot 0; a shared one any slot below its limit. A resource is used one way only; but a shared
    lock with limit 1 keeps out the exclusive ones while it is held, and no one waits behind it.
    """

    __tablename__ = "job_locks"
    __table_args__ = (UniqueConstraint("resource", "slot"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    resource: Mapped[str] = mapped_column(primary_key=True)
    mode: Mapped[str]
    """exclusive or shared."""
    limit: Mapped[int] = mapped_column(default=1)
    slot: Mapped[int | None]


class JobEvent(Base):
    """Something that happened in a job, numbered from 1."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    attempt: Mapped[int]
    kind: Mapped[str]
    host: Mapped[str | None]
    task: Mapped[str | None]
    text: Mapped[str]
    changed: Mapped[bool | None]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
