"""Nothing that a supervised program started survives it, its supervisor, or the supervisor's parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from virtfleet.jobs import supervisor, survivors

# A program with a daemon (double fork, setsid) and a child that ignores SIGTERM; writes their numbers to a file.
PROGRAM = """
import os, signal, sys, time
def note(): open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note()
        time.sleep(60)
    os._exit(0)
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note()
    time.sleep(60)
note()
while len(open(sys.argv[1]).readlines()) < 3: time.sleep(0.01)
exec(sys.argv[2])
"""


def command(notes: Path, then: str, parent: int | str | None = None, grace: float = 0.3) -> list[str]:
    of = str(os.getpid() if parent is None else parent)
    program = [sys.executable, "-c", PROGRAM, str(notes), then]
    return [sys.executable, "-I", "-S", supervisor.__file__, of, str(grace), *program]


def noted(notes: Path, seconds: float = 10) -> list[int]:
    deadline = time.monotonic() + seconds
    while not notes.exists() or notes.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(line) for line in notes.read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if pid in supervisor.parents()]


def wait_gone(pids: list[int], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while alive(pids):
        assert time.monotonic() < deadline, f"still alive: {alive(pids)}"
        time.sleep(0.01)


def test_the_exit_status_is_passed_on_and_daemons_end_with_the_program(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    done = subprocess.run(command(notes, "sys.exit(7)"), timeout=10, check=False)
    assert done.returncode == 7
    assert alive(noted(notes)) == []


def test_a_program_that_was_killed_has_the_status_of_the_signal(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "pids", "os.kill(os.getpid(), 9)"), timeout=10, check=False)
    assert done.returncode == 128 + 9


def test_a_program_that_does_not_exist_is_named() -> None:
    start = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), "1", "/no/such/program"]
    done = subprocess.run(start, timeout=10, check=False, capture_output=True, text=True)
    assert done.returncode == 127
    assert "/no/such/program cannot be started: No such file" in done.stderr


def test_sigterm_ends_everything_also_what_ignores_it(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    process = subprocess.Popen(command(notes, "time.sleep(60)"))
    pids = noted(notes)
    begun = time.monotonic()
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert alive(pids) == []
    assert time.monotonic() - begun < 3


def test_the_death_of_the_parent_ends_everything(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    parent = "import os,subprocess,sys; subprocess.Popen([a.replace('PARENT', str(os.getpid())) for a in sys.argv[1:]])"
    wrapper = [sys.executable, "-c", parent + ".wait()", *command(notes, "time.sleep(60)", parent="PARENT")]
    process = subprocess.Popen(wrapper)
    pids = noted(notes)
    process.kill()
    process.wait()
    wait_gone(pids)


def test_nothing_is_started_when_the_parent_is_dead_already(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    done = subprocess.run(command(notes, "pass", parent=1 if os.getpid() != 1 else 2), timeout=10, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert not notes.exists()


def test_survivors_of_a_killed_supervisor_are_found_by_their_attempt_and_ended(tmp_path: Path) -> None:
    notes, other_notes = tmp_path / "pids", tmp_path / "others"
    environment = {**os.environ, survivors.VARIABLE: "att_test_1"}
    process = subprocess.Popen(command(notes, "time.sleep(60)"), env=environment)
    other = subprocess.Popen(
        command(other_notes, "time.sleep(60)"), env=os.environ | {survivors.VARIABLE: "att_test_10"}
    )
    try:
        pids, others = noted(notes), noted(other_notes)
        process.kill()
        process.wait()
        assert set(survivors.find("att_test_1")) == set(pids)
        assert survivors.end("att_test_1") == 3
        assert alive(pids) == []
        assert alive(others) == others
    finally:
        other.terminate()
        other.wait()
    assert survivors.end("att_test_1") == 0
