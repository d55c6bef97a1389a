"""Moving machines between hosts."""

from typing import Any

from pydantic import Field

from virtfleet.schemas.base import In, Out, Size, Text
from virtfleet.schemas.jobs import JobOut


class WayIn(In):
    """How machines are moved."""

    live: bool = Field(default=True, description="Whether a running machine goes on running; otherwise it is paused.")
    copy_storage: bool = Field(default=True, description="Whether disks that the hosts do not share may be copied.")
    bandwidth: Size | None = Field(default=None, ge=1, le=2**50, description="How much may be sent in a second.")
    max_downtime: float | None = Field(
        default=None, gt=0, le=2000, description="Seconds it may stand still at the end."
    )
    auto_converge: bool = Field(default=False, description="Slow it down if it writes its memory too fast.")
    post_copy: bool = Field(default=False, description="Let it go on at the target before all its memory is there.")
    timeout: float = Field(default=600, gt=0, le=86400, description="Seconds for each machine; then it stays.")


class MigrateIn(WayIn):
    """Where a machine is to go, and how."""

    host: Text | None = Field(default=None, description="The host to go to; placement chooses if left out.")
    came_from: Text | None = Field(default=None, alias="from", description="The host that it must be on now.")


class PreflightIn(In):
    """What a migration could do."""

    copy_storage: bool = Field(default=True, description="Whether disks that the hosts do not share may be copied.")


class MigrationAccepted(Out):
    """A migration under way: `explanation` says why it goes to `host`."""

    job: JobOut
    vm: str
    came_from: str = Field(serialization_alias="from")
    host: str
    explanation: dict[str, Any]


class EvacuateIn(WayIn):
    """How a host is to be emptied."""

    policy: Text | dict[str, Any] | None = Field(default=None, description="The placement policy for the targets.")


class Evacuation(Out):
    """The plan; `job` is null when nothing can, or need, be moved. `left` are machines that stay, with the reasons."""

    job: JobOut | None
    host: str
    summary: str
    moves: list[dict[str, Any]]
    left: list[dict[str, Any]]
