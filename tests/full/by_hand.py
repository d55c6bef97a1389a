"""A person with Ansible's programs, an inventory, and the checkout's playbooks."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.checks.runner import ROOT

LONGEST_SECONDS = 5400.0


@dataclass(frozen=True)
class ByHand:
    """Runs a program with these inventories, in the checkout."""

    inventories: Sequence[str | Path]

    def run(self, program: str, *words: str, code: int = 0) -> str:
        """Run it to its end, which must have this exit status; return what it said, which no private key may be in."""
        where = [word for inventory in self.inventories for word in ("-i", str(inventory))]
        # Starting programs is slow on a machine whose kernel is a program: one for each task, not four.
        own = {
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        }
        done = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *where, *words],
            cwd=ROOT,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_SECONDS,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "PRIVATE KEY" not in said
        return said

    def play(self, playbook: str, *words: str, code: int = 0) -> str:
        """Run a playbook, named by its path below `playbooks`."""
        return self.run("ansible-playbook", f"playbooks/{playbook}.yml", *words, code=code)


def counts(said: str, host: str) -> dict[str, int]:
    """Return the numbers of the recap of one host; none when it took no part."""
    line = re.search(rf"^{host} +: (.*)$", said, re.M)
    return {name: int(number) for name, number in (pair.split("=") for pair in line[1].split())} if line else {}
