"""What is left on hosts of machines and volumes that could not be made or deleted: tried again until it is gone."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, database
from virtfleet.jobs import queue
from virtfleet.models import UNFINISHED, Host, Job, Vm, Volume

PAUSE_SECONDS = 30.0
"""How long a clean-up that failed rests before it is tried again."""


def retry(
    row: type[Vm] | type[Volume], beginning: str, clean_up: Callable[[Session, Sequence[Any]], Sequence[Job]]
) -> int:
    """Make the jobs that clean up on hosts that answer, and return how many; `clean_up` makes them.

    `beginning` is the state of what is being made: of one whose job has ended, that end could not be recorded.
    """
    rested = Job.state.not_in(UNFINISHED) & (Job.ended_at < clock.after(-PAUSE_SECONDS))
    waiting = (
        select(row)
        .join(Host, Host.id == row.host_id)
        .outerjoin(Job, Job.id == row.job_id)
        .where(row.state.in_((beginning, "deleting")), Host.state == "up", Job.id.is_(None) | rested)
    )
    with database.read() as session:
        if session.scalars(waiting.limit(1)).first() is None:
            return 0
    with database.write() as session:
        jobs = clean_up(session, session.scalars(waiting).all())
    queue.ring([job.id for job in jobs])
    return len(jobs)
