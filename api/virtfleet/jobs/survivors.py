"""Finding and ending what an attempt left behind on this machine.

Every process of an attempt has `VIRTFLEET_ATTEMPT=<attempt id>` in its environment from its start, whatever session or
process group it moved to. A process is held by a pidfd and looked at again before it is signalled, so that a process
number that was given to another program meanwhile is never hit.
"""

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "VIRTFLEET_ATTEMPT"

log = logging.getLogger(__name__)


def find(attempt_id: str) -> list[int]:
    """Return the living processes of an attempt that belong to this user."""
    return [pid for pid in _processes() if _belongs(pid, attempt_id)]


def end(attempt_id: str, seconds: float = 10.0) -> int:
    """Kill every process of an attempt and wait until they are gone; return how many there were.

    Raises TimeoutError when some are still there after `seconds` (a process that the kernel cannot interrupt).
    """
    deadline = time.monotonic() + seconds
    ended: set[int] = set()
    while found := find(attempt_id):
        for pid in found:
            if _kill(pid, attempt_id, deadline):
                ended.add(pid)
        if time.monotonic() > deadline:
            left = ", ".join(map(str, found))
            raise TimeoutError(f"Processes {left} of {attempt_id} do not end: the kernel holds them. Look at them.")
    return len(ended)


def _processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield int(entry.name)


def _belongs(pid: int, attempt_id: str) -> bool:
    try:
        folder = Path(f"/proc/{pid}")
        if folder.stat().st_uid != os.geteuid():
            return False
        # A zombie has no environment any more; it is not alive, and its parent reaps it.
        return f"{VARIABLE}={attempt_id}".encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, attempt_id: str, deadline: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _belongs(pid, attempt_id):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        log.warning("%s: ended the straggler %d", attempt_id, pid)
        return True
    finally:
        os.close(handle)
