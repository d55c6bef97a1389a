"""Alembic migrations, and `upgrade()`, which every process runs before it touches the database."""

import fcntl
import re
from pathlib import Path

import sqlalchemy as sa

from virtfleet import database, settings

VERSIONS = Path(__file__).with_name("versions")
"""A file for each revision; the last in the order of their names is the newest."""
_REVISION = re.compile(r'^revision = "(.+)"$', re.MULTILINE)


class NewerDatabaseError(Exception):
    """The database is of a later version of virtfleet; the message says what to do."""


def revisions() -> list[str]:
    """Return the revisions that this version of virtfleet knows, the newest last."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(VERSIONS.glob("[0-9]*.py")))
    return [found[1] for found in map(_REVISION.search, texts) if found is not None]


def upgrade() -> None:
    """Bring the database to this version's tables. Safe to call from many processes at once.

    Raises NewerDatabaseError, and leaves the database as it is, when a later version has changed it.
    """
    chosen = settings.load()
    chosen.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (chosen.home / ".migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current, known = _current(), revisions()
        if current == known[-1]:
            return
        if current is not None and current not in known:
            problem = f"The database is at revision {current}, of a later version of virtfleet than this one"
            raise NewerDatabaseError(f"{problem}. Install that version, or restore a dump that this one has made.")
        _run()


def _current() -> str | None:
    with database.engine().connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return found


def _run() -> None:
    from alembic import command  # noqa: PLC0415 - takes long to load, and most starts have nothing to change
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "virtfleet:migrations")
    command.upgrade(config, "head")
