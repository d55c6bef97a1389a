"""The parent's side of one host: its child process, its deadline, and its circuit breaker."""

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from virtfleet import clock
from virtfleet.observer.recording import Status
from virtfleet.observer.views import View, view_of

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between the tries to reach a host that is down: doubled each time, up to the longest."""
START_SECONDS = 30.0
"""What a child gets to start at all; on a machine where hundreds start, that takes a while."""
LONGEST_LINE = 64 << 20
"""Bytes; a host with ten thousand machines tells about ten million."""
AT_ONCE = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """Something new is known of a host. `urgent`: the state of the host or of a machine is new, so write it at once."""

    urgent: bool


class HostWatch:
    """Keeps one child process on one host. Times (`now`) are on the monotonic clock."""

    def __init__(self, host_id: str, name: str, uri: str, *, timeout: float, every: float) -> None:
        self.host_id = host_id
        self.name = name
        self.uri = uri
        self.view: View | None = None
        self.status: Status | None = None
        self._timeout = timeout
        self._every = every
        self._phase: Literal["pausing", "starting", "reading", "resting"] = "pausing"
        self._until = 0.0
        self._failures = 0
        self._answered_at: datetime | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._reason: str | None = None

    @property
    def pipe(self) -> int | None:
        """The descriptor on which the child speaks, while there is one."""
        return self._child.stdout.fileno() if self._child and self._child.stdout else None

    @property
    def starting(self) -> bool:
        """Whether the child is still loading its modules, which costs this machine processor time."""
        return self._phase == "starting"

    def is_due(self, now: float) -> bool:
        """Tell whether it is time to start a child."""
        return self._phase == "pausing" and now >= self._until

    def is_overdue(self, now: float) -> bool:
        """Tell whether the child should have said something by now."""
        return self._phase != "pausing" and now >= self._until

    def start(self, now: float) -> None:
        """Start a child. Raises OSError when this machine cannot."""
        arguments = [self.uri, f"{self._timeout}", f"{self._every}", f"{os.getpid()}"]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "virtfleet.observer.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,  # with it ends what libvirt started to reach the host, such as ssh
        )
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._rest = b""
        self._reason = None
        self._phase, self._until = "starting", now + START_SECONDS

    def hear(self, now: float) -> News | None:
        """Read what the child has said; None when nothing is new. When it has ended, the host is down."""
        pipe = self.pipe
        if pipe is None:
            return None
        try:
            heard = os.read(pipe, AT_ONCE)
        except BlockingIOError:
            return None
        if not heard:
            return self._ended(now)
        before, known = self._shown(), self._answered_at
        trouble = self._understand(heard, now)
        if trouble is not None:
            return self.give_up(now, f"Failed to watch {self.name}: {trouble}")
        if self._phase == "reading":
            # Long lines come in pieces: whoever speaks is not frozen.
            self._until = now + self._timeout
        if self._answered_at == known:
            return None
        return News(urgent=self._shown() != before)

    def silence(self, now: float) -> News:
        """End a child that has not said anything in time."""
        if self._phase == "starting":
            reason = (
                f"Failed to watch {self.name}: its watcher did not start within {START_SECONDS:g} s. "
                "This machine is too busy, or short of memory; look at it."
            )
        else:
            reason = (
                f"Failed to hear from {self.name}: no answer within {self._timeout:g} s. "
                "Look at the host, at its libvirt daemon and at the network between; it is tried again meanwhile."
            )
        return self.give_up(now, reason)

    def give_up(self, now: float, reason: str) -> News:
        """Count the host as down, for this reason, and pause before the next try."""
        self.end()
        self._failures += 1
        # A little chance, so that hundreds of hosts behind one dead switch are not tried in step.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10)) * random.uniform(0.75, 1.0)  # noqa: S311
        self._phase, self._until = "pausing", now + pause
        before, self.status = self.status, Status("down", reason, self._answered_at)
        self.view = None
        return News(urgent=before is None or (before.state, before.error) != ("down", reason))

    def end(self) -> None:
        """End the child, if there is one, and wait for it."""
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        if child.stdout is not None:
            child.stdout.close()
        child.wait()

    def _shown(self) -> tuple[str | None, dict[str, str] | None]:
        return self.status.state if self.status else None, self.view.states if self.view else None

    def _understand(self, heard: bytes, now: float) -> str | None:
        """Take the lines that are complete now; say what is wrong with them, for one odd host must not end all."""
        *lines, self._rest = (self._rest + heard).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            return "it tells more than can be read. Look at the host."
        try:
            for line in lines:
                self._take(json.loads(line), now)
        except (ValueError, KeyError) as error:
            log.warning("%s: its watcher said what cannot be understood: %r", self.name, error)
            return "its watcher cannot be understood. The observer's log says more; it is started again."
        return None

    def _take(self, line: dict[str, Any], now: float) -> None:
        kind = line["kind"]
        if kind == "failed":
            self._reason = line["text"]
        elif kind == "report":
            self.view = view_of(line, self.view)
        elif kind == "machines" and self.view is not None:
            self.view = self.view.then(line)
        if kind in ("report", "machines"):
            self._failures = 0
            self._answered_at = clock.now()
            self.status = Status("up", None, self._answered_at)
            self._phase, self._until = "resting", now + self._every + self._timeout
        elif kind in ("ready", "reading"):
            self._phase, self._until = "reading", now + self._timeout

    def _ended(self, now: float) -> News:
        reason = self._reason
        if reason is None:
            reason = (
                f"Failed to watch {self.name}: its watcher ended unexpectedly. "
                "The observer's log says more; it is started again."
            )
        return self.give_up(now, reason)
