"""Runs one program so that nothing of it survives: not its end, not ours, not that of the worker which started us.

    python -I -S supervisor.py PARENT_PID GRACE_SECONDS PROGRAM [ARGUMENT…]

Ansible's workers call setsid and outlive a killed process group, so groups are not enough. This process is a child
subreaper: every orphan below it becomes its child, so that all descendants can be found and none can slip away. It
ends them when the program has ended, when it gets SIGTERM, and when its parent dies. Standard library only: it is
started for every attempt, without site-packages, and must be up in milliseconds.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CAUGHT = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"prctl({option})")


def parents() -> dict[int, int]:
    """Return the parent of every process that is alive (zombies are left out)."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib would cost a third of our start
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                # The name in parentheses may hold anything; what follows the last one is numbers.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    found[int(entry)] = int(parent)
    return found


def descendants(of: int) -> list[int]:
    """Return all living processes below one."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    waiting = [of]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Supervisor:
    """One program and all that it starts."""

    def __init__(self, parent: int, grace: float, command: list[str]) -> None:
        self.parent = parent
        self.grace = grace
        self.command = command
        self.status: int | None = None
        """Exit status of the program, once it has ended."""
        self.child = 0

    def run(self) -> int:
        """Run the program to its end, or to ours; return its exit status (128 + signal, if one ended it)."""
        signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.parent:
            # The parent died before it could be tied to us.
            return 128 + signal.SIGTERM
        self.child = os.fork()
        if self.child == 0:
            self._become_the_program()
        asked_to_end = False
        while self.status is None and not asked_to_end:
            got = signal.sigwaitinfo(CAUGHT)
            asked_to_end = got.si_signo != signal.SIGCHLD
            self._reap()
        self._end_all(gently=asked_to_end)
        return self.status if self.status is not None else 128 + signal.SIGTERM

    def _become_the_program(self) -> NoReturn:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
            os.execvp(self.command[0], self.command)  # noqa: S606 - no shell on purpose
        except OSError as error:
            os.write(2, f"ERROR! {self.command[0]} cannot be started: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def _reap(self) -> bool:
        """Collect what has ended; tell whether anything is left below us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code

    def _end_all(self, gently: bool) -> None:
        """End every descendant: by SIGTERM first if `gently`, by SIGKILL when the grace is over."""
        if not self._reap():
            return
        kill_at = time.monotonic() + (self.grace if gently else 0.0)
        if gently:
            _signal_all(signal.SIGTERM)
        while self._reap():
            left = kill_at - time.monotonic()
            if left <= 0:
                _signal_all(signal.SIGKILL)
            # Woken by each child that ends; the timeout is for what appeared between two looks.
            signal.sigtimedwait({signal.SIGCHLD}, max(0.02, min(left, 0.2)))


if __name__ == "__main__":
    sys.exit(Supervisor(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).run())
