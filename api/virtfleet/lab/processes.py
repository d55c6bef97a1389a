"""The lab's processes, found in /proc by the mark in their environment. Never by a remembered pid alone.

A host is a PID namespace. Its init (tini) is the *holder*: when it ends, the kernel ends everything in the host.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtfleet.lab.errors import LabError
from virtfleet.lab.programs import MARK, environment

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A living process as seen from the machine."""

    pid: int
    command: str
    stopped: bool


def mark(lab_id: str, host: str) -> str:
    """Return the value of the mark for the processes of one host."""
    return f"{lab_id}/{host}"


def start(lab_id: str, host: str, argv: Sequence[str], log: Path) -> None:
    """Start a host's first process, which carries the lab's mark and outlives us; what it says goes to `log`."""
    with log.open("wb") as stream:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=environment(mark=mark(lab_id, host)),
        ).returncode = 0  # never waited for by Popen; `kill` reaps it if we are its parent


def _host_of(pid: int, lab_id: str) -> str | None:
    """Return which host of the lab the process belongs to by its mark, None when to none (or it is gone)."""
    folder = PROC / str(pid)
    try:
        if folder.stat().st_uid != 0:
            return None  # anybody can write a mark into an environment of their own
        environment = (folder / "environ").read_bytes()
    except OSError:
        return None
    start = f"{MARK}={lab_id}/".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(start):
            return variable[len(start) :].decode(errors="replace")
    return None


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _is_init(pid: int) -> bool:
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return len(numbers) > 1 and numbers[-1] == "1"
    return False


def marked(lab_id: str) -> dict[str, list[int]]:
    """Return the pids of the lab's processes that carry its mark, by host name."""
    found: dict[str, list[int]] = {}
    for pid in _pids():
        host = _host_of(pid, lab_id)
        if host is not None:
            found.setdefault(host, []).append(pid)
    return found


def holders(lab_id: str) -> dict[str, int]:
    """Return the pid of each living host's holder, by host name."""
    found = {}
    for host, pids in marked(lab_id).items():
        inits = [pid for pid in pids if _is_init(pid)]
        if inits:
            found[host] = inits[0]
    return found


def within(holder: int) -> list[Process]:
    """Return all processes of the host that `holder` holds, machines' QEMU included."""
    try:
        namespace = (PROC / str(holder) / "ns" / "pid").readlink()
    except OSError:
        return []
    found = []
    for pid in _pids():
        with suppress(OSError):
            if (PROC / str(pid) / "ns" / "pid").readlink() == namespace:
                # pid (command) state …; the command may hold blanks and brackets
                head, _, tail = (PROC / str(pid) / "stat").read_text().rpartition(")")
                found.append(Process(pid, head.partition("(")[2], tail.split()[0] in "Tt"))
    return found


def arguments(pid: int) -> list[str]:
    """Return the process's command line; empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def send(holder: int, pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes of the host that `holder` holds; one that is gone meanwhile is skipped."""
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # Looked at again with the descriptor in hand: the pid cannot have been given to another process since.
                if any(process.pid == pid for process in within(holder)):
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def kill(lab_id: str, hosts: set[str] | None, deadline_seconds: float = 15.0) -> list[str]:
    """End all processes of the lab, or of some of its hosts, and wait until they are gone.

    Returns the names of the hosts that lived. Raises LabError when the kernel does not let one of them go in time.
    """
    deadline = time.monotonic() + deadline_seconds
    ended: set[str] = set()
    # Again until none is left: a process killed in the middle of a boot may have had a child meanwhile.
    while living := {host: pids for host, pids in marked(lab_id).items() if hosts is None or host in hosts}:
        ended |= set(living)
        everyone = [(pid, host) for host, pids in living.items() for pid in pids]
        inits = [(pid, host) for pid, host in everyone if _is_init(pid)]
        if time.monotonic() > deadline:
            raise LabError(
                "end the lab's processes",
                f"{sorted(pid for pid, _ in everyone)} still ran {deadline_seconds:.0f} s after SIGKILL",
                "They wait for the kernel, usually for a disk. Try again later.",
            )
        # The inits first: each takes its host along, and its parent, unshare, sees it off and ends.
        _kill_round(lab_id, inits, deadline)
        rest = [(pid, host) for pid, host in everyone if (pid, host) not in inits]
        if inits:
            _await_end([pid for pid, _ in rest], time.monotonic() + 1)
        _kill_round(lab_id, rest, deadline)
    return sorted(ended)


def _kill_round(lab_id: str, victims: list[tuple[int, str]], deadline: float) -> None:
    """Send SIGKILL to those that still carry the mark, and wait until they have ended."""
    for pid, host in victims:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # Looked at again with the descriptor in hand: the pid cannot have been given to another process since.
                if _host_of(pid, lab_id) == host:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
    _await_end([pid for pid, _ in victims], deadline)


def _await_end(pids: list[int], deadline: float) -> None:
    """Wait until all have exited, or the deadline passes. An init exits after everything in its namespace has."""
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            finally:
                os.close(descriptor)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # our own child, when the same process brought the lab up
