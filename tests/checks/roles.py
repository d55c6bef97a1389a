"""Every role's molecule scenario `default`, one after another, on Debian instances of this machine.

`python -m tests.checks.roles [ROLE...]`
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.checks.homes import cache, own_home
from tests.checks.runner import ROOT
from tests.instances.group import Group

SCENARIO = Path("molecule/default/molecule.yml")
SHARED_SETTINGS = ROOT / ".config/molecule/config.yml"


def scenarios(roles: Path) -> list[str]:
    """Return the names of the roles that have a scenario."""
    return sorted(file.parents[2].name for file in roles.glob(f"*/{SCENARIO}"))


def without_scenario(roles: Path) -> list[str]:
    """Return the names of the roles that have none: each must."""
    named = {folder.name for folder in roles.iterdir() if (folder / "meta").is_dir()}
    return sorted(named - set(scenarios(roles)))


def run(role: str) -> int:
    """Run the scenario of one role; return molecule's exit status."""
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": tools,
        "HOME": str(own_home("molecule-home")),
        "VIRTFLEET_CACHE": str(cache()),  # the instances and their root folder are not in that home
        "NO_COLOR": "1",
        "COLUMNS": "150",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "molecule", "--base-config", str(SHARED_SETTINGS), "test", "-s", "default"]
    with Group(f"{role.replace('_', '-')}-default").alone():  # named as in tests/instances/molecule/create.yml
        return subprocess.run(
            command, cwd=ROOT / "roles" / role, stdin=subprocess.DEVNULL, env=environment, check=False
        ).returncode


def main(wanted: list[str]) -> int:
    """Run the scenarios of the wanted roles, or of all; return the exit status."""
    roles = ROOT / "roles"
    there = scenarios(roles)
    lost = without_scenario(roles)
    for role in lost:
        print(f"{role}: it has no {SCENARIO}, so nothing tests it")
    unknown = sorted(set(wanted) - set(there))
    if unknown:
        print(f"no role with a scenario is called {', '.join(unknown)}; there are {', '.join(there) or 'none'}")
        return 2
    results = {}
    for role in wanted or there:
        print(f"===== {role}", flush=True)
        started = time.monotonic()
        results[role] = run(role)
        word = "ok" if results[role] == 0 else f"FAILED with {results[role]}"
        print(f"===== {role}: {word} ({time.monotonic() - started:.0f} s)", flush=True)
    failed = sorted(role for role, status in results.items() if status)
    print(f"{len(results) - len(failed)} roles passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed or lost or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
