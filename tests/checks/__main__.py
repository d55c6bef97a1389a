"""`./fleet test`: runs the checks. `--quick` leaves out what needs a lab, real processes or minutes."""

import argparse
import os
import sys
from pathlib import Path

from tests.checks.runner import ROOT, Check, Runner, conclude

PYTHON = sys.executable
COLLECTION = "collections/ansible_collections/virtfleet/core"
PYTHON_TREES = ("api", "collections", "roles", "tests", "hatch_build.py")

# Folders of tests, and whether they do without a lab and without the fleet's processes. Those in NOTHING_YET may be
# missing, for now.
SUITES = {
    "unit": True,
    "api": True,
    "sweeps": False,
    "processes": False,
    "lab": False,
    "conformance": False,
    "e2e": False,
    "chaos": False,
    "bench": False,
    "full": False,
}
FULL = {"full"}
"""Suites that take minutes more, on machines with a systemd of their own: only with `--full`."""
NOTHING_YET = {"chaos"}

# How a suite's tests are spread over workers of pytest-xdist; suites that are not here take them one after another.
# Each worker has homes, ports and a lab of its own.
TESTS = ("-n", "2", "--dist", "worksteal")
FILES = ("-n", "2", "--dist", "loadfile")
"""The tests of a file share a fleet or a machine."""
SPREAD = {
    **dict.fromkeys(("unit", "api"), TESTS),
    # A third worker works while the others wait: for a lease to end, for a host that is away. The suite itself says
    # which of its files come first (tests/lab/conftest.py).
    "lab": (*FILES, "-n", "3", "--no-loadscope-reorder"),
}
LANES = {"lab": "hosts", **dict.fromkeys(("sweeps", "processes", "conformance", "e2e"), "rest")}
"""Suites that wait much, for guests and hosts and leases: those of one lane run beside those of the other."""


def shell_scripts() -> list[str]:
    """Return every shell script of the repository that git knows, or would take; a template becomes one only later."""
    scripts = [ROOT / "fleet", ROOT / "script", ROOT / ".ci/run"]
    for tree in ("api", "collections", "playbooks", "roles", "tests"):
        for path in (ROOT / tree).rglob("*"):
            if path.is_file() and not path.is_symlink() and path.suffix != ".j2":
                with path.open("rb") as handle:
                    if handle.readline(64).rstrip() in (b"#!/bin/sh", b"#!/bin/bash"):
                        scripts.append(path)
    return sorted(str(path.relative_to(ROOT)) for path in scripts)


def pytest(*arguments: str) -> tuple[str, ...]:
    """Return a pytest command under which a skip that is not listed is a failure."""
    return (PYTHON, "-m", "pytest", "-p", "tests.checks.skips", "-q", *arguments)


def all_checks(*, quick_loop: bool = False) -> list[Check]:
    """Return the checks in the order in which they run; for the quick loop, some that look at less."""
    yaml = ["playbooks", "inventories/example", COLLECTION, "roles", "tests/instances", ".config"]
    suites = []
    for name, quick in SUITES.items():
        folders = [f"tests/{name}", *([f"{COLLECTION}/tests/unit"] if name == "unit" else [])]
        fewer: tuple[str, ...] = ("-p", "tests.checks.first_cases") if quick_loop else ()
        if quick_loop and name == "unit":
            fewer += ("--hypothesis-profile", "quick")
        needs = f"tests/{name}" if name in NOTHING_YET else ""
        command = pytest(*SPREAD.get(name, ()), *fewer, *folders)
        lane = LANES.get(name, "")
        suites.append(
            Check(f"pytest-{name}", command, quick=quick, full=name in FULL, cheap=False, needs=needs, lane=lane)
        )
    return [
        # The longest of the cheap ones first, beside which the others run.
        Check(
            "ansible-lint", (PYTHON, "-m", "tests.checks.ansible_lint", *(("--changed",) if quick_loop else ()), *yaml)
        ),
        Check("ruff", ("ruff", "check", *PYTHON_TREES)),
        Check("ruff-format", ("ruff", "format", "--check", *PYTHON_TREES)),
        Check("mypy", ("mypy", "api/virtfleet", COLLECTION + "/plugins", "roles", "tests", "hatch_build.py")),
        Check("shellcheck", ("shellcheck", *shell_scripts())),
        Check("yamllint", ("yamllint", "--strict", *yaml)),
        Check("docs", (PYTHON, "-m", "tests.checks.docs")),
        Check("reference", (PYTHON, "-m", "tests.checks.reference")),
        Check("suites", (PYTHON, "-m", "tests.checks.suites", *SUITES)),
        suites[0],
        suites[1],
        Check("ansible-test-sanity", (PYTHON, "-m", "tests.checks.sanity"), quick=False, cheap=False, lane="rest"),
        Check("galaxy-importer", (PYTHON, "-m", "tests.checks.galaxy"), quick=False, cheap=False, lane="rest"),
        # Beside both lanes: it waits for apt and for systemd, and it is over before them.
        Check("roles-short", (PYTHON, "-m", "tests.checks.roles", "--short"), quick=False, cheap=False, lane="roles"),
        *suites[2:],
        Check("roles", (PYTHON, "-m", "tests.checks.roles"), quick=False, full=True, cheap=False),
    ]


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="./fleet test", description="Runs the checks of this repository.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only what needs no lab and no processes of a fleet, one case of each test: under a minute",
    )
    parser.add_argument(
        "--full", action="store_true", help="also what takes minutes more: each role, on machines with systemd"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="one check by its name (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the checks and end")
    options = parser.parse_args()
    checks = all_checks(quick_loop=options.quick)
    if options.list:
        for check in checks:
            speed = "quick" if check.quick else "full" if check.full else "slow"
            print(f"{check.name:20} {speed:6} {' '.join(check.command)[:120]}")
        return 0
    if options.only:
        unknown = sorted(set(options.only) - {check.name for check in checks})
        if unknown:
            parser.error(f"there is no check {', '.join(unknown)}; --list names them all")
        checks = [check for check in checks if check.name in options.only]
    elif options.quick:
        checks = [check for check in checks if check.quick]
    elif not options.full:
        checks = [check for check in checks if not check.full]
    return conclude(Runner().run(checks))


if __name__ == "__main__":
    # The tools lie beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sys.exit(main())
