"""Rows as answers: looks up the names that a row only has as ids."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from virtfleet.models import Host, Job, Project, User, Vm, Volume
from virtfleet.schemas.hosts import HostOut
from virtfleet.schemas.jobs import JobOut
from virtfleet.schemas.metrics import MetricOut
from virtfleet.schemas.vms import VmOut
from virtfleet.schemas.volumes import VolumeOut
from virtfleet.services import capacity, jobs
from virtfleet.services.metrics import METRICS, Sample


def job(session: Session, row: Job) -> JobOut:
    """Return one job."""
    return all_jobs(session, [row])[0]


def all_jobs(session: Session, rows: list[Job]) -> list[JobOut]:
    """Return jobs."""
    known = jobs.names(session, rows)
    return [
        JobOut.of(
            row,
            project=known["projects"].get(row.project_id, row.project_id),
            owner=known["users"].get(row.owner_id, row.owner_id),
            hosts=known["hosts"],
        )
        for row in rows
    ]


def vm(session: Session, row: Vm) -> VmOut:
    """Return one machine."""
    project, owner = session.get(Project, row.project_id), session.get(User, row.owner_id)
    return VmOut.of(row, project=project.name if project else "", owner=owner.name if owner else "")


def all_vms(session: Session, rows: Sequence[Vm]) -> list[VmOut]:
    """Return machines for a list: of why each is where it is only the sentence, not every host's share in it."""
    shown = [vm(session, row) for row in rows]
    for each in shown:
        each.explanation = {key: each.explanation.get(key) for key in ("chosen", "text")}
    return shown


def volume(session: Session, row: Volume) -> VolumeOut:
    """Return one volume."""
    project, owner = session.get(Project, row.project_id), session.get(User, row.owner_id)
    return VolumeOut.of(row, project=project.name if project else "", owner=owner.name if owner else "")


def host(row: Host, state: dict[str, Any]) -> HostOut:
    """Return one host; `state` is the host in the placement state."""
    return HostOut.of(row, capacity.figures(state))


def all_hosts(session: Session, rows: Sequence[Host]) -> list[HostOut]:
    """Return hosts."""
    known = capacity.of_hosts(session, rows)
    return [host(row, known[row.name]) for row in rows]


def metric(sample: Sample) -> MetricOut:
    """Return one value of a metric."""
    about = METRICS[sample.name]
    labels = dict(zip(about.labels, sample.labels, strict=True))
    return MetricOut(name=sample.name, labels=labels, value=sample.value, unit=about.unit, meaning=about.meaning)


def accepted(session: Session, row: Job) -> dict[str, Any]:
    """Return the body of a 202."""
    return {"job": job(session, row).model_dump(mode="json")}
