"""Every role's molecule scenarios, on Debian instances of this machine.

`python -m tests.checks.roles [--short] [ROLE...]`: all of them whole, one after another; or, in minutes, whether each
role converges, is unchanged the second time, and did what it says.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.checks.homes import cache, own_home
from tests.checks.runner import ROOT
from tests.checks.stamps import unless_well
from tests.instances.group import Group

WHOLE = "default"
SHORT = "short"
"""A role may have a scenario of this name: `default` on fewer instances. Without it, the short run takes `default`."""
SCENARIO = Path(f"molecule/{WHOLE}/molecule.yml")
SHARED_SETTINGS = ROOT / ".config/molecule/config.yml"
SHORT_SETTINGS = ROOT / ".config/molecule/short.yml"
SHORT_WITHIN = {"nfs_server": "nfs_client"}
"""A role whose short run is part of another's: their instances have a kernel of their own, and boot slowly."""
SHORT_LOOKS_AT = ("roles/packages", "tests/instances", ".config/molecule", "api/virtfleet/lab")
ALSO_LOOKS_AT = {
    "controller": ("api", "collections", "playbooks", "requirements", "pyproject.toml", "hatch_build.py"),
    "hypervisor": ("collections",),
    "nfs_client": ("collections", "roles/nfs_server"),
}
"""What the answer of a role's short run depends on beside the role."""
SHORT_STEPS = ("converge", "idempotence", "verify")
SHORT_AT_ONCE = 2


@dataclass(frozen=True)
class Result:
    """How a scenario went: molecule's exit status, the seconds that passed, those that processors worked for Ansible
    here and for the instances, and what was said, if it is kept.
    """

    status: int
    seconds: float
    worked: tuple[float, float]
    output: str


def scenarios(roles: Path) -> list[str]:
    """Return the names of the roles that have a scenario."""
    return sorted(file.parents[2].name for file in roles.glob(f"*/{SCENARIO}"))


def scenarios_of(role: Path, short: bool) -> list[str]:
    """Return which scenarios of a role to run: for the short run one, otherwise `default` and those beside it."""
    there = {file.parent.name for file in role.glob("molecule/*/molecule.yml")}
    if short:
        return [SHORT if SHORT in there else WHOLE]
    return [WHOLE, *sorted(there - {WHOLE, SHORT})]


def without_scenario(roles: Path) -> list[str]:
    """Return the names of the roles that have none: each must."""
    named = {folder.name for folder in roles.iterdir() if (folder / "meta").is_dir()}
    return sorted(named - set(scenarios(roles)))


def unmatched(output: str, platforms: list[str]) -> list[str]:
    """Return what no task ran on: steps of a short scenario without any instance, and instances without any step."""
    steps = dict(re.findall(r"> (\w+)\] Executing\n(.*?)(?=> \w+\] Executing\n|\Z)", output, re.DOTALL))
    recap = re.compile(r"^(\S+) +: ok=[1-9]", re.MULTILINE)
    seen = {step: set(recap.findall(steps.get(step, ""))) & set(platforms) for step in SHORT_STEPS}
    return [step for step in SHORT_STEPS if not seen[step]] + sorted(set(platforms).difference(*seen.values()))


