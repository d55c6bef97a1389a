"""The fleet's own state, saved and put back."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text
from virtfleet import database, dump
from virtfleet.models import Host, Vm
from virtfleet.services import auth, secrets

from tests import databases

ON_A_SERVER = databases.server() is not None


def hosts() -> set[str]:
    with database.read() as session:
        return set(session.scalars(select(Host.name)))


def test_a_fleet_is_again_what_it_was_at_the_dump(two_hosts: None, fleet_home: Path, tmp_path: Path) -> None:
    with database.write() as session:
        reference = secrets.keep(session, auth.system(session), "user data", "#cloud-config")
    made = dump.save(tmp_path / "dumps")
    with database.write() as session:
        session.delete(session.scalars(select(Host).where(Host.name == "host2")).one())
        session.execute(text("CREATE TABLE of_a_later_version (number INTEGER)"))
    (fleet_home / "secret.key").unlink()
    assert hosts() == {"host1"}
    database.dispose()
    dump.restore(made)
    assert hosts() == {"host1", "host2"}
    assert "of_a_later_version" not in inspect(database.engine()).get_table_names()
    with database.read() as session:
        assert secrets.reveal(session, reference) == b"#cloud-config"
        assert session.scalars(select(Vm)).all() == []


def test_only_the_last_dumps_are_kept(two_hosts: None, tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    (folder / "somebody's").mkdir(parents=True)
    made = [dump.save(folder, keep=2) for _ in range(3)]
    assert dump.dumps(folder) == made[1:]
    assert sorted(each.name for each in folder.iterdir()) == [*(each.name for each in made[1:]), "somebody's"]
    assert {path.stat().st_mode & 0o077 for each in made[1:] for path in (each, each / "admin.token")} == {0}


def test_what_is_no_dump_changes_nothing(two_hosts: None, tmp_path: Path) -> None:
    made = dump.save(tmp_path / "dumps")
    file = made / (dump.POSTGRESQL if ON_A_SERVER else dump.SQLITE)
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(dump.DumpError):
        dump.restore(made)
    shutil.rmtree(made)
    with pytest.raises(dump.DumpError, match=file.name):
        dump.restore(made)
    assert hosts() == {"host1", "host2"}
