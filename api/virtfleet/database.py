"""One engine per process, and the two ways to use it: `read()` and `write()`.

SQLite runs in WAL mode: readers never wait, and a writing transaction takes the write lock at its start
(`BEGIN IMMEDIATE`), so that it decides and reserves on what it read. Keep I/O out of `write()`.
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
            _engines[url] = made
        return _engines[url]


def dispose() -> None:
    """Close every connection of this process; for use after a fork and in tests."""
    with _guard:
        for made in _engines.values():
            made.dispose()
        _engines.clear()


@contextmanager
def read() -> Iterator[Session]:
    """Give a session that sees one consistent state and changes nothing."""
    with Session(engine(), expire_on_commit=False) as session:
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
