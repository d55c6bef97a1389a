"""The fleet's own state, saved while it runs and put back while it does not: `python -m virtfleet.dump save|restore`.

A dump is a folder with the database (`virtfleet.db` of SQLite, or `virtfleet.pgdump` of PostgreSQL) and the key without
which nobody can read the secrets in it. Machines and their disks lie on the hosts; no dump has them.
"""

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from virtfleet import clock, database, settings

SQLITE, POSTGRESQL = "virtfleet.db", "virtfleet.pgdump"
BESIDE = ("secret.key", "admin.token")
"""What lies beside the database in the fleet's home and belongs to it."""
NAMED = re.compile(r"\d{8}T\d{6}\.\d{3}Z", re.ASCII)


class DumpError(Exception):
    """The state cannot be saved or put back; the message says why and what to do."""


def save(folder: Path, keep: int = 0) -> Path:
    """Write a dump into a folder of its own below `folder` and return it; remove all but the last `keep`, 0 keeps all.

    The dump is there whole or not at all. Raises DumpError.
    """
    now = clock.now()
    name = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as work:
            draft = Path(work) / name
            draft.mkdir(mode=0o700)
            _save_database(_url(), draft)
            for beside in BESIDE:
                if (settings.home() / beside).exists():
                    shutil.copy2(settings.home() / beside, draft / beside)
            made = draft.replace(folder / name)
        for old in dumps(folder)[:-keep] if keep else []:
            shutil.rmtree(old)
    except OSError as error:
        raise DumpError(f"Failed to save the fleet's state in {folder}: {error.strerror or error}.") from error
    return made


def dumps(folder: Path) -> list[Path]:
    """Return the dumps in a folder, oldest first."""
    return sorted(each for each in folder.iterdir() if NAMED.fullmatch(each.name))


def restore(dump: Path) -> None:
    """Make the fleet's state what it was at the dump. Its processes must not run. Raises DumpError."""
    url = _url()
    file = dump / (SQLITE if _is_sqlite(url) else POSTGRESQL)
    if not file.is_file():
        problem = f"Failed to put the fleet's state back: {dump} has no {file.name}, which this fleet's database needs."
        raise DumpError(f"{problem} Name a dump of this fleet.")
    try:
        if _is_sqlite(url):
            _restore_sqlite(_file(url), file)
        else:
            _restore_postgresql(url, file)
        for beside in BESIDE:
            if (dump / beside).exists():
                shutil.copy2(dump / beside, settings.home() / beside)
    except OSError as error:
        raise DumpError(f"Failed to put {dump} back: {error.strerror or error}.") from error


def _url() -> URL:
    return make_url(settings.load().database)


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _file(url: URL) -> Path:
    assert url.database
    return Path(url.database)


def _save_database(url: URL, draft: Path) -> None:
    if not _is_sqlite(url):
        _run(url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={draft / POSTGRESQL}")
        return
    try:
        # Consistent, also while others write.
        with (
            closing(sqlite3.connect(f"{_file(url).as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(draft / SQLITE)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise DumpError(f"Failed to save the database {_file(url)}: {error}.") from error


def _restore_sqlite(into: Path, file: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as kept:
            (verdict,) = kept.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        raise DumpError(f"Failed to put {file} back: it is damaged ({verdict}). Take another dump.")
    fresh = into.with_name(into.name + ".new")
    shutil.copyfile(file, fresh)
    fresh.chmod(0o600)
    # What was written and not yet merged belongs to the database that goes.
    for rest in ("-wal", "-shm"):
        into.with_name(into.name + rest).unlink(missing_ok=True)
    fresh.replace(into)


def _restore_postgresql(url: URL, file: Path) -> None:
    # Read whole before anything goes.
    _run(url, "pg_restore", "--list", str(file))
    try:
        with database.engine().begin() as connection:
            # Also tables that came after the dump.
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
    except SQLAlchemyError as error:
        raise DumpError(f"Failed to empty the database {url.database}: {type(error).__name__}.") from error
    finally:
        database.dispose()
    whole = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
    _run(url, "pg_restore", *whole, f"--dbname={url.database}", str(file))


def _run(url: URL, *argv: str) -> None:
    # In the environment, which only its own user reads: a process list is everybody's.
    given = {**url.query, **url.translate_connect_args(username="user", database="database")}
    environment = os.environ | {f"PG{name.upper()}": str(value) for name, value in given.items()}
    try:
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        hint = "Install PostgreSQL's client programs (postgresql-client)."
        raise DumpError(f"Failed to save or put back the database: {argv[0]} is missing. {hint}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DumpError(f"{argv[0]} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m virtfleet.dump", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    saving = verbs.add_parser("save", help="write a dump into a folder of its own below FOLDER and print its name")
    saving.add_argument("folder", type=Path, metavar="FOLDER")
    saving.add_argument("--keep", type=int, default=0, metavar="N", help="remove all but the last N; 0 keeps all")
    restoring = verbs.add_parser("restore", help="put a dump back; the fleet's processes must not run")
    restoring.add_argument("folder", type=Path, metavar="DUMP")
    options = parser.parse_args()
    try:
        if options.verb == "save":
            print(save(options.folder, max(0, options.keep)))
        else:
            restore(options.folder)
    except DumpError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
