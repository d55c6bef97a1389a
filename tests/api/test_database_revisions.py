"""What every process does before it touches the database: nothing, quickly, when there is nothing to change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from virtfleet import database, migrations


def test_the_revisions_are_those_of_alembics_chain() -> None:
    config = Config()
    config.set_main_option("script_location", "virtfleet:migrations")
    chain = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    assert migrations.revisions() == chain[::-1]


def test_a_start_with_nothing_to_change_does_not_load_alembic(tmp_path: Path) -> None:
    program = "import sys; from virtfleet import migrations; migrations.upgrade(); print('alembic' in sys.modules)"
    own = {"VIRTFLEET_HOME": str(tmp_path), "VIRTFLEET_DATABASE_URL": f"sqlite:///{tmp_path}/own.db"}
    said = [
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, **own}, text=True).split()[-1]
        for _ in range(2)
    ]
    assert said == ["True", "False"]


def note_revision(revision: str) -> None:
    with database.engine().begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :it"), {"it": revision})


def test_a_database_of_a_later_version_is_left_alone(fleet_home: Path) -> None:
    note_revision("9999_later")
    with pytest.raises(migrations.NewerDatabaseError, match=r"9999_later, of a later .*Install that version"):
        migrations.upgrade()
    note_revision(migrations.revisions()[-1])
    migrations.upgrade()
