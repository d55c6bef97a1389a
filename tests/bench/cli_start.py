"""How long the command line takes to start, beside a Python that does nothing: the goal is under 300 ms.

    .venv/bin/python -m tests.bench.cli_start [ROUNDS]

Medians and minima; on a busy machine the minimum and the processor time say more. No API needs to answer: `version`
asks none, `vm list` fails when it finds none, after all that it needs has been loaded.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_SECONDS = 0.3
PROGRAM = Path(sys.executable).with_name("virtfleet")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "virtfleet version": [str(PROGRAM), "version"],
    "virtfleet vm --help": [str(PROGRAM), "vm", "--help"],
    "virtfleet vm list": [str(PROGRAM), "vm", "list"],
    "completion of vm show": [str(PROGRAM)],
}
COMPLETION = {"_VIRTFLEET_COMPLETE": "complete_bash", "COMP_WORDS": "virtfleet vm show x", "COMP_CWORD": "3"}


def once(command: list[str]) -> tuple[float, float]:
    """Run a command; return the seconds that passed and those of the processor."""
    own = COMPLETION if len(command) == 1 else {}
    environment = {**os.environ, "VIRTFLEET_URL": "http://127.0.0.1:9", "VIRTFLEET_HOME": "/nonexistent", **own}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, env=environment, check=False, capture_output=True)
    passed, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line for each command."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{'':24} {'median':>9} {'least':>9} {'processor':>9}   goal {GOAL_SECONDS * 1000:.0f} ms")
    for name, command in COMMANDS.items():
        once(command)
        found = [once(command) for _ in range(rounds)]
        passed, worked = [each[0] for each in found], [each[1] for each in found]
        figures = (statistics.median(passed), min(passed), statistics.median(worked))
        print(f"{name:24} " + " ".join(f"{figure * 1000:6.0f} ms" for figure in figures))


if __name__ == "__main__":
    main()
