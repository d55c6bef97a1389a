"""Alembic migrations, and `upgrade()`, which every process runs before it touches the database."""

import fcntl

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from virtfleet import database, settings


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "virtfleet:migrations")
    return config


def upgrade() -> None:
    """Bring the database to this version's tables. Safe to call from many processes at once."""
    chosen = settings.load()
    chosen.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with (chosen.home / ".migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with database.engine().connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current != head:
            command.upgrade(_config(), "head")
