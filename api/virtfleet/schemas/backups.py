"""Backups of machines."""

from typing import Any, Literal

from pydantic import Field

from virtfleet.models import Backup
from virtfleet.schemas.base import In, Moment, Out, Paging, Text


class BackupIn(In):
    """A backup to make."""

    name: Text | None = Field(default=None, description="Called after the moment if left out.")
    kind: Literal["full", "incremental"] = Field(
        default="full", description="An increment becomes a full one where what has changed is not known."
    )
    quiesce: bool = Field(default=False, description="Let the agent hold all writing at the moment that is kept.")
    prefix: Text | None = Field(default=None, description="With keep: how the names of those begin that may go.")
    keep: int | None = Field(
        default=None, ge=1, le=1000, description="How many of the newest stay; the others go when the new one stands."
    )


class BackupQuery(Paging):
    """Which backups to list."""

    vm: str | None = Field(default=None, max_length=255, description="A machine's id, UUID or name; it may be gone.")


class RestoreIn(In):
    """What a backup is restored as."""

    name: Text | None = Field(default=None, description="Of the machine to make; in place if left out.")
    address: Text | None = Field(default=None, description="Of the machine to make; a free one if left out.")
    start: bool | None = Field(
        default=None, description="Whether it runs then; left out, a new one does not, the old one does when it did."
    )
    stop: bool = Field(default=False, description="In place: whether a running machine may be stopped for it.")


class BackupOut(Out):
    """A backup; `vm` is the name that its machine had, `reason` why it is full although an increment was wanted."""

    id: str
    name: str
    vm: str
    vm_uuid: str
    host: str
    pool: str
    kind: str
    parent: str | None
    reason: str | None
    quiesced: bool
    size_bytes: int
    disks: list[dict[str, Any]]
    created_at: Moment

    @classmethod
    def of(cls, row: Backup) -> "BackupOut":
        """Make it from a row."""
        plain = ("id", "name", "vm_uuid", "pool", "kind", "parent", "reason", "quiesced", "size_bytes", "disks")
        told = {key: getattr(row, key) for key in plain}
        return cls(**told, vm=row.vm_name, host=row.host.name, created_at=row.made_at)
