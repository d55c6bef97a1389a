"""The bell and the pool of threads: Huey carries job ids, nothing else. What is true stands in the job's row."""

import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from virtfleet import clock, database, settings
from virtfleet.jobs import claim

RING_AGAIN_SECONDS = 10.0
"""A job that may run and for which nobody rang for so long is rung for again."""
MOST_BELLS = 64
"""With so many bells waiting, the sweeper adds none: the workers are busy, not deaf."""

log = logging.getLogger(__name__)


class JsonSerializer(Serializer):
    """Huey's messages as JSON: reading one can never run code."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps(data._asdict()).encode()

    def _deserialize(self, data: bytes) -> Message:
        fields = json.loads(data)
        return Message(**{name: fields.get(name) for name in Message._fields})


class Bell:
    """Huey over one SQLite file, with one task: `job(job_id)`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.huey = SqliteHuey(
            "virtfleet", results=False, serializer=JsonSerializer(), filename=str(path), fsync=False, timeout=30
        )
        self._work: Callable[[str], None] | None = None
        self._job = self.huey.task(name="job")(self._answer)

    def answer_with(self, work: Callable[[str], None]) -> None:
        """Set what this process does when the bell rings for a job."""
        self._work = work

    def ring(self, job_id: str) -> None:
        """Ring for one job."""
        self._job(job_id)

    def waiting(self) -> int:
        """Return how many bells nobody has answered yet."""
        return int(self.huey.pending_count())

    def _answer(self, job_id: str) -> None:
        if self._work is not None:
            self._work(job_id)


_bells: dict[Path, Bell] = {}
_guard = threading.Lock()


def bell() -> Bell:
    """Return this process's bell for the fleet's queue."""
    path = settings.load().queue_path
    with _guard:
        if path not in _bells:
            _bells[path] = Bell(path)
        return _bells[path]


def ring(job_ids: Iterable[str]) -> None:
    """Ring for jobs, after the transaction that made them runnable. Never raises: the sweeper rings again."""
    for job_id in job_ids:
        try:
            bell().ring(job_id)
        except Exception as error:
            log.warning("%s: could not ring for it (%s); the sweeper will", job_id, error)
            return


def sweep(quiet_seconds: float = RING_AGAIN_SECONDS) -> list[str]:
    """Ring for jobs that may run and for which nobody rang for `quiet_seconds`; returns their ids.

    Also finds jobs whose time (`not_before`) has come, and those that need one which failed.
    """
    if bell().waiting() >= MOST_BELLS:
        return []
    before = clock.after(-quiet_seconds)
    with database.read() as session:
        if not claim.anybody_unrung(session, before):
            return []
    with database.write() as session:
        found = claim.unrung(session, before)[:MOST_BELLS]
    for job_id in found:
        log.info("%s: rung for by the sweeper", job_id)
    ring(found)
    return found


def forget_bells() -> None:
    """Close the queue's connections of this process; for tests that change the fleet's home."""
    with _guard:
        for made in _bells.values():
            made.huey.storage.close()
        _bells.clear()
