"""The processes of one fleet on one machine: started, watched and ended together (docs/decisions/0002-processes.md).

`python -m virtfleet.processes` is the watcher. It ends its children when it is told to end, and they end when it dies.
"""

import ctypes
import http.client
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtfleet import settings

NAMES = ("api", "worker", "observer", "controller")
READY_SECONDS = 90.0
STOP_SECONDS = 30.0
LEAST_PAUSE, MOST_PAUSE = 0.5, 30.0
"""Seconds before a process that ended is started again; doubled each time it ends soon."""
STEADY_SECONDS = 20.0
"""A process that lived so long starts again at the least pause."""
LARGEST_LOG = 50 * 2**20
PR_SET_PDEATHSIG = 1

log = logging.getLogger("virtfleet.processes")


class ProcessError(Exception):
    """The fleet's processes cannot be started or ended; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A watcher that runs."""

    pid: int
    listen: str


def running() -> Running | None:
    """Return this home's watcher, if it runs."""
    try:
        kept = json.loads(_pid_file().read_text())
        pid, began, listen = int(kept["pid"]), str(kept["began"]), str(kept["listen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A number alone could by now be somebody else's.
    return Running(pid, listen) if _began(pid) == began else None


def start(listen: str | None = None, environment: Mapping[str, str] | None = None) -> tuple[Running, bool]:
    """Start the processes and return when the fleet is ready; True says that they were started by this call.

    Raises ProcessError when the address is taken, or when they do not get ready in time.
    """
    already = running()
    if already is not None:
        if listen is not None and listen != already.listen:
            problem = f"The fleet of {settings.home()} runs already, on {already.listen}."
            raise ProcessError(f"{problem} End it first: virtfleet down.")
        _wait_ready(already.listen, lambda: running() is not None)
        return already, False
    address = listen or settings.load().listen
    check_free(address)
    logs = _logs()
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.home().chmod(0o700)
    own = {"VIRTFLEET_HOME": str(settings.home()), "VIRTFLEET_LISTEN": address, **(environment or {})}
    with (logs / "processes.log").open("ab") as output:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "virtfleet.processes"],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    try:
        _wait_ready(address, lambda: watcher.poll() is None)
    except ProcessError:
        watcher.terminate()
        watcher.wait(STOP_SECONDS)
        raise
    return Running(watcher.pid, address), True


def stop() -> bool:
    """End this home's processes; False when none ran. Raises ProcessError when they do not end."""
    found = running()
    if found is None:
        return False
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while running() is not None:
        if time.monotonic() > deadline:
            raise ProcessError(f"The process {found.pid} does not end. Its log: {_logs() / 'processes.log'}.")
        _reap_own(found.pid)
        time.sleep(0.05)
    return True


def _reap_own(pid: int) -> None:
    """A watcher that this very process has started would stay as a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def check_free(listen: str) -> None:
    """Raise ProcessError when nothing can listen there."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not HOST:PORT"
        hint = "Choose another with --listen, or end what listens there."
        raise ProcessError(f"The API cannot listen on {listen}: {reason}. {hint}") from error


def _wait_ready(listen: str, alive: Any) -> None:
    deadline = time.monotonic() + READY_SECONDS
    missing: list[str] = list(NAMES)
    while time.monotonic() < deadline:
        if not alive():
            raise ProcessError(f"The processes ended at once.\n{_end_of_logs()}")
        answer = _ready(listen)
        if answer is not None:
            missing = answer
            if not missing:
                return
        time.sleep(0.1)
    waiting = ", ".join(missing)
    raise ProcessError(f"The fleet did not get ready in {READY_SECONDS:g} s: {waiting} missing.\n{_end_of_logs()}")


def _ready(listen: str) -> list[str] | None:
    """Return the processes that are missing; None while the API does not answer."""
    host, _, port = listen.rpartition(":")
    reachable = "127.0.0.1" if host in ("", "0.0.0.0", "[::]") else host.strip("[]")  # noqa: S104 - where it listens
    connection = http.client.HTTPConnection(reachable, int(port), timeout=2)
    try:
        connection.request("GET", "/api/v1/readyz")
        missing = json.loads(connection.getresponse().read())["missing"]
        return [str(each) for each in missing]
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _end_of_logs() -> str:
    lines = []
    for name in ("processes", *NAMES):
        try:
            text = (_logs() / f"{name}.log").read_text(errors="replace").splitlines()[-5:]
        except OSError:
            continue
        lines += [f"{name}: {line}" for line in text]
    return "\n".join(lines)


def _pid_file() -> Path:
    return settings.home() / "processes.json"


def _logs() -> Path:
    return settings.home() / "logs"


def _began(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks, or None when there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass
class _Child:
    """One process of the fleet."""

    name: str
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    pause: float = LEAST_PAUSE
    due: float = field(default_factory=time.monotonic)


class Watcher:
    """Starts the processes, starts again what ends, and ends all of them."""

    def __init__(self) -> None:
        self._children = [_Child(name) for name in NAMES]

    def step(self) -> None:
        """Look after every process once."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.due:
                    self._start(child)
            elif child.process.poll() is not None:
                lived = now - child.started
                child.pause = LEAST_PAUSE if lived > STEADY_SECONDS else min(MOST_PAUSE, child.pause * 2)
                child.due = now + child.pause
                code = child.process.returncode
                log.error(
                    "%s ended with %s after %.0f s; it starts again in %.1f s", child.name, code, lived, child.pause
                )
                child.process = None

    def _start(self, child: _Child) -> None:
        path = _logs() / f"{child.name}.log"
        if path.exists() and path.stat().st_size > LARGEST_LOG:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as output:
            child.process = subprocess.Popen(
                [sys.executable, "-m", f"virtfleet.{child.name}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # what ends one process with all it started must not reach the others
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        child.started = time.monotonic()
        log.info("%s started as process %d", child.name, child.process.pid)

    def close(self) -> None:
        """End all processes, with patience first."""
        alive = [child.process for child in self._children if child.process is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS - 5
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Watch in the foreground until SIGTERM or SIGINT comes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    told_to_stop = os.eventfd(0, os.EFD_CLOEXEC)

    def on_signal(_number: int, _frame: Any) -> None:
        os.eventfd_write(told_to_stop, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    home, listen = settings.home(), settings.load().listen
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _logs().mkdir(mode=0o700, exist_ok=True)
    me = {"pid": os.getpid(), "began": _began(os.getpid()), "listen": listen}
    draft = _pid_file().with_suffix(".new")
    draft.write_text(json.dumps(me))
    draft.replace(_pid_file())
    (home / "listen").write_text(listen + "\n")
    watcher = Watcher()
    try:
        watcher.step()
        while not select.select([told_to_stop], [], [], 0.25)[0]:
            watcher.step()
    finally:
        watcher.close()
        _pid_file().unlink(missing_ok=True)


if __name__ == "__main__":
    main()
