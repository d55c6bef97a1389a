"""The lab's processes, found in /proc by the mark in their environment. Never by a remembered pid alone.

A host is a PID namespace. Its init (tini) is the *holder*: when it ends, the kernel ends everything in the host.
"""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtfleet.lab.errors import LabError
from virtfleet.lab.programs import MARK

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
    descriptors: dict[int, int] = {}
    ended = []
    try:
        for host, pids in marked(lab_id).items():
            if hosts is not None and host not in hosts:
                continue
            ended.append(host)
            for pid in pids:
                with suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    if _host_of(pid, lab_id) == host:
                        descriptors[descriptor] = pid
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    else:
                        os.close(descriptor)
        _wait_for_end(descriptors, deadline_seconds)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    for pid in descriptors.values():
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # our own child, when the same process brought the lab up
    return sorted(ended)


def _wait_for_end(descriptors: dict[int, int], seconds: float) -> None:
    """Wait until all have exited. An init exits after everything in its namespace has."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    waiting = dict(descriptors)
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LabError(
                "end the lab's processes",
                f"{sorted(waiting.values())} still ran {seconds:.0f} s after SIGKILL",
                "They wait for the kernel, usually for a disk. Try again later.",
            )
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.pop(descriptor, None)
