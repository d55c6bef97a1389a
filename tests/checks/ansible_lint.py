"""ansible-lint with its strictest profile, without the network."""

import os
import subprocess
import sys

from tests.checks.homes import own_home
from tests.checks.runner import ROOT


def main(paths: list[str]) -> int:
    """Lint the paths; return the exit status."""
    environment = os.environ | {
        "HOME": str(own_home("ansible-lint-home")),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(own_home("ansible-lint-home") / ".ansible"),
    }
    command = ["ansible-lint", "--offline", "--strict", "--profile", "production", "--nocolor", "-q", *paths]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