def run(role: str, scenario: str, short: bool = False) -> Result:
    """Run a scenario of one role. What a short run says is kept; a whole one says it as it goes."""
    folder = ROOT / "roles" / role
    group = Group(f"{role.replace('_', '-')}-{scenario}")  # named as in tests/instances/molecule/create.yml
    started = time.monotonic()
    with group.alone(), tempfile.TemporaryDirectory(prefix="virtfleet-role-") as work:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(own_home("molecule-home")),
            "VIRTFLEET_CACHE": str(cache()),  # the instances and their root folder are not in that home
            "NO_COLOR": "1",
            "COLUMNS": "150",
            "PYTHONPATH": str(ROOT),
            # Other checkouts use the same names, and an instance may have the address of an earlier one.
            "MOLECULE_EPHEMERAL_DIRECTORY": f"{work}/molecule",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{work}/ssh",
        }
        bases = [f"--base-config={file}" for file in (SHARED_SETTINGS, *([SHORT_SETTINGS] if short else []))]
        said = Path(work, "said")
        try:
            with said.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "molecule", *bases, "test", "-s", scenario, "--destroy=never"],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file if short else None,
                    stderr=subprocess.STDOUT if short else None,
                    env=environment,
                )
                _, ended, used = os.wait4(process.pid, 0)
            status = process.returncode = os.waitstatus_to_exitcode(ended)
            worked = (used.ru_utime + used.ru_stime, group.processor_seconds())
            output = said.read_text(errors="replace")
        finally:
            group.down()
    if short and status == 0:
        settings = yaml.safe_load((folder / "molecule" / scenario / "molecule.yml").read_text())
        if lost := unmatched(output, [platform["name"] for platform in settings["platforms"]]):
            status, output = 1, f"{output}\n{role}: nothing ran for {', '.join(lost)}"
    return Result(status, time.monotonic() - started, worked, output)


def run_all(roles: list[str], short: bool, again: bool) -> dict[str, Result]:
    """Run the scenarios of these roles, say how each went, and return it by the scenario's name: short ones two at a
    time, since they wait much, and unless `again`, not what was well and has not changed.
    """
    speaking = threading.Lock()
    results: dict[str, Result] = {}

    def one(role: str, scenario: str) -> int:
        name = role if short or scenario == WHOLE else f"{role}/{scenario}"
        if not short:
            print(f"===== {name}", flush=True)
        results[name] = result = run(role, scenario, short)
        word = "ok" if result.status == 0 else f"FAILED with {result.status}"
        ansible, instances = result.worked
        with speaking:
            if result.status:
                print(result.output)
            print(
                f"===== {name}: {word} ({result.seconds:.0f} s; processors worked {ansible:.0f} s for Ansible and"
                f" {instances:.0f} s for the instances)",
                flush=True,
            )
        return result.status

    def one_unless_well(role: str, scenario: str) -> int:
        looks_at = [f"roles/{role}", *SHORT_LOOKS_AT, *ALSO_LOOKS_AT.get(role, ())]
        return unless_well(f"role-{role}", looks_at, lambda: one(role, scenario))

    wanted = [(role, scenario) for role in roles for scenario in scenarios_of(ROOT / "roles" / role, short)]
    with ThreadPoolExecutor(max_workers=SHORT_AT_ONCE if short else 1) as pool:
        list(pool.map(lambda each: (one_unless_well if short and not again else one)(*each), wanted))
    return results


def main(arguments: list[str]) -> int:
    """Run the scenarios of the wanted roles, or of all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.checks.roles", description=__doc__)
    parser.add_argument("--short", action="store_true", help="converge, once more, verify: what takes minutes")
    parser.add_argument("roles", nargs="*", metavar="ROLE", help="instead of all that have a scenario")
    options = parser.parse_args(arguments)
    there = scenarios(ROOT / "roles")
    lost = without_scenario(ROOT / "roles")
    for role in lost:
        print(f"{role}: it has no {SCENARIO}, so nothing tests it")
    unknown = sorted(set(options.roles) - set(there))
    if unknown:
        print(f"no role with a scenario is called {', '.join(unknown)}; there are {', '.join(there) or 'none'}")
        return 2
    wanted = options.roles or [role for role in there if not (options.short and role in SHORT_WITHIN)]
    results = run_all(wanted, options.short, again=bool(options.roles))
    failed = sorted(name for name, result in results.items() if result.status)
    worked = sum(sum(result.worked) for result in results.values())
    print(
        f"{len(wanted)} roles, {len(failed)} of their scenarios failed{': ' if failed else ''}{', '.join(failed)}"
        f" ({worked:.0f} s of processors)"
    )
    return 1 if failed or lost or not wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
