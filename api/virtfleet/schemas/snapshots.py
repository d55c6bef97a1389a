"""Snapshots of machines."""

from typing import Any, Literal

from pydantic import Field

from virtfleet.models import Snapshot
from virtfleet.schemas.base import In, Moment, Out, Query, Text


class SnapshotIn(In):
    """A snapshot to make."""

    name: Text | None = Field(default=None, description="Called after the moment if left out.")
    mode: Literal["auto", "internal", "external"] = "auto"
    memory: bool | None = Field(default=None, description="With the memory of a machine that runs, or without.")
    quiesce: bool = Field(default=False, description="Let the agent make its file systems quiet meanwhile.")
    description: str | None = Field(default=None, max_length=1000)
    prefix: Text | None = Field(default=None, description="With keep: how the names of those begin that may go.")
    keep: int | None = Field(
        default=None, ge=1, le=1000, description="How many of the newest stay; the others go when the new one stands."
    )


class SnapshotDeletion(Query):
    """What becomes of the snapshots made after one that is deleted."""

    children: Literal["keep", "delete", "refuse"] = "keep"


class SnapshotOut(Out):
    """A snapshot as it was last seen; `disks` tells in which files of the host it lies."""

    name: str
    mode: str
    memory: bool
    state: str | None
    description: str
    parent: str | None
    current: bool
    disks: list[dict[str, Any]]
    created_at: Moment
    observed_at: Moment

    @classmethod
    def of(cls, row: Snapshot) -> "SnapshotOut":
        """Make it from a row."""
        plain = ("name", "mode", "memory", "state", "description", "parent", "current", "disks", "observed_at")
        return cls(**{key: getattr(row, key) for key in plain}, created_at=row.made_at)


class SnapshotExport(In):
    """Where what a snapshot keeps is to be brought out."""

    pool: Text | None = Field(default=None, description="A pool of the machine's host; that of its disk if left out.")
    name: Text | None = Field(
        default=None,
        max_length=63,
        description="How the volumes' names begin, below the machine's own; for administrators all of the beginning.",
    )
