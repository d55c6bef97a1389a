"""Watches one host: `python -m virtfleet.observer.child URI TIMEOUT EVERY PARENT`, started by the observer alone.

Prints a line of JSON for each thing it has to tell, and ends when it cannot go on:

- `{"kind": "ready"}`: started, about to connect;
- `{"kind": "reading"}`: about to ask the host, which may now take `TIMEOUT` seconds at most;
- `{"kind": "machines", "at": …, "machines": […]}`: after an event, what became of the machines, each with what
  `MACHINE` names: the rest may be long, and whoever may write into a host's machines may write anything there;
- `{"kind": "report", "at": …, "host": {…}}`: every `EVERY` seconds, all of `host_info`, the load since the last one;
- `{"kind": "failed", "code": …, "text": …}`: the last line, why it ends.

`at` is when the reading began, in seconds since the epoch: what happened later may or may not be in it.
It imports as little as it can, for there is one such process for every host.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, domain_events, open_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import host as hosts
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from libvirt import libvirtError, virConnect

T = TypeVar("T")

# What of the time for one answer goes to the answer itself, and to finding out who is to blame when none comes.
READING_SHARE, BLAMING_SHARE = 0.6, 0.2
GATHER_SECONDS = 0.05
"""Events come in groups (started, resumed, …): so long after the first, all of them are told at once."""
MACHINE = ("uuid", "state", "vcpus", "memory_bytes")
"""What is told of a machine."""
PR_SET_PDEATHSIG = 1


class Watch:
    """The watch over one host from one connection to its loss."""

    def __init__(self, uri: str, timeout: float, every: float) -> None:
        self._uri = uri
        self._timeout = timeout
        self._every = every
        self._times: tuple[float, float] | None = None

    def run(self) -> None:
        """Connect and tell until something goes wrong. Raises VirtfleetError."""
        tell("reading")
        connection = open_host(self._uri, Deadline(self._timeout * READING_SHARE))
        with domain_events(connection) as happened:
            # A connection that is lost is worth a look at once: the look finds out why.
            connection.registerCloseCallback(lambda *_: happened.set(), None)
            while True:
                self._report(connection)
                self._follow(connection, happened, Deadline(self._every))

    def _report(self, connection: virConnect) -> None:
        tell("reading")
        at, reading = time.time(), Deadline(self._timeout * READING_SHARE)

        def describe() -> dict[str, Any]:
            return hosts.describe(
                connection,
                uri=self._uri,
                name=None,
                shared_pools=(),
                refresh=False,
                sample_seconds=0.0,
                deadline=reading,
            )

        host = self._ask(describe, reading, "read what there is on")
        load = host["load"]
        now = (load["cpu_busy_seconds"], load["cpu_total_seconds"])
        load["cpu_percent"] = busy_percent(self._times, now)
        self._times = now
        tell("report", at=at, host={**host, "machines": brief(host["machines"])})

    def _follow(self, connection: virConnect, happened: threading.Event, until: Deadline) -> None:
        """Tell of machines when something happens to one, until it is time for the next whole report."""
        # Where events never pause, the whole report must come in between all the same.
        while not until.passed and happened.wait(until.left()):
            time.sleep(GATHER_SECONDS)
            happened.clear()
            tell("reading")
            at, reading = time.time(), Deadline(self._timeout * READING_SHARE)
            machines = self._ask(lambda: hosts.read_machines(connection), reading, "read the machines of")
            tell("machines", at=at, machines=brief(machines))

    def _ask(self, call: Callable[[], T], reading: Deadline, wanted: str) -> T:
        try:
            return bounded(call, reading, wanted)
        except VirtfleetError as error:
            if error.code == "timeout":
                self._blame()
                error.hint = "Its libvirt answers; look at its storage pools, and at what else libvirt waits for there."
            raise
        except libvirtError as error:
            raise translate(error, f"{wanted} {self._uri}") from error

    def _blame(self) -> None:
        """Raise what a second connection meets, if it meets anything: it tells a dead host from a frozen libvirt."""
        open_host(self._uri, Deadline(self._timeout * BLAMING_SHARE)).close()


def brief(machines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each machine what is told of it."""
    return [{key: machine[key] for key in MACHINE} for machine in machines]


def busy_percent(before: tuple[float, float] | None, after: tuple[float | None, float | None]) -> float | None:
    """Return how busy all CPUs together were between two readings of (busy, total) seconds, 0 to 100; None = unknown.

    A total that did not grow means that the host has started anew meanwhile.
    """
    busy, total = after
    if before is None or None in before or busy is None or total is None or total <= before[1]:
        return None
    return round(min(100.0, max(0.0, 100 * (busy - before[0]) / (total - before[1]))), 1)


def tell(kind: str, **values: Any) -> None:
    """Write one line to the parent. Ends the process when nobody listens any more."""
    line = (json.dumps({"kind": kind, **values}, separators=(",", ":")) + "\n").encode()
    try:
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]
    except BrokenPipeError:
        leave(0)


def leave(status: int) -> None:
    """End at once: threads that hang in libvirt would keep an orderly end waiting for ever."""
    os._exit(status)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that comes about."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be asked for
        leave(0)


def main() -> None:
    """Watch the host that the command line names."""
    uri, timeout, every, parent = sys.argv[1:]
    end_with(int(parent))
    tell("ready")
    try:
        Watch(uri, float(timeout), float(every)).run()
    except (VirtfleetError, libvirtError) as error:
        # The connection may be lost between two questions, too.
        said = error if isinstance(error, VirtfleetError) else translate(error, f"watch {uri}")
        with contextlib.suppress(OSError):
            tell("failed", code=said.code, text=str(said))
        leave(1)


if __name__ == "__main__":
    main()
