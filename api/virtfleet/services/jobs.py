"""Jobs as people see them: found, listed, cancelled, made again by hand."""

from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem, not_found
from virtfleet.jobs import attempts, kinds, lifecycle
from virtfleet.models import UNFINISHED, Host, Job, Project, User, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal

STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def get(session: Session, who: Principal, ref: str) -> Job:
    """Return the job with this id or number. Raises Problem `not_found`."""
    job = session.get(Job, ref)
    if job is None and ref.isascii() and ref.isdigit() and len(ref) < 10:
        job = session.scalar(select(Job).where(Job.number == int(ref)))
    if job is None or not (who.admin or job.project_id == who.project_id):
        raise not_found("job", ref)
    return job


def matching(session: Session, who: Principal, *, state: str | None, kind: str | None, vm: str | None) -> "Select[Job]":
    """Return the query for the jobs wanted. `open` is queued or running. Raises Problem `invalid`."""
    query = select(Job)
    if not who.admin:
        query = query.where(Job.project_id == who.project_id)
    if state == "open":
        query = query.where(Job.state.in_(UNFINISHED))
    elif state is not None:
        if state not in STATES:
            raise Problem("invalid", "There is no such state of jobs.", f"Use open, {', '.join(STATES)}.")
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if vm is not None:
        mine = (
            select(Vm.id).where(Vm.name == vm)
            if who.admin
            else select(Vm.id).where(Vm.name == vm, Vm.project_id == who.project_id)
        )
        known = [vm, *session.scalars(mine)]
        about = [
            job_id
            for job_id, subjects in session.execute(query.with_only_columns(Job.id, Job.subjects))
            if any(subject["id"] in known or subject["name"] == vm for subject in subjects)
        ]
        query = query.where(Job.id.in_(about))
    return query


def cancel(session: Session, who: Principal, job: Job) -> list[str]:
    """Ask for the end of a job. Raises Problem `conflict` when it has ended. Returns the jobs to ring for."""
    if job.state not in UNFINISHED:
        raise Problem("conflict", f"The job has ended already: {job.state}.", "There is nothing left to cancel.")
    ledger.audit(session, who, "job.cancel", job.id, job.id)
    return lifecycle.cancel(session, job)


def replay(session: Session, who: Principal, job: Job) -> dict[str, Any]:
    """Return what makes the same run by hand; secrets only for those who may read them. Raises Problem."""
    hosts = [host for host in (session.get(Host, host_id) for host_id in job.host_ids) if host is not None]
    if len(hosts) != len(job.host_ids):
        raise Problem("conflict", "A host of the job is not registered any more.", "It cannot be replayed.")
    contents: dict[str, str] | None = None
    if who.may("secrets:read"):
        try:
            contents = {
                secret_id: kinds.read_secret(session, secret_id).decode()
                for secret_id in attempts.secret_ids(job.variables)
            }
        except LookupError as error:
            raise Problem(
                "conflict", "A secret of the job is gone with its machine.", "It cannot be replayed."
            ) from error
    return attempts.replay_files(job, hosts, contents)


def names(session: Session, jobs: list[Job]) -> dict[str, dict[str, str]]:
    """Return the names by id of the projects, users and hosts of these jobs."""
    hosts = {host_id for job in jobs for host_id in job.host_ids}
    return {
        "projects": _by_id(session, Project, {job.project_id for job in jobs}),
        "users": _by_id(session, User, {job.owner_id for job in jobs}),
        "hosts": _by_id(session, Host, hosts),
    }


def _by_id(session: Session, model: Any, wanted: set[str]) -> dict[str, str]:
    if not wanted:
        return {}
    return {row.id: row.name for row in session.execute(select(model.id, model.name).where(model.id.in_(wanted)))}
