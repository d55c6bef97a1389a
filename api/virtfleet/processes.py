"""The processes of one fleet on one machine: started, watched and ended together (docs/decisions/0002-processes.md).

`python -m virtfleet.processes` is the watcher. It ends its children when it is told to end, and they end when it dies.
"""

import ctypes
import fcntl
import http.client
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
FALSE_STARTS = 3
"""A process that ended so often, and never lived for STEADY_SECONDS, will not come: whoever waits is told."""
LARGEST_LOG = 50 * 2**20
"""Bytes; a larger one is put aside when its process starts, in the place of the one before."""
LAST_LINES, MOST_OF_A_LOG = 8, 2**16
"""What of a log is shown when the processes do not get ready: lines, out of so many bytes at its end."""
PR_SET_PDEATHSIG = 1

log = logging.getLogger("virtfleet.processes")


class ProcessError(Exception):
    """The fleet's processes cannot be started or ended; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A watcher that runs: its process id, where the API listens, whether the routes of S1 are on."""

    pid: int
    listen: str
    s1: bool


def running() -> Running | None:
    """Return this home's watcher, if it runs."""
    try:
        kept = json.loads(_pid_file().read_text())
        found, began = Running(int(kept["pid"]), str(kept["listen"]), bool(kept["s1"])), str(kept["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A number alone could by now be somebody else's.
    return found if _began(found.pid) == began else None


def start(listen: str | None = None, environment: Mapping[str, str] | None = None) -> tuple[Running, bool]:
    """Start the processes and return when the fleet is ready; True says that they were started by this call.

    Of several calls at one time the first one starts them, the others wait for it.
    Raises ProcessError when the address is taken, or when they do not get ready in time.
    """
    home = settings.home()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        _logs().mkdir(mode=0o700, exist_ok=True)
        lock = os.open(home / "processes.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"The fleet cannot keep its state in {home}: {error.strerror}."
        raise ProcessError(f"{problem} Choose another folder: VIRTFLEET_HOME.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = None if listen is None else address(listen)
        already = running()
        if already is None:
            return _start(wanted or address(settings.load().listen), environment or {}), True
        if wanted not in (None, already.listen):
            problem = f"The fleet of {home} runs already, on {already.listen}."
            raise ProcessError(f"{problem} End it first: virtfleet down.")
        _wait_ready(already.listen, lambda: running() is not None, {})
        return already, False
    finally:
        os.close(lock)


def _start(listen: str, environment: Mapping[str, str]) -> Running:
    check_free(listen)
    own = {"VIRTFLEET_HOME": str(settings.home()), "VIRTFLEET_LISTEN": listen, **environment}
    before = {name: _size(name) for name in ("processes", *NAMES)}
    with _log("processes").open("ab") as output:
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
        _wait_ready(listen, lambda: watcher.poll() is None, before)
        found = running()
        if found is None:
            raise ProcessError(f"The processes have ended.\n{_end_of_logs(before)}")
        return found
    except BaseException:  # Ctrl-C too: nobody would know of a fleet that was half started
        watcher.terminate()
        watcher.wait()
        raise


def stop() -> bool:
    """End this home's processes; False when none ran. Raises ProcessError when they do not end."""
    found = running()
    if found is None:
        return False
    try:
        # From here on the number cannot become somebody else's without our seeing it.
        process = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return True
    try:
        if running() == found:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], STOP_SECONDS)[0]:
                raise ProcessError(f"The process {found.pid} does not end. Its log: {_log('processes')}.")
    except ProcessLookupError:
        return True
    except PermissionError as error:
        problem = f"The processes of {settings.home()} are another user's"
        raise ProcessError(f"{problem}. End them as that user, or as root.") from error
    finally:
        os.close(process)
    _reap_own(found.pid)
    return True


def _reap_own(pid: int) -> None:
    """A watcher that this very process has started would stay as a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def address(listen: str) -> str:
    """Return HOST:PORT; a port alone means this machine only. Raises ProcessError when it is neither."""
    host, _, port = listen.strip().rpartition(":")
    host = host or ("0.0.0.0" if listen.strip().startswith(":") else "127.0.0.1")  # noqa: S104 - it was asked for
    named = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]", host, re.ASCII)
    if not named or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        hint = "It is HOST:PORT such as 127.0.0.1:8080, or a port; brackets are around an IPv6 address."
        raise ProcessError(f"The API cannot listen on {listen[:100]!r}. {hint}")
    return f"{host}:{int(port)}"


def check_free(listen: str) -> None:
    """Raise ProcessError when nothing can listen there."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        hint = "Choose another with --listen, or end what listens there."
        raise ProcessError(f"The API cannot listen on {listen}: {error.strerror}. {hint}") from error


def _wait_ready(listen: str, alive: Callable[[], bool], before: Mapping[str, int]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    missing: list[str] = list(NAMES)
    while time.monotonic() < deadline:
        if not alive():
            raise ProcessError(f"The processes have ended.\n{_end_of_logs(before)}")
        answer = _ready(listen)
        if answer is not None:
            missing = answer
            if not missing:
                return
        time.sleep(0.1)
    waiting = ", ".join(missing)
    problem = f"The fleet did not get ready in {READY_SECONDS:g} s: {waiting} missing."
    raise ProcessError(f"{problem}\n{_end_of_logs(before)}")


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


def _end_of_logs(before: Mapping[str, int]) -> str:
    """Return the last lines of each log; of those whose size before is given, only what is new."""
    lines = []
    for name in ("processes", *NAMES):
        try:
            with _log(name).open("rb") as file:
                size = _size(name)
                file.seek(max(min(before.get(name, 0), size), size - MOST_OF_A_LOG))
                text = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        lines += [f"{name}: {line}" for line in text[-LAST_LINES:]]
    return "\n".join([*lines, f"All of it is in {_logs()}."])


def _size(name: str) -> int:
    try:
        return _log(name).stat().st_size
    except OSError:
        return 0


def _pid_file() -> Path:
    return settings.home() / "processes.json"


def _logs() -> Path:
    return settings.home() / "logs"


def _log(name: str) -> Path:
    return _logs() / f"{name}.log"


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
    false_starts: int = 0
    steady: bool = False
    due: float = field(default_factory=time.monotonic)


class Watcher:
    """Starts the processes, starts again what ends, and ends all of them."""

    def __init__(self) -> None:
        self._children = [_Child(name) for name in NAMES]

    def step(self) -> None:
        """Look after every process once. Raises ProcessError when one cannot start at all."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.due:
                    self._start(child)
            elif child.process.poll() is not None:
                lived = now - child.started
                steady = lived > STEADY_SECONDS
                child.steady = child.steady or steady
                child.pause = LEAST_PAUSE if steady else min(MOST_PAUSE, child.pause * 2)
                child.due = now + child.pause
                code = child.process.returncode
                log.error(
                    "%s ended with %s after %.0f s; it starts again in %.1f s", child.name, code, lived, child.pause
                )
                child.process = None
                child.false_starts += 1
                if child.false_starts >= FALSE_STARTS and not child.steady:
                    raise ProcessError(f"The process {child.name} does not start: it ended {FALSE_STARTS} times.")

    def _start(self, child: _Child) -> None:
        path = _log(child.name)
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
    if running() is not None:
        raise SystemExit(f"The fleet of {home} runs already.")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _logs().mkdir(mode=0o700, exist_ok=True)
    me = {"pid": os.getpid(), "began": _began(os.getpid()), "listen": listen, "s1": settings.load().s1_enabled}
    draft = _pid_file().with_suffix(".new")
    draft.write_text(json.dumps(me))
    draft.replace(_pid_file())
    (home / "listen").write_text(listen + "\n")
    watcher = Watcher()
    try:
        watcher.step()
        while not select.select([told_to_stop], [], [], 0.25)[0]:
            watcher.step()
    except ProcessError as error:
        raise SystemExit(str(error)) from error
    finally:
        watcher.close()
        _pid_file().unlink(missing_ok=True)


if __name__ == "__main__":
    main()
