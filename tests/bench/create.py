"""What virtfleet adds to the bare libvirt calls that make a machine: side by side, in one run, on one lab.

    .venv/bin/python -m tests.bench.create [ROUNDS]

Needs root. Every way makes the same machines on the same host: overlay, seed, domain, started paused. Medians of the
rounds.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime
from pathlib import Path

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.bench.bare import Machines, seconds
from tests.lab.fleet import Fleet, running

MEMORY = 128 * 2**20
DISK = 256 * 2**20
TEN = 10
HOST = "host1"
TASK = "Make the machines of this host"


def moment(text: str) -> float:
    """Return a time of the API as seconds."""
    return datetime.fromisoformat(text).timestamp()


def through_rest(fleet: Fleet, count: int) -> dict[str, float]:
    """Create machines through REST; return the seconds from accepted to the end, to the first task, and of the task."""
    began = time.monotonic()
    wish = {"vcpus": 1, "memory": "128MiB", "disk": "256MiB", "host": HOST, "paused": True, "wait_for": "none"}
    answer = fleet.post("/vms", {"name": "rest", "count": count, **wish})
    with fleet.http.stream(
        "GET", f"/jobs/{answer['job']['id']}/events", headers={"Accept": "text/event-stream"}
    ) as told:
        for _line in told.iter_lines():
            pass
    whole = time.monotonic() - began
    job = fleet.get(f"/jobs/{answer['job']['id']}")
    if job["state"] != "succeeded":
        raise RuntimeError(job["error"])
    events = fleet.get(f"/jobs/{job['id']}/events")["items"]
    task = next(at for at, event in enumerate(events) if event["kind"] == "task" and event["task"] == TASK)
    done = next(event for event in events[task:] if event["kind"] == "changed")
    fleet.delete_all()
    return {
        "whole": whole,
        "first task": moment(job["first_task_at"]) - moment(job["created_at"]),
        "playbook": moment(job["ended_at"]) - moment(job["started_at"]),
        "task": moment(done["time"]) - moment(events[task]["time"]),
    }


def debug_playbook(folder: Path) -> float:
    """Return how long one `ansible-playbook` with a single debug task takes."""
    playbook = folder / "debug.yml"
    playbook.write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - ansible.builtin.debug:\n        msg: x\n"
    )
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(playbook)]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=folder))


def measure(lab: Lab, folder: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds of everything that the table shows."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with running(lab, folder / "home") as fleet, opened_host(lab.host(HOST).uri, Deadline(30)) as connection:
        fleet.create("warm", host=HOST, paused=True, wait_for="none")
        fleet.delete_all()
        base = next(
            name for name in connection.storagePoolLookupByName("default").listVolumes() if name.startswith("base-")
        )
        bare = Machines(base, MEMORY, DISK)
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            note("debug playbook", debug_playbook(folder))
            note("bare one", seconds(lambda: bare.make(connection, "bare")))
            bare.remove(connection, "bare")
            for name, value in through_rest(fleet, 1).items():
                note(f"rest one {name}", value)
            note("bare ten", seconds(lambda: bare.make_many([connection], "bare", TEN)))
            bare.remove(connection, "bare")
            for name, value in through_rest(fleet, TEN).items():
                note(f"rest ten {name}", value)
    return {name: statistics.median(values) for name, values in found.items()}


def table(found: dict[str, float], rounds: int) -> str:
    """Return the measurements with what they are to be, as Markdown."""
    debug, bare_ten_seconds = found["debug playbook"], found["bare ten"]
    added = found["rest one whole"] - found["bare one"]
    rows = [
        ("one machine, bare libvirt calls", found["bare one"], "", ""),
        ("one machine, accepted to running through REST", found["rest one whole"], "", ""),
        ("**what virtfleet adds**", added, f"{added / debug:.2f} x a debug playbook", "≤ 1.5 s, ≤ 3.5 x"),
        ("one `ansible-playbook` with a debug task", debug, "", ""),
        ("accepted to first task", found["rest one first task"], "", ""),
        ("ten machines, libvirt-python in four threads", bare_ten_seconds, "", ""),
        *(
            (f"ten machines, {what}", found[key], f"{found[key] / bare_ten_seconds:.2f} x bare", "")
            for what, key in (("the task alone", "rest ten task"), ("the whole playbook", "rest ten playbook"))
        ),
    ]
    lines = [f"| {what} | {value:.2f} s | {ratio} | {goal} |" for what, value, ratio, goal in rows]
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    where = f"{os.cpu_count()} processors, load {load}, Python {platform.python_version()}"
    head = f"{date.today()}, {where}, medians of {rounds} rounds\n\n| what | time | ratio | goal |\n|---|---|---|---|\n"
    return head + "\n".join(lines)


def main() -> None:
    """Bring up a lab, measure, print, take it down."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(prefix="virtfleet-bench-") as name:
        lab = Lab("bench", Path(name) / "lab-home", say=lambda line: print(line, file=sys.stderr))
        try:
            lab.up(1)
            print(table(measure(lab, Path(name), rounds), rounds))
        finally:
            lab.down()


if __name__ == "__main__":
    main()
