"""What the control plane keeps about its own doings: numbers, audit, changes, idempotency, secrets, leases."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet.models.base import Base, Owned, id_column


class Number(Base):
    """A sequence of integers that are never given twice."""

    __tablename__ = "numbers"
    name: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[int]


class Audit(Base):
    """Who asked for what, and when. Never updated, never holds a secret."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime]
    user_id: Mapped[str]
    project_id: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    job_id: Mapped[str | None]
    request_id: Mapped[str | None]


class Change(Base):
    """A row of the feed `GET /changes`: something of the project changed."""

    __tablename__ = "changes"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime]
    project_id: Mapped[str | None] = mapped_column(index=True)
    """None: visible to every project (hosts, zones)."""
    type: Mapped[str]
    id: Mapped[str]
    action: Mapped[str]
    """created, updated or deleted."""
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class IdempotencyKey(Base):
    """The answer that was given to a request, for whoever sends the same again."""

    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int]
    location: Mapped[str | None]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Secret(Owned, Base):
    """Something that must not be read by whoever reads the database: encrypted with the key in the fleet's home."""

    __tablename__ = "secrets"
    id: Mapped[str] = id_column()
    purpose: Mapped[str]
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vms.id", ondelete="SET NULL"), index=True)


class Lease(Base):
    """Who leads something (the controller), until when."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[datetime]


class Cursor(Base):
    """Where a policy that remembers (round robin) was, per zone."""

    __tablename__ = "cursors"
    zone_id: Mapped[str] = mapped_column(ForeignKey("zones.id", ondelete="CASCADE"), primary_key=True)
    policy: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]]
