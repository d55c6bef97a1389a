"""The beginning and the end of a job: submit, cancel, requeue, close. Each inside the caller's writing transaction."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from virtfleet import clock, settings
from virtfleet.ids import new_id
from virtfleet.jobs import claim, events, kinds
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Change, Job, JobDependency, JobLock, Number

SUBMITTED = "virtfleet_submitted_jobs"
"""Where a session remembers the jobs submitted in it: those of a finisher are rung for with the others."""

log = logging.getLogger(__name__)


def host_slots(host_ids: Iterable[str]) -> list[tuple[str, int]]:
    """Return the shared locks of a job that works on these hosts: each takes so many jobs at once."""
    limit = settings.load().jobs_per_host
    return [(f"host:{host_id}", limit) for host_id in dict.fromkeys(host_ids)]


def submit(
    session: Session,
    kind: str,
    *,
    project_id: str,
    owner_id: str,
    host_ids: Iterable[str],
    variables: Mapping[str, Any],
    subjects: Iterable[Mapping[str, Any]],
    context: Mapping[str, Any] | None = None,
    exclusive: Iterable[str] = (),
    shared: Iterable[tuple[str, int]] = (),
    needs: Iterable[str] = (),
    not_before: datetime | None = None,
    first: bool = False,
) -> Job:
    """Write down a job in the caller's writing transaction; after its commit, call `queue.ring([job.id])`.

    `exclusive` names resources that one job at a time may have (in the order of submission), `shared` those that
    `limit` jobs may have at once. `needs` are jobs that must have succeeded before. A secret in `variables` is the leaf
    `{"$secret": id}`. With `first` those that wait for its exclusive resources already let it go before them, and need
    it: what it mends they rely on. Raises KeyError for an unknown kind, ValueError for a resource that is wanted twice.
    """
    of = kinds.KINDS[kind]
    chosen = settings.load()
    job = Job(
        id=new_id("job"),
        number=_next_number(session),
        kind=kind,
        state="queued",
        project_id=project_id,
        owner_id=owner_id,
        host_ids=list(host_ids),
        variables=dict(variables),
        subjects=[dict(subject) for subject in subjects],
        context=dict(context or {}),
        timeout=of.timeout if of.timeout is not None else chosen.job_timeout,
        max_attempts=of.max_attempts if of.max_attempts is not None else chosen.job_attempts,
        not_before=not_before,
    )
    locks = [JobLock(job_id=job.id, resource=resource, mode="exclusive", limit=1) for resource in exclusive]
    locks += [JobLock(job_id=job.id, resource=resource, mode="shared", limit=limit) for resource, limit in shared]
    resources = [lock.resource for lock in locks]
    if len(set(resources)) != len(resources):
        raise ValueError(f"A {kind} job wants a resource twice: {', '.join(sorted(resources))}.")
    if any(lock.limit < 1 for lock in locks):
        raise ValueError(f"A {kind} job wants a shared resource with a limit below 1; it could never run.")
    session.add(job)
    session.flush()
    session.add_all(locks)
    session.add_all(JobDependency(job_id=job.id, needs_id=needed) for needed in dict.fromkeys(needs))
    session.flush()
    if first:
        claim.let_pass(session, job)
    _tell(session, job, "created")
    session.info.setdefault(SUBMITTED, []).append(job.id)
    log.info("%s: submitted as %s, number %d", job.id, kind, job.number)
    return job


def take_submitted(session: Session) -> list[str]:
    """Return the jobs submitted in this session since it was last asked: those to ring for after its commit."""
    submitted: list[str] = session.info.pop(SUBMITTED, [])
    return submitted


def cancel(session: Session, job: Job) -> list[str]:
    """End a queued job at once; ask the worker of a running one to end it. A finished job stays as it is.

    Returns the jobs to ring for after the commit.
    """
    session.refresh(job, with_for_update=True)
    if job.state == "queued":
        return close(session, job, cancelled(job))
    if job.state == "running" and job.cancel_requested_at is None:
        job.cancel_requested_at = clock.now()
        job.generation += 1
        events.append(session, job, "message", "Cancellation was requested; the run is being ended.")
        _tell(session, job, "updated")
        log.info("%s: cancellation requested", job.id)
    return []


def cancelled(job: Job, reached: Outcome | None = None) -> Outcome:
    """Return the outcome of a job that was cancelled; `reached` is what its run had come to."""
    when = "before it began" if job.state == "queued" else "while it ran"
    error = {"code": "cancelled", "message": f"The job was cancelled {when}.", "hint": ""}
    return replace(reached or Outcome("cancelled"), state="cancelled", error=error)


def close(session: Session, job: Job, outcome: Outcome) -> list[str]:
    """Write a job's end: state, result, error, locks given back, its finisher, the last event, the change feed.

    A finisher that raises undoes its own writes and makes the job fail with code `internal`; the job itself is never
    lost. Returns the jobs to ring for after the commit, those that the finisher submitted included.
    """
    resources = claim.resources_of(session, job.id)
    claim.release(session, job.id, forget=True)
    job.state = outcome.state
    job.result = outcome.result
    job.error = dict(outcome.error) if outcome.error else None
    job.ended_at = clock.now()
    job.lease_until = None
    job.generation += 1
    session.flush()
    session.info.pop(SUBMITTED, None)
    _finish(session, job, outcome)
    to_ring = take_submitted(session)
    text = job.state if job.error is None else f"{job.state}: {job.error['message']}"
    events.append(session, job, "end", text)
    _tell(session, job, "updated")
    log.info("%s: %s%s", job.id, job.state, f" ({job.error['code']})" if job.error else "")
    if job.state != "succeeded":
        for dependent in claim.dependents(session, job.id):
            to_ring += close(session, dependent, _needed(job))
    return list(dict.fromkeys(to_ring + claim.now_ready(session, job.id, resources)))


def close_or_revise(session: Session, job: Job, outcome: Outcome) -> list[str]:
    """Write a job's end; or, when it failed and its service knows a way, have it run once more in another form.

    Returns the jobs to ring for after the commit.
    """
    revise = kinds.reviser_of(job.kind)
    if outcome.state != "failed" or revise is None or job.attempt >= job.max_attempts:
        return close(session, job, outcome)
    session.info.pop(SUBMITTED, None)
    undoable = session.begin_nested()
    try:
        revision = revise(session, job, outcome)
    except Exception:
        log.exception("%s: what %s does about a failed attempt went wrong", job.id, job.kind)
        revision = None
    if revision is None:
        undoable.rollback()
        return close(session, job, outcome)
    undoable.commit()
    to_ring = take_submitted(session)
    resources = claim.resources_of(session, job.id)
    claim.release(session, job.id, forget=True)
    job.host_ids = list(revision.host_ids)
    job.variables = dict(revision.variables)
    session.add_all(
        [JobLock(job_id=job.id, resource=each, mode="exclusive", limit=1) for each in revision.exclusive]
        + [JobLock(job_id=job.id, resource=each, mode="shared", limit=limit) for each, limit in revision.shared]
    )
    for needed in revision.needs:
        session.merge(JobDependency(job_id=job.id, needs_id=needed))
    job.not_before = revision.not_before
    session.flush()
    ready = claim.now_ready(session, job.id, resources)
    return list(dict.fromkeys([*to_ring, *requeue(session, job, revision.reason, counts=True), *ready]))


def close_if_hopeless(session: Session, job_id: str) -> list[str] | None:
    """Close a queued job that needs one which did not succeed; None when that is not so."""
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.state != "queued":
        return None
    broken = claim.broken_dependency(session, job)
    return None if broken is None else close(session, job, _needed(broken))


def requeue(session: Session, job: Job, reason: str, *, counts: bool) -> list[str]:
    """Put a running job back, to be run again; its locks are given back. Returns the jobs to ring for after the commit.

    `counts` says whether the attempt uses up one of the job's attempts (a worker that died) or not (one that was told
    to stop). Attempt numbers only grow: a machine refuses what an older attempt still tries.
    """
    resources = claim.resources_of(session, job.id)
    claim.release(session, job.id, forget=False)
    if not counts:
        job.max_attempts += 1
    job.state = "queued"
    job.attempt_id = None
    job.worker = None
    job.lease_until = None
    job.rung_at = None
    job.generation += 1
    session.flush()
    events.append(session, job, "retried", reason)
    _tell(session, job, "updated")
    log.warning("%s: queued again after attempt %d: %s", job.id, job.attempt, reason)
    return list(dict.fromkeys([job.id, *claim.now_ready(session, job.id, resources)]))


def _needed(job: Job) -> Outcome:
    because = f": {job.error['message']}" if job.error else "."
    return kinds.failure(
        "dependency_failed",
        f"The job {job.id} ({job.kind}), which this one needs, {_ENDED[job.state]}{because}",
        f"See: virtfleet job get {job.id}.",
    )


_ENDED = {"failed": "failed", "cancelled": "was cancelled"}


def _finish(session: Session, job: Job, outcome: Outcome) -> None:
    finish = kinds.finisher_of(job.kind)
    if finish is None:
        return
    try:
        with session.begin_nested():
            finish(session, job, outcome)
    except Exception:
        log.exception("%s: what %s does at its end went wrong", job.id, job.kind)
        job.state = "failed"
        job.error = {
            "code": "internal",
            "message": f"The run ended ({outcome.state}), but its end could not be recorded.",
            "hint": "The log of the worker says why; report it.",
        }
        session.flush()


def _next_number(session: Session) -> int:
    row = session.get(Number, "job", with_for_update=True)
    if row is None:
        row = Number(name="job", last=0)
        session.add(row)
    row.last += 1
    session.flush()
    return row.last


def _tell(session: Session, job: Job, action: str) -> None:
    data = {"kind": job.kind, "state": job.state}
    session.add(Change(time=clock.now(), project_id=job.project_id, type="job", id=job.id, action=action, data=data))
