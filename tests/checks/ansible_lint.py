"""ansible-lint with its strictest profile, without the network. What was found well is not looked at again.

It takes half a minute of processor time; so when it has found nothing, a fingerprint of all that it read is kept in the
checkout's `.cache`, and as long as nothing of that has changed, the answer is the same.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.checks.homes import own_home
from tests.checks.runner import ROOT

STAMP = ROOT / ".cache" / "ansible-lint.well"
ALSO_READ = (
    *(".ansible-lint", ".yamllint", ".config", "collections", "tests/checks"),
    *("requirements/dev.txt", "requirements/runtime.txt"),
)
"""What the answer depends on beside the files that are linted: rules, modules and versions."""


def fingerprint(paths: list[str], root: Path = ROOT) -> str:
    """Return a hash of the names and contents of all files that git knows, or would take, in these paths."""
    wanted = [path for path in (*paths, *ALSO_READ) if (root / path).exists()]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *wanted]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [Path(name) for name in sorted(set(names)) if name and (root / name).is_file()]
    whole = hashlib.sha256("\0".join([sys.version, *paths]).encode())
    for name in files:
        whole.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


def main(paths: list[str]) -> int:
    """Lint the paths; return the exit status."""
    before = fingerprint(paths)
    if STAMP.exists() and STAMP.read_text() == before:
        print(f"nothing has changed since ansible-lint found all well ({STAMP.relative_to(ROOT)})")
        return 0
    environment = os.environ | {
        "HOME": str(own_home("ansible-lint-home")),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(own_home("ansible-lint-home") / ".ansible"),
    }
    command = ["ansible-lint", "--offline", "--strict", "--profile", "production", "--nocolor", "-q", *paths]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    STAMP.unlink(missing_ok=True)
    if code == 0 and fingerprint(paths) == before:
        STAMP.parent.mkdir(exist_ok=True)
        STAMP.write_text(before)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
