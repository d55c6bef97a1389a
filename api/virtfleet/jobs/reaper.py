"""Finds jobs whose worker is gone, ends what it left behind, and has them run again.

A lease that ended says that nobody renewed it. The reaper first takes the lease over, so that neither the old worker
(it may only have been slow; it ends its run when it sees this) nor another reaper acts on the job; then it ends the
processes of the attempt; and only when none is left, the job goes back into the queue, or fails when its attempts are
used up. If the reaper dies in between, its own lease ends and the next one begins anew.

Several machines: processes can be ended only by the machine they are on. A worker's name begins with its machine; every
worker reaps for its own one. Jobs of other machines are left alone for a grace of some leases beyond their own, in
which the workers there may do it. After that the machine counts as dead or cut off. If it was only cut off, its workers
end their runs by themselves once they cannot renew their leases for the time of one; and what would still slip through
is an older attempt, which the machine module refuses.
"""

import logging
import os
import socket
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.orm import Session

from virtfleet import clock, database, settings
from virtfleet.jobs import claim, kinds, lifecycle, queue, runner, survivors
from virtfleet.models import Job, Lease

LEASES_OF_GRACE = 4
"""How many leases a job of another machine is left alone beyond its own."""

log = logging.getLogger(__name__)


def machine() -> str:
    """Return what names the processes that can be seen from here: the host's name and its process namespace."""
    return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def reap(*, elsewhere: bool = True) -> list[str]:
    """Deal with every job whose lease ended; return the ids of those that will run again or were closed.

    With `elsewhere`, jobs of other machines are given up after their grace; without, they are not touched.
    """
    with database.read() as session:
        lapsed = claim.lapsed(session, clock.now())
        found = [job.id for job in lapsed if _is_here(job) or (elsewhere and _is_given_up(job))]
    reaped = [job_id for job_id in found if _reap(job_id)]
    _forget_dead_workers()
    return reaped


def _is_here(job: Job) -> bool:
    return (job.worker or "").startswith(machine() + "/")


def _is_given_up(job: Job) -> bool:
    grace = LEASES_OF_GRACE * settings.load().lease_seconds
    return job.lease_until is not None and job.lease_until < clock.after(-grace)


def _reap(job_id: str) -> bool:
    me = f"{machine()}/reaper-{os.getpid()}"
    with database.write() as session:
        job = claim.take_over(session, job_id, me, settings.load().lease_seconds)
    if job is None or job.attempt_id is None:
        return False
    try:
        ended = survivors.end(job.attempt_id)
    except TimeoutError:
        log.exception("%s: left alone for now", job_id)
        return False
    runner.clean(job_id, job.attempt_id)
    with database.write() as session:
        mine = claim.held(session, job_id, job.attempt_id, me)
        if mine is None:
            return False
        to_ring = _put_back(session, mine, ended)
    queue.ring(to_ring)
    return True


def _put_back(session: Session, job: Job, ended: int) -> list[str]:
    left = f"; {ended} processes of it were ended" if ended else ""
    if job.cancel_requested_at is not None:
        return lifecycle.close(session, job, lifecycle.cancelled(job))
    if job.attempt < job.max_attempts:
        return lifecycle.requeue(session, job, f"The worker of attempt {job.attempt} was lost{left}.", counts=True)
    message = f"The worker was lost in attempt {job.attempt}, the last one{left}."
    hint = "Look into the workers' logs for what ends them, then submit the request again."
    return lifecycle.close(session, job, kinds.failure("worker_lost", message, hint))


def _forget_dead_workers() -> None:
    with database.write() as session:
        session.execute(delete(Lease).where(Lease.name.startswith("worker:"), Lease.until < clock.after(-3600)))
