"""Runs named checks and says in one line each how they went."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """A command that ends with 0 when all is well.

    Quick ones need no lab and no processes of a fleet, and are part of `--quick`. Cheap ones, a single process of a
    few seconds, run two at a time. Full ones are left out unless they are asked for.
    Those with a `lane`, which follow each other in a list of checks, run beside those of the list's other lanes: they
    wait for much of their time.
    `needs` is a path without which there is nothing to check yet.
    """

    name: str
    command: tuple[str, ...]
    quick: bool = True
    full: bool = False
    cheap: bool = True
    needs: str = ""
    lane: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a check went: `code` is None when there was nothing to check yet."""

    check: Check
    code: int | None
    seconds: float
    output: str

    @property
    def word(self) -> str:
        """Return what stands in the table."""
        return "nothing yet" if self.code is None else "ok" if self.code == 0 else "FAILED"

    @property
    def last_line(self) -> str:
        """Return the last line of the output: test runners close with their count."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Runner:
    """Runs checks and prints as it goes. Its lines never mix, whichever check they come from."""

    def __init__(self) -> None:
        self._speaking = threading.Lock()

    def _say(self, text: str) -> None:
        with self._speaking:
            print(text, flush=True)

    def run(self, checks: Sequence[Check]) -> list[Outcome]:
        """Run the cheap checks two at a time, then the others: lanes beside each other, the rest one after another."""
        cheap = [check for check in checks if check.cheap]
        with ThreadPoolExecutor(max_workers=2) as pool:
            outcomes = list(pool.map(self._run_one, cheap))
        for in_lanes, group in groupby((check for check in checks if not check.cheap), lambda check: bool(check.lane)):
            following = list(group)
            names = dict.fromkeys(check.lane for check in following) if in_lanes else ("",)
            lanes = [[check for check in following if check.lane == name] for name in names]
            with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
                for found in pool.map(self._run_each, lanes):
                    outcomes += found
        return outcomes

    def _run_each(self, checks: Sequence[Check]) -> list[Outcome]:
        return [self._run_one(check) for check in checks]

    def _run_one(self, check: Check) -> Outcome:
        if check.needs and not (ROOT / check.needs).exists():
            self._say(f"{'nothing yet':11} {check.name}: there is no {check.needs}")
            return Outcome(check, None, 0.0, "")
        if not check.cheap:
            self._say(f"{'running':11} {check.name}")
        started = time.monotonic()
        process = subprocess.Popen(
            check.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
        reader.start()
        while True:
            reader.join(HEARTBEAT_SECONDS)
            if not reader.is_alive():
                break
            last = lines[-1].strip()[:100] if lines else ""
            self._say(f"{'...':11} {check.name}: {time.monotonic() - started:.0f} s so far; {last}")
        outcome = Outcome(check, process.wait(), time.monotonic() - started, "".join(lines))
        text = f"{outcome.word:11} {check.name} ({outcome.seconds:.1f} s)"
        if outcome.code:
            text += f": {' '.join(check.command)} ended with {outcome.code}\n{outcome.output.rstrip()}\n"
        self._say(text)
        return outcome


def conclude(outcomes: Sequence[Outcome]) -> int:
    """Print the table and the closing line; return the exit status."""
    print("\n" + "-" * 100)
    for outcome in outcomes:
        print(f"{outcome.word:11} {outcome.check.name:20} {outcome.seconds:7.1f} s  {outcome.last_line[:80]}")
    print("-" * 100)
    failed = [outcome.check.name for outcome in outcomes if outcome.code]
    passed = sum(outcome.code == 0 for outcome in outcomes)
    if failed:
        print(f"Failed: {', '.join(failed)}. One alone: ./fleet test --only NAME")
    elif not passed:
        print("No check ran.")
    print(f"{passed} passed, {len(failed)} failed")
    sys.stdout.flush()
    return 1 if failed or not passed else 0
