"""Who may run now. All SQL about claims, locks and leases is here.

A claim is one writing transaction: the job gets all its locks, a fresh attempt and a lease, or nothing. SQLite has one
writer at a time; on PostgreSQL every claim first takes the row of the job numbers, so that there, too, claims come one
after the other, and no claim can see half of another one.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from virtfleet import clock
from virtfleet.ids import new_id
from virtfleet.models import UNFINISHED, Job, JobDependency, JobLock, Number

MOST_CANDIDATES = 200
"""Queued jobs that are looked at when somebody asks which one may run."""


def claim(session: Session, job_id: str | None, worker: str, lease_seconds: float) -> Job | None:
    """Take a job (the named one, or the oldest that may run) for `worker`; None when it may not run now.

    The job is then running, with all its locks, the next attempt number, a fresh attempt id and a lease.
    """
    session.get(Number, "job", with_for_update=True)
    candidates = [job_id] if job_id is not None else _queued(session, clock.now())
    for candidate in candidates:
        job = session.get(Job, candidate, with_for_update=True, populate_existing=True)
        if job is None or job.state != "queued" or not _may_begin(session, job):
            continue
        slots = _free_slots(session, job)
        if slots is None:
            continue
        for resource, slot in slots.items():
            mine = (JobLock.job_id == job.id, JobLock.resource == resource)
            session.execute(update(JobLock).where(*mine).values(slot=slot))
        job.state = "running"
        job.attempt += 1
        job.attempt_id = new_id("att")
        job.worker = worker
        job.lease_until = clock.after(lease_seconds)
        job.started_at = clock.now()
        job.first_task_at = None
        job.progress = {}
        job.generation += 1
        session.flush()
        return job
    return None


def ready(session: Session, job: Job) -> bool:
    """Tell whether a queued job could be claimed at this moment."""
    return job.state == "queued" and _may_begin(session, job) and _free_slots(session, job) is not None


def broken_dependency(session: Session, job: Job) -> Job | None:
    """Return a job that this one needs and that did not succeed."""
    query = (
        select(Job)
        .join(JobDependency, JobDependency.needs_id == Job.id)
        .where(JobDependency.job_id == job.id, Job.state.in_(("failed", "cancelled")))
        .order_by(Job.number)
        .limit(1)
    )
    return session.scalar(query)


def dependents(session: Session, job_id: str) -> list[Job]:
    """Return the queued jobs that need this one, oldest first."""
    query = (
        select(Job)
        .join(JobDependency, JobDependency.job_id == Job.id)
        .where(JobDependency.needs_id == job_id, Job.state == "queued")
        .order_by(Job.number)
    )
    return list(session.scalars(query))


def let_pass(session: Session, job: Job) -> None:
    """Have the queued jobs that wait for an exclusive resource of this one need it, although they were there first."""
    mine, theirs = aliased(JobLock), aliased(JobLock)
    waiting = (
        select(theirs.job_id)
        .join(mine, mine.resource == theirs.resource)
        .join(Job, Job.id == theirs.job_id)
        .where(mine.job_id == job.id, mine.mode == "exclusive", theirs.job_id != job.id, Job.state == "queued")
        .distinct()
    )
    session.add_all([JobDependency(job_id=each, needs_id=job.id) for each in session.scalars(waiting).all()])
    session.flush()


def give_way(session: Session, job: Job) -> None:
    """Have no job need this one any longer."""
    session.execute(delete(JobDependency).where(JobDependency.needs_id == job.id))


def now_ready(session: Session, job_id: str, resources: list[str], limit: int = 16) -> list[str]:
    """Return the jobs that may run now that `job_id` ended or gave back its locks on `resources`, oldest first."""
    waits = exists().where(JobLock.job_id == Job.id, JobLock.resource.in_(resources))
    needs = exists().where(JobDependency.job_id == Job.id, JobDependency.needs_id == job_id)
    query = select(Job).where(Job.state == "queued", or_(waits, needs)).order_by(Job.number).limit(MOST_CANDIDATES)
    found: list[str] = []
    for job in session.scalars(query):
        if ready(session, job):
            found.append(job.id)
            if len(found) == limit:
                break
    return found


def anybody_unrung(session: Session, before: datetime) -> bool:
    """Tell whether there are queued jobs that nobody has looked at since `before`."""
    return session.scalar(_unrung(before).limit(1)) is not None


def unrung(session: Session, before: datetime) -> list[str]:
    """Return jobs that may run (or must fail), and that nobody has rung for since `before`, longest forgotten first.

    All that were looked at are marked, so that the next look goes on with others: no crowd of waiting jobs can hide one
    that could run.
    """
    looked_at = session.scalars(_unrung(before).limit(MOST_CANDIDATES)).all()
    found = [job.id for job in looked_at if ready(session, job) or broken_dependency(session, job) is not None]
    marked = update(Job).where(Job.id.in_([job.id for job in looked_at]))
    session.execute(marked.values(rung_at=clock.now(), updated_at=Job.updated_at))
    return found


def resources_of(session: Session, job_id: str) -> list[str]:
    """Return what the job has, or waits for, locks on."""
    return list(session.scalars(select(JobLock.resource).where(JobLock.job_id == job_id)))


def release(session: Session, job_id: str, *, forget: bool) -> None:
    """Give back every lock of a job; with `forget`, it does not want them again either."""
    if forget:
        session.execute(delete(JobLock).where(JobLock.job_id == job_id))
    else:
        session.execute(update(JobLock).where(JobLock.job_id == job_id).values(slot=None))


def renew(session: Session, attempts: dict[str, str], worker: str, lease_seconds: float) -> None:
    """Prolong the leases of `attempts` (job id → attempt id) as far as they are still this worker's."""
    for job_id, attempt_id in attempts.items():
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.attempt_id == attempt_id, Job.worker == worker, Job.state == "running")
            .values(lease_until=clock.after(lease_seconds), updated_at=Job.updated_at)
        )


