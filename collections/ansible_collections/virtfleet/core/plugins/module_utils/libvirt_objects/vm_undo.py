# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was made for a machine so far, so that all of it can be taken back when the rest fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

try:
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


class Undo:
    """What was made so far, so that it can be taken back in reverse order."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def add(self, step: Callable[[], Any]) -> None:
        """Note how to take back what is about to be made."""
        self._steps.append(step)

    def drop_last(self) -> None:
        """Take all but the last step back: that one's thing is somebody else's."""
        self._steps.pop()

    def forget(self) -> None:
        """Take nothing back: it is somebody else's."""
        self._steps.clear()

    def run(self) -> bool:
        """Take everything back; False when some of it could not be."""
        cleaned = True
        for step in reversed(self._steps):
            try:
                step()
            except (VirtfleetError, libvirtError):
                cleaned = False
        return cleaned

    def explain(self, error: VirtfleetError) -> None:
        """Take everything back, and say in the error what became of it."""
        made = bool(self._steps)
        error.values["cleaned"] = cleaned = self.run()
        if made:
            gone = "What was made for it has been removed again."
            left = "Some of what was made for it is left: run the same again, or delete the machine."
            error.hint = f"{error.hint} {gone if cleaned else left}".lstrip()
