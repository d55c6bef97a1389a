"""What a check has found well is not looked at again, as long as nothing changes of all that its answer depends on.

A fingerprint of that is kept in the checkout's `.cache`; a fresh clone has none, so there everything is looked at.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.checks.runner import ROOT

FOLDER = ROOT / ".cache"
VERSIONS = ("requirements/dev.txt", "requirements/runtime.txt", "tests/checks")
"""What the answer of every check depends on: the versions of the tools, and how they are called."""


def hashes(paths: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Return name → hash of the content of all files that git knows, or would take, in these paths."""
    wanted = [path for path in paths if (root / path).exists()]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *wanted]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [name for name in sorted(set(names)) if name and (root / name).is_file()]
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in files}


def fingerprint(paths: Sequence[str], root: Path = ROOT) -> str:
    """Return a hash of these paths, of the versions of the tools and of this Python."""
    whole = hashlib.sha256("\0".join([sys.version, *paths]).encode())
    for name, content in hashes([*paths, *VERSIONS], root).items():
        whole.update(f"{name}\0{content}\0".encode())
    return whole.hexdigest()


def unless_well(name: str, paths: Sequence[str], check: Callable[[], int]) -> int:
    """Return the exit status of a check, which is not run when these paths are as they were when it was well."""
    stamp = FOLDER / f"{name}.well"
    before = fingerprint(paths)
    if stamp.exists() and stamp.read_text() == before:
        print(f"nothing has changed since {name} found all well ({stamp.relative_to(ROOT)})")
        return 0
    code = check()
    if code == 0 and fingerprint(paths) == before:
        FOLDER.mkdir(exist_ok=True)
        stamp.write_text(before)
    return code
