# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: one deadline for all that a task does, and one way to wait for a condition."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

T = TypeVar("T")


class Deadline:
    """A moment on the monotonic clock, `seconds` from now. Pass it down; never start a second one for the same task."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left() == 0.0

    def at_most(self, seconds: float) -> Deadline:
        """Return a deadline `seconds` from now, but not after this one."""
        return Deadline(min(seconds, self.left()))


def wait_for(
    predicate: Callable[[], T],
    deadline: Deadline,
    what: str,
    *,
    event: threading.Event | None = None,
    poll: float = 0.25,
) -> T:
    """Call `predicate` until it returns something true, and return that.

    It is asked at once, then each time `event` is set (by a libvirt event, see `connection.domain_events`), and every
    `poll` seconds besides, for events may be lost. `what` completes "Failed to wait for …".
    Raises VirtfleetError `timeout` when the deadline passes first; the predicate's own errors go through.
    """
    waker = event or threading.Event()
    while True:
        # Cleared before asking: what happens while the predicate looks wakes the next round.
        waker.clear()
        if value := predicate():
            return value
        if deadline.passed:
            hint = "Allow more time with the option timeout, or look at what holds it up on the host."
            raise VirtfleetError(f"wait for {what}", f"it took longer than {deadline.seconds:g} s", hint, "timeout")
        waker.wait(min(poll, deadline.left()))
