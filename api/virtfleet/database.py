"""One engine per process, and the two ways to use it: `read()` and `write()`.

Readers never wait, and see one state. There is one writer at a time, of all processes: a writing transaction takes the
write lock at its start, so that it decides and reserves on what it read. SQLite has such a lock (`BEGIN IMMEDIATE`, in
WAL mode), on PostgreSQL an advisory lock is it. Keep I/O out of `write()`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from virtfleet import settings

_engines: dict[str, Engine] = {}
_guard = threading.Lock()
BUSY_TIMEOUT_MS = 30_000
WRITE_LOCK = 7_610_453
"""The number of PostgreSQL's advisory lock; locks are counted for each database apart."""


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: `_on_begin` does, in the mode that is wanted.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        writing = connection.get_execution_options().get("virtfleet_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _tune_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        if connection.get_execution_options().get("virtfleet_write", False):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def engine(url: str | None = None) -> Engine:
    """Return this process's engine for the fleet's database."""
    url = url or settings.load().database
    with _guard:
        if url not in _engines:
            if url.startswith("sqlite:///"):
                settings.load().home.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = create_engine(url, pool_pre_ping=not url.startswith("sqlite"), pool_size=20, max_overflow=20)
            if made.dialect.name == "sqlite":
                _tune_sqlite(made)
            else:
                _tune_postgresql(made)
            _engines[url] = made
        return _engines[url]


def dispose() -> None:
    """Close every connection of this process; the next use opens new ones."""
    with _guard:
        for made in _engines.values():
            made.dispose()


@contextmanager
def read() -> Iterator[Session]:
    """Give a session that sees one consistent state and changes nothing."""
    reading = engine()
    if reading.dialect.name != "sqlite":  # which gives every transaction no less
        reading = reading.execution_options(isolation_level="REPEATABLE READ")
    with Session(reading, expire_on_commit=False) as session:
        try:
            yield session
        finally:
            session.rollback()


@contextmanager
def write() -> Iterator[Session]:
    """Give a session inside a writing transaction: committed at the end, rolled back when an exception leaves it."""
    writing = engine().execution_options(virtfleet_write=True)
    with Session(writing, expire_on_commit=False) as session, session.begin():
        yield session
