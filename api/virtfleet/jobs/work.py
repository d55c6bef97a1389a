"""A worker: takes jobs from their claim to their closing transaction, and keeps the leases of those it runs."""

import logging
import os
import secrets as randomness
import threading
import time
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from virtfleet import clock, database, settings
from virtfleet.jobs import attempts, claim, events, kinds, lifecycle, queue, reaper, runner
from virtfleet.jobs.attempts import CannotRun
from virtfleet.jobs.events import Event
from virtfleet.jobs.runner import RunEnd, Stop
from virtfleet.models import Job, Lease

LOOK_SECONDS = 0.5
"""How often a worker looks whether its jobs are still its own, and wanted."""
CLOSING_TRIES = 6

log = logging.getLogger(__name__)


def new_worker_id() -> str:
    """Return a fresh name for this worker that begins with its machine (`reaper.machine()`)."""
    return f"{reaper.machine()}/{os.getpid()}-{randomness.token_hex(4)}"


@dataclass
class _Running:
    attempt_id: str
    stop: Stop


class Worker:
    """Runs jobs in the threads that call `work()`; one thread of its own keeps leases, one writes events."""

    def __init__(self) -> None:
        self.id = new_worker_id()
        self._settings = settings.load()
        self._writer = events.Writer()
        self._running: dict[str, _Running] = {}
        self._guard = threading.Condition()
        self._closing = False
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Begin to keep leases and to write events."""
        self._writer.start()
        self._beat()
        self._keeper.start()

    def close(self, grace_seconds: float) -> None:
        """Take no more jobs; give those running `grace_seconds`, then end them and put them back into the queue."""
        with self._guard:
            self._closing = True
            self._guard.wait_for(lambda: not self._running, timeout=grace_seconds)
            for running in self._running.values():
                running.stop("shutdown")
            self._guard.wait_for(lambda: not self._running, timeout=4 * runner.GRACE_SECONDS)
        self._ended.set()
        self._keeper.join()
        self._writer.stop()
        with database.write() as session:
            row = session.get(Lease, self._lease_name)
            if row is not None:
                session.delete(row)

    def work(self, job_id: str) -> None:
        """Claim this job and run it to its end; return at once when it may not run (now)."""
        if self._closing:
            # Somebody else will hear it; or this fleet's next worker.
            queue.ring([job_id])
            return
        with database.write() as session:
            job = claim.claim(session, job_id, self.id, self._settings.lease_seconds)
            to_ring = lifecycle.close_if_hopeless(session, job_id) if job is None else None
        if job is None:
            queue.ring(to_ring or [])
            return
        assert job.attempt_id is not None
        stop = Stop()
        with self._guard:
            self._running[job.id] = _Running(job.attempt_id, stop)
        try:
            log.info("%s: begun, %s, attempt %d", job.id, job.kind, job.attempt)
            end = self._run(job, stop)
            self._writer.flush()
            queue.ring(self._close(job, end))
        finally:
            with self._guard:
                del self._running[job.id]
                self._guard.notify_all()
            stop.close()

    def _run(self, job: Job, stop: Stop) -> RunEnd:
        job_id, number, attempt_id = job.id, job.attempt, job.attempt_id or ""

        def report(event: Event) -> None:
            self._writer.put(job_id, number, attempt_id, event)

        try:
            with database.read() as session:
                attempt = attempts.prepare(session, job)
            hosts = ", ".join(target.name for target in attempt.targets) or "this machine"
            most = f" of {job.max_attempts}" if job.max_attempts < kinds.UNTIL_DONE else ""
            report(Event("started", f"{job.kind} on {hosts}, attempt {number}{most}"))
            return runner.run(attempt, report, stop)
        except CannotRun as error:
            return RunEnd(kinds.failure(error.code, str(error), error.hint))
        except OSError as error:
            log.exception("%s: could not be run", job.id)
            message = f"The run could not be made on the controller: {error.strerror or error}."
            return RunEnd(kinds.failure("controller", message, "See to it there (space? rights?), then try again."))
        except Exception:
            log.exception("%s: could not be run", job.id)
            return RunEnd(
                kinds.failure("internal", "The run could not be made.", "The log of the worker says why; report it.")
            )

    def _close(self, job: Job, end: RunEnd) -> list[str]:
        """Write how the attempt ended, if the job still is this worker's; return the jobs to ring for."""
        for left in reversed(range(CLOSING_TRIES)):
            try:
                with database.write() as session:
                    mine = claim.held(session, job.id, job.attempt_id or "", self.id)
                    if mine is None or end.stopped == "lost":
                        log.warning("%s: attempt %d was lost to another worker", job.id, job.attempt)
                        return []
                    return _write_end(session, mine, end)
            except SQLAlchemyError:
                # The lease is being kept meanwhile. If it stays like this, the reaper will have the job run again.
                log.exception("%s: its end could not be written; %d more tries", job.id, left)
                time.sleep(1.0)
        return []

    @property
    def _lease_name(self) -> str:
        return f"worker:{self.id}"

    def _beat(self) -> None:
        with database.write() as session:
            row = session.get(Lease, self._lease_name)
            until = clock.after(self._settings.lease_seconds)
            if row is None:
                session.add(Lease(name=self._lease_name, holder=self.id, until=until))
            else:
                row.until = until
            attempts = self._attempts()
            if attempts:
                claim.renew(session, attempts, self.id, self._settings.lease_seconds)

    def _attempts(self) -> dict[str, str]:
        with self._guard:
            return {job_id: running.attempt_id for job_id, running in self._running.items()}

    def _keep(self) -> None:
        lease = self._settings.lease_seconds
        renewed = reaped = time.monotonic()
        while not self._ended.wait(min(LOOK_SECONDS, lease / 10)):
            try:
                if time.monotonic() - renewed > lease / 3:
                    begun = time.monotonic()
                    self._beat()
                    renewed = begun
                self._look()
                if time.monotonic() - reaped > lease:
                    # Only a machine itself can see what its dead workers left behind.
                    reaper.reap(elsewhere=False)
                    reaped = time.monotonic()
            except SQLAlchemyError:
                log.exception("the leases could not be kept")
            except Exception:
                log.exception("the lease keeper met something unforeseen")
            if time.monotonic() - renewed > lease:
                # Others take these jobs for abandoned by now: nothing of them may go on here.
                self._stop_all("the database could not be reached for the time of a lease")
                renewed = time.monotonic()

    def _look(self) -> None:
        attempts = self._attempts()
        if not attempts:
            return
        with database.read() as session:
            standing = claim.standing(session, attempts, self.id)
        with self._guard:
            for job_id, state in standing.items():
                running = self._running.get(job_id)
                if running is None or running.attempt_id != attempts[job_id]:
                    continue
                if state == "lost":
                    running.stop("lost")
                elif state == "cancel":
                    running.stop("cancel")

    def _stop_all(self, why: str) -> None:
        with self._guard:
            for job_id, running in self._running.items():
                log.error("%s: ended, because %s", job_id, why)
                running.stop("lost")


def _write_end(session: Session, job: Job, end: RunEnd) -> list[str]:
    if end.stopped == "cancel":
        return lifecycle.close(session, job, lifecycle.cancelled(job, end.outcome))
    if end.stopped == "shutdown":
        return lifecycle.requeue(session, job, "The worker was told to stop; the job runs again.", counts=False)
    return lifecycle.close_or_revise(session, job, end.outcome)
