"""The controller process: `python -m virtfleet.controller`. It does what is due by time, for the fleet as a whole.

Two may run: one leads, by a lease, and the other takes over when that ends. What they do is safe to be done twice; the
lease only saves the double work.
"""

import importlib
import logging
import os
import secrets as randomness
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func
from sqlalchemy import select as choose
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from virtfleet import clock, database, migrations, settings
from virtfleet.jobs import queue, reaper, runner
from virtfleet.models import UNFINISHED, Change, IdempotencyKey, Job, JobDependency, Lease

LEASE = "controller"
"""The row of `leases` that says who leads, until when."""
TICK_SECONDS = 0.5
DAY_SECONDS = 86_400.0
RETENTION_SECONDS = 300.0
CLEANUP_SECONDS = 10.0
MOST_AT_ONCE = 500
"""Jobs that one round of retention forgets: the write lock is everybody's."""

log = logging.getLogger("virtfleet.controller")


def forget_old() -> int:
    """Remove jobs with their events and folders, changes and kept answers older than the settings say.

    Returns how many jobs went, at most MOST_AT_ONCE; the next round goes on. The audit trail stays. A job that an
    unfinished one needs stays too: without its row nobody could tell whether it had succeeded.
    """
    chosen = settings.load()
    before = clock.after(-chosen.keep_jobs_days * DAY_SECONDS)
    waiting = aliased(Job)
    needed = (
        choose(JobDependency.needs_id)
        .join(waiting, waiting.id == JobDependency.job_id)
        .where(waiting.state.in_(UNFINISHED))
    )
    old = Job.state.not_in(UNFINISHED) & (Job.ended_at < before) & Job.id.not_in(needed)
    # Looked for without the write lock, which is everybody's.
    with database.read() as session:
        gone = list(session.scalars(choose(Job.id).where(old).order_by(Job.number).limit(MOST_AT_ONCE)))
        last = session.scalar(choose(func.max(Change.seq)).where(Change.time < before))
    # Folders first: whoever dies in between finds the rows again, but nobody would find a folder without a row.
    for job_id in gone:
        runner.forget(job_id)
    answers = IdempotencyKey.created_at < clock.after(-chosen.keep_answers_days * DAY_SECONDS)
    with database.write() as session:
        # Their events, locks and dependencies go with them.
        session.execute(delete(Job).where(Job.id.in_(gone)))
        if last is not None:
            session.execute(delete(Change).where(Change.seq <= last))
        session.execute(delete(IdempotencyKey).where(answers))
    return len(gone)


@dataclass
class Duty:
    """Something that is done again and again. `due` is a moment of the monotonic clock."""

    name: str
    every_seconds: float
    work: Callable[[], object]
    due: float = 0.0


class Controller:
    """Leads when it can, and does its duties while it does."""

    def __init__(self, duties: list[Duty], lease_seconds: float) -> None:
        # A number alone may be that of a controller in another container.
        self._me = f"{reaper.machine()}/{os.getpid()}-{randomness.token_hex(4)}"
        self._duties = duties
        self._lease_seconds = lease_seconds
        self._leading = False
        self._renewed = float("-inf")

    def step(self) -> None:
        """Keep or try to get the lease; do what is due. A duty that fails is logged and stops no other."""
        now = time.monotonic()
        if not self._leading or now - self._renewed > self._lease_seconds / 3:
            self._lead(now)
        if not self._leading:
            return
        for duty in self._duties:
            if time.monotonic() < duty.due:
                continue
            try:
                duty.work()
            except Exception:
                log.exception("%s went wrong; the next try is in %g s", duty.name, duty.every_seconds)
            duty.due = time.monotonic() + duty.every_seconds

    def _lead(self, now: float) -> None:
        try:
            with database.write() as session:
                row = session.get(Lease, LEASE)
                if row is not None and row.holder != self._me and row.until > clock.now():
                    leading = False
                else:
                    until = clock.after(self._lease_seconds)
                    session.merge(Lease(name=LEASE, holder=self._me, until=until))
                    leading = True
        except SQLAlchemyError:
            log.exception("the lease of the controller could not be kept")
            leading = False
        if leading != self._leading:
            log.info("%s %s", self._me, "leads" if leading else "does not lead (any more)")
        self._leading, self._renewed = leading, now

    def close(self) -> None:
        """Give the lease back, so that the other one need not wait for its end."""
        if not self._leading:
            return
        self._leading = False
        try:
            with database.write() as session:
                session.execute(delete(Lease).where(Lease.name == LEASE, Lease.holder == self._me))
        except SQLAlchemyError:
            log.exception("the lease could not be given back; it ends by itself")


def duties() -> list[Duty]:
    """Return what is done, and how often."""
    chosen = settings.load()
    vms, volumes = (importlib.import_module(f"virtfleet.services.{noun}") for noun in ("vms", "volumes"))
    return [
        Duty("ringing for jobs that nobody rang for", chosen.sweep_seconds, queue.sweep),
        Duty("reaping jobs whose worker is gone", chosen.lease_seconds / 4, reaper.reap),
        Duty("trying clean-ups of machines again", CLEANUP_SECONDS, vms.retry_cleanups),
        Duty("trying clean-ups of volumes again", CLEANUP_SECONDS, volumes.retry_cleanups),
        Duty("forgetting what is old", RETENTION_SECONDS, forget_old),
    ]


def serve(controller: Controller) -> None:
    """Go on until SIGTERM or SIGINT comes."""
    told_to_stop = os.eventfd(0, os.EFD_CLOEXEC)

    def on_signal(_number: int, _frame: Any) -> None:
        os.eventfd_write(told_to_stop, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    log.info("the controller is ready")
    while not select.select([told_to_stop], [], [], TICK_SECONDS)[0]:
        controller.step()
    controller.close()


def main() -> None:
    """Run the controller in the foreground."""
    # Importing the services registers what they do at the end of jobs: the reaper closes some.
    importlib.import_module("virtfleet.services")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    migrations.upgrade()
    serve(Controller(duties(), settings.load().lease_seconds))


if __name__ == "__main__":
    main()