def standing(session: Session, attempts: dict[str, str], worker: str) -> dict[str, str]:
    """Say, for each of `attempts` (job id → attempt id): "mine", "cancel" (somebody wants it ended) or "lost"."""
    query = select(Job.id, Job.attempt_id, Job.cancel_requested_at)
    found = dict.fromkeys(attempts, "lost")
    mine = (Job.id.in_(attempts), Job.worker == worker, Job.state == "running")
    for job_id, attempt_id, cancel_requested_at in session.execute(query.where(*mine)):
        if attempt_id == attempts[job_id]:
            found[job_id] = "mine" if cancel_requested_at is None else "cancel"
    return found


def held(session: Session, job_id: str, attempt_id: str, worker: str) -> Job | None:
    """Return the job, its row locked, if it still is this worker's in this attempt."""
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.state != "running":
        return None
    return job if (job.attempt_id, job.worker) == (attempt_id, worker) else None


def take_over(session: Session, job_id: str, worker: str, lease_seconds: float) -> Job | None:
    """Make a running job whose lease has ended `worker`'s, its attempt unchanged; None when the lease is good again."""
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.state != "running" or (job.lease_until is not None and job.lease_until > clock.now()):
        return None
    job.worker = worker
    job.lease_until = clock.after(lease_seconds)
    session.flush()
    return job


def lapsed(session: Session, before: datetime) -> list[Job]:
    """Return the running jobs whose lease ended before that moment, oldest first."""
    query = select(Job).where(Job.state == "running", Job.lease_until < before).order_by(Job.number)
    return list(session.scalars(query))


def _unrung(before: datetime) -> Select[Job]:
    since = func.coalesce(Job.rung_at, Job.created_at)
    return select(Job).where(Job.state == "queued", since < before, _due(clock.now())).order_by(since, Job.number)


def _due(now: datetime) -> ColumnElement[bool]:
    return or_(Job.not_before.is_(None), Job.not_before <= now)


def _queued(session: Session, now: datetime) -> list[str]:
    query = select(Job.id).where(Job.state == "queued", _due(now)).order_by(Job.number).limit(MOST_CANDIDATES)
    return list(session.scalars(query))


def _may_begin(session: Session, job: Job) -> bool:
    if job.not_before is not None and job.not_before > clock.now():
        return False
    waits_for_a_job = (
        select(Job.id)
        .join(JobDependency, JobDependency.needs_id == Job.id)
        .where(JobDependency.job_id == job.id, Job.state != "succeeded")
        .limit(1)
    )
    if session.scalar(waits_for_a_job) is not None:
        return False
    mine, theirs = aliased(JobLock), aliased(JobLock)
    lets_it_pass = exists().where(JobDependency.job_id == Job.id, JobDependency.needs_id == job.id)
    somebody_was_first = (
        select(Job.id)
        .join(theirs, theirs.job_id == Job.id)
        .join(mine, mine.resource == theirs.resource)
        .where(
            mine.job_id == job.id,
            mine.mode == "exclusive",
            theirs.mode == "exclusive",
            Job.number < job.number,
            Job.state.in_(UNFINISHED),
            ~lets_it_pass,
        )
        .limit(1)
    )
    return session.scalar(somebody_was_first) is None


def _free_slots(session: Session, job: Job) -> dict[str, int] | None:
    """Return a free slot for each lock the job wants, in sorted order; None when one has none."""
    wanted = session.scalars(select(JobLock).where(JobLock.job_id == job.id).order_by(JobLock.resource)).all()
    resources = [lock.resource for lock in wanted]
    taken: dict[str, set[int]] = {resource: set() for resource in resources}
    query = select(JobLock.resource, JobLock.slot).where(JobLock.resource.in_(resources), JobLock.slot.is_not(None))
    for resource, slot in session.execute(query):
        if slot is not None:
            taken[resource].add(slot)
    slots: dict[str, int] = {}
    for lock in wanted:
        places = range(1 if lock.mode == "exclusive" else lock.limit)
        free = next((slot for slot in places if slot not in taken[lock.resource]), None)
        if free is None:
            return None
        slots[lock.resource] = free
    return slots
