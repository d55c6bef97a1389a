"""The log of a job: events numbered from 1, written in batches by one thread of each worker."""

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from virtfleet import clock, database
from virtfleet.models import Job, JobEvent

LONGEST_TEXT = 2000
"""Characters of an event's text that are kept."""
BATCH_SECONDS = 0.1
BATCH_EVENTS = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Something that happened in a job, before it has its number.

    `text` is one line for people: never variables, never a whole result.
    """

    kind: str
    text: str = ""
    host: str | None = None
    task: str | None = None
    changed: bool | None = None
    data: dict[str, Any] = field(default_factory=dict)
    time: datetime = field(default_factory=clock.now)


def one_line(text: Any) -> str:
    """Return `text` as one line of bearable length; characters that a terminal would obey become spaces."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


def page(session: Session, job_id: str, after: int, limit: int) -> list[JobEvent]:
    """Return the events of a job with numbers above `after`, in order, at most `limit`."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq).limit(limit)
    return list(session.scalars(query))


def append(
    session: Session,
    job: Job,
    kind: str,
    text: str = "",
    *,
    host: str | None = None,
    task: str | None = None,
    changed: bool | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add one event to a job inside the caller's writing transaction."""
    event = Event(kind=kind, text=text, host=host, task=task, changed=changed, data=data or {})
    _insert(session, job.id, job.attempt, [event])


def _insert(session: Session, job_id: str, attempt: int, events: list[Event]) -> None:
    # Whoever writes events of a job holds its row (PostgreSQL) or the one write lock (SQLite): numbers have no gaps.
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
    last = session.scalar(select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)) or 0
    session.add_all(
        JobEvent(
            job_id=job_id,
            seq=last + position,
            time=event.time,
            attempt=attempt,
            kind=event.kind,
            host=event.host,
            task=None if event.task is None else one_line(event.task),
            text=one_line(event.text),
            changed=event.changed,
            data=event.data,
        )
        for position, event in enumerate(events, start=1)
    )
    session.flush()


@dataclass(frozen=True)
class _Entry:
    job_id: str
    attempt: int
    attempt_id: str
    event: Event


@dataclass(frozen=True)
class _Flush:
    written: threading.Event


class Writer:
    """The thread of a worker that writes what its runs report.

    Events of an attempt that is no longer the job's are dropped: a worker that lost its lease writes nothing.
    """

    def __init__(self) -> None:
        self._entries: queue.SimpleQueue[_Entry | _Flush | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="event-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end."""
        self._entries.put(None)
        self._thread.join()

    def put(self, job_id: str, attempt: int, attempt_id: str, event: Event) -> None:
        """Hand over an event; returns at once."""
        self._entries.put(_Entry(job_id, attempt, attempt_id, event))

    def flush(self, seconds: float = 60.0) -> None:
        """Wait until everything handed over so far is written, at most `seconds`."""
        flush = _Flush(threading.Event())
        self._entries.put(flush)
        flush.written.wait(seconds)

    def _work(self) -> None:
        going_on = True
        while going_on:
            batch, flushes, going_on = self._collect()
            try:
                self._write(batch)
            except SQLAlchemyError:
                log.exception("%d events could not be written", len(batch))
            for flush in flushes:
                flush.written.set()

    def _collect(self) -> tuple[list[_Entry], list[_Flush], bool]:
        batch: list[_Entry] = []
        flushes: list[_Flush] = []
        until: float | None = None
        while len(batch) < BATCH_EVENTS:
            try:
                entry = self._entries.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return batch, flushes, False
            if isinstance(entry, _Flush):
                flushes.append(entry)
                until = 0.0
                continue
            batch.append(entry)
            until = time.monotonic() + BATCH_SECONDS if until is None else until
        return batch, flushes, True

    def _write(self, batch: list[_Entry]) -> None:
        attempts: dict[tuple[str, int, str], list[Event]] = {}
        for entry in batch:
            attempts.setdefault((entry.job_id, entry.attempt, entry.attempt_id), []).append(entry.event)
        if not attempts:
            return
        with database.write() as session:
            for (job_id, attempt, attempt_id), events in attempts.items():
                mine = (Job.id == job_id, Job.attempt_id == attempt_id, Job.state == "running")
                job = session.scalar(select(Job).where(*mine).with_for_update())
                if job is None:
                    log.warning("%s: %d events of a lost attempt were dropped", job_id, len(events))
                    continue
                _insert(session, job_id, attempt, events)
                self._progress(session, job, events)

    @staticmethod
    def _progress(session: Session, job: Job, events: list[Event]) -> None:
        tasks = [event for event in events if event.kind == "task"]
        if not tasks:
            return
        # `done` counts the tasks that were begun before the present one.
        begun = job.progress.get("done", -1) + len(tasks)
        values: dict[str, Any] = {"progress": {"task": one_line(tasks[-1].task), "done": begun}}
        if job.first_task_at is None:
            values["first_task_at"] = tasks[0].time
        session.execute(
            update(Job).where(Job.id == job.id).values(**values).execution_options(synchronize_session=False)
        )
