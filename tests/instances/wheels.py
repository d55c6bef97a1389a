"""Wheels for instances, which reach no registry: what virtfleet needs, and virtfleet itself in four versions.

`python -m tests.instances.wheels FOLDER [VERSION...]` writes `FOLDER/needed.tar`, and a wheel each into
`FOLDER/present`, `next`, `broken` (its migration fails half-way) and `silent` (its migration succeeds, its worker does
not start), or only into those named.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from virtfleet.lab import locks

from tests.checks.homes import cache
from tests.checks.runner import ROOT

LOCKS = [ROOT / "requirements" / f"{name}.txt" for name in ("build", "runtime")]
MIGRATION = '''"""A table of a later version."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{down}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("of_a_later_version", sa.Column("number", sa.Integer()))
    {then}


def downgrade() -> None:
    raise NotImplementedError
'''


def needed() -> Path:
    """Return an archive of all packages that are locked; fetched once for each state of the locks."""
    key = hashlib.sha256(b"".join(lock.read_bytes() for lock in LOCKS)).hexdigest()[:16]
    archive = cache() / "controller-wheels" / f"{key}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(archive.with_suffix(".lock")):
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=archive.parent) as work:
                fetch = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps")
                for lock in LOCKS:
                    run(*fetch, "--no-build-isolation", "--require-hashes", "-r", str(lock), "-d", f"{work}/wheels")
                with tarfile.open(f"{work}/new.tar", "w") as tar:
                    tar.add(f"{work}/wheels", arcname="wheels")
                Path(work, "new.tar").rename(archive)
    return archive


def run(*argv: str, cwd: Path | None = None) -> str:
    """Run a program and return what it printed."""
    return subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL).stdout


def wheel(into: Path, change: Callable[[Path], None]) -> None:
    """Build a wheel of this checkout, as git knows it, with a change."""
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "tree"
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        for name in listed.splitlines():
            if (ROOT / name).is_file() and not name.startswith("tests/"):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        change(tree)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(tree))


def _version(tree: Path, number: str) -> None:
    file = tree / "pyproject.toml"
    file.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{number}"', file.read_text(), count=1))


def _migration(tree: Path, then: str) -> None:
    versions = tree / "api/virtfleet/migrations/versions"
    last = max(versions.glob("[0-9]*.py")).read_text()
    found = re.search(r'^revision(?:: str)? = "([^"]+)"', last, re.M)
    assert found, "the last migration names its revision"
    (versions / "9999_later.py").write_text(MIGRATION.format(down=found[1], then=then))


def later(tree: Path) -> None:
    """Make it a later version, with a table more."""
    _version(tree, "0.9.1")
    _migration(tree, "op.drop_table('of_a_later_version')")


def broken(tree: Path) -> None:
    """Have its migration fail when half of it is done."""
    _version(tree, "0.9.2")
    _migration(tree, "raise RuntimeError('this migration is broken')")


def silent(tree: Path) -> None:
    """Have its worker end when it begins."""
    _version(tree, "0.9.3")
    _migration(tree, "pass")
    worker = tree / "api/virtfleet/worker.py"
    worker.write_text(worker.read_text().replace("    serve(Worker())\n", "    raise SystemExit('no worker today')\n"))


VERSIONS = {"present": lambda _tree: None, "next": later, "broken": broken, "silent": silent}


def main() -> None:
    """Write what the command line asks for."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(needed(), folder / "needed.tar")
    for name in sys.argv[2:] or VERSIONS:
        wheel(folder / name, VERSIONS[name])


if __name__ == "__main__":
    main()
