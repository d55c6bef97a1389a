"""A CRIU that is newer than the release's, for instances on a kernel that the release's own does not know.

`python -m tests.instances.newer_criu FOLDER` fills FOLDER with the packages of Debian's unstable suite, libraries and
all, and their SHA256SUMS. apt checks what it fetches; they are fetched once and kept in the cache.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from virtfleet.lab import locks
from virtfleet.lab.errors import LabError

from tests.checks.homes import cache
from tests.instances.root_folder import SOURCES

SUITE = "sid"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUMS = "SHA256SUMS"


def packages() -> Path:
    """Return the folder with the packages, fetched first when there is none."""
    folder = cache() / "newer-criu"
    with locks.held(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache(), prefix="newer-criu-") as work:
                _fetch(Path(work))
                (Path(work) / "packages").rename(folder)
    return folder


def _fetch(work: Path) -> None:
    """Fetch with a state of apt's own, so that this machine's packages count for nothing and stay as they are."""
    for part in ("lists/partial", "cache/archives/partial", "packages"):
        (work / part).mkdir(parents=True)
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {_mirror()} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "cache",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in settings.items())]
    for verb in (["update"], ["--yes", "--download-only", "install", "criu"]):
        subprocess.run([*apt, *verb], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    lines = []
    for file in sorted((work / "cache/archives").glob("*.deb")):
        shutil.move(file, work / "packages" / file.name)
        digest = hashlib.sha256((work / "packages" / file.name).read_bytes()).hexdigest()
        lines.append(f"{digest}  {file.name}\n")
    (work / "packages" / SUMS).write_text("".join(lines))


def _mirror() -> str:
    """Return where this machine has Debian from; raises LabError."""
    for file in SOURCES:
        if file.is_file() and (found := re.search(r"https?://\S+", re.sub(r"(?m)^#.*", "", file.read_text()))):
            return found[0]
    raise LabError("fetch a newer CRIU", f"none of {', '.join(map(str, SOURCES))} names a mirror", "Use Debian 12.")


if __name__ == "__main__":
    shutil.copytree(packages(), sys.argv[1], dirs_exist_ok=True)
