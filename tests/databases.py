"""Where the databases of tests lie: files of SQLite, or a PostgreSQL server that `VIRTFLEET_TEST_POSTGRESQL` names.

It is a SQLAlchemy URL of a database there, whose user may make others:
`VIRTFLEET_TEST_POSTGRESQL=postgresql+psycopg://postgres@/postgres?host=/run/postgresql`
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, create_engine, make_url
from virtfleet.models import Base


def server() -> URL | None:
    """Return the server that was named, or None: SQLite."""
    named = os.environ.get("VIRTFLEET_TEST_POSTGRESQL")
    return make_url(named) if named else None


@contextmanager
def made(on: URL, name: str) -> Iterator[str]:
    """Make an empty database, give its URL, and remove it at the end."""
    engine = create_engine(on, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        try:
            yield on.set(database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        engine.dispose()


@contextmanager
def as_it_is(url: str) -> Iterator[None]:
    """Give the database back as it is now: what rows come meanwhile go again."""
    engine = create_engine(url)
    tables = Base.metadata.sorted_tables
    try:
        with engine.connect() as connection:
            kept = [(table, connection.execute(table.select()).mappings().all()) for table in tables]
        yield
        names = ", ".join(f'"{table.name}"' for table in tables)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
            for table, rows in kept:
                if rows:
                    connection.execute(table.insert(), [dict(row) for row in rows])
    finally:
        engine.dispose()
