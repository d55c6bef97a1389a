"""Checkpoints of machines."""

from pydantic import Field

from virtfleet.models import Checkpoint
from virtfleet.schemas.base import In, Moment, Out, Text


class CheckpointIn(In):
    """A checkpoint to make."""

    name: Text | None = Field(default=None, description="Called after the moment if left out.")
    description: Text | None = None


class CheckpointOut(Out):
    """A checkpoint as it was last seen; `disks` are those whose changes are noted."""

    name: str
    description: str
    parent: str | None
    disks: list[str]
    created_at: Moment
    observed_at: Moment

    @classmethod
    def of(cls, row: Checkpoint) -> "CheckpointOut":
        """Make it from a row."""
        plain = ("name", "description", "parent", "disks", "observed_at")
        return cls(**{key: getattr(row, key) for key in plain}, created_at=row.made_at)
