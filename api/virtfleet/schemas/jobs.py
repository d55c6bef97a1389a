"""Jobs, their events, and what makes a run again by hand."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from virtfleet.models import Job, JobEvent
from virtfleet.schemas.base import Moment, Out, Paging, Query


class JobOut(Out):
    """A playbook run."""

    id: str
    number: int
    kind: str
    state: str
    attempt: int
    project: str
    owner: str
    vms: list[str]
    subjects: list[dict[str, Any]]
    hosts: list[str]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: Moment
    started_at: Moment | None
    first_task_at: Moment | None
    ended_at: Moment | None
    generation: int

    @classmethod
    def of(cls, row: Job, *, project: str, owner: str, hosts: Mapping[str, str]) -> "JobOut":
        """Make it from a row; `hosts` are names by id."""
        plain = ("id", "number", "kind", "state", "attempt", "progress", "result", "error", "subjects", "generation")
        moments = ("created_at", "started_at", "first_task_at", "ended_at")
        return cls(
            **{name: getattr(row, name) for name in (*plain, *moments)},
            project=project,
            owner=owner,
            vms=[subject["name"] for subject in row.subjects if subject["type"] == "vm"],
            hosts=[hosts.get(host_id, host_id) for host_id in row.host_ids],
        )


class JobQuery(Paging):
    """Which jobs."""

    state: str | None = Field(default=None, description="queued, running, succeeded, failed, cancelled, or open.")
    kind: str | None = None
    vm: str | None = Field(default=None, description="Id or name of a machine; also one that is gone.")


class EventOut(Out):
    """Something that happened in a job."""

    seq: int
    time: Moment
    attempt: int
    kind: str
    host: str | None
    task: str | None
    text: str
    changed: bool | None

    @classmethod
    def of(cls, row: JobEvent) -> "EventOut":
        """Make it from a row."""
        return cls.model_validate(row)


class EventQuery(Query):
    """Which events of a job."""

    after: int = Field(default=0, ge=0, description="Only events with a larger number.")
    limit: int = Field(default=500, ge=1, le=1000)


class EventPage(Out):
    """Events in order; `next` is what to ask `after` for more."""

    items: list[EventOut]
    next: int
    job_state: str


class ReplayOut(Out):
    """What makes the same run by hand: put the files into a folder, write its path for {dir}, run argv."""

    playbook: str
    argv: list[str]
    environment: dict[str, str]
    files: dict[str, str]
    secrets: dict[str, str]
