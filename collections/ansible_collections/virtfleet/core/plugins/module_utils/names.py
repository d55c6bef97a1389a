# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the name of a vm, volume, pool, network or image may look like: nothing that could be a path or markup.

And how the names of a machine's own volumes begin.
"""

from __future__ import annotations

import re

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

MAX_LENGTH = 128  # a file name may have 255 bytes; suffixes such as `.ok` and a snapshot's name come on top
LONGEST_DESCRIPTION = 1000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", re.ASCII)


def shown(text: str) -> str:
    """Return `text` quoted for a message: short, on one line, without control characters."""
    return repr(text) if len(text) <= 60 else f"{text[:20]!r}… ({len(text)} characters)"


def check_name(name: str, what: str) -> str:
    """Return `name` if a `what` that we make can have it. Raises VirtfleetError `invalid`."""
    if len(name) > MAX_LENGTH or not _NAME.fullmatch(name) or ".." in name:
        raise VirtfleetError(
            f"use {shown(name)} as {what} name",
            "it has characters or a length that a name cannot have",
            f"Use 1 to {MAX_LENGTH} letters, digits, '.', '_', '+' and '-', the first one a letter, a digit or '_'.",
            "invalid",
        )
    return name


def check_description(text: str, wanted: str) -> str:
    """Return `text` if it can describe a thing of libvirt's. Raises VirtfleetError `invalid`."""
    if len(text) > LONGEST_DESCRIPTION or not all(c.isprintable() or c in "\n\t" for c in text):
        hint = f"Use at most {LONGEST_DESCRIPTION} characters."
        raise VirtfleetError(wanted, "its description is too long, or has control characters", hint, "invalid")
    return text


def volume_prefix(vm: str, uuid: str) -> str:
    """Return how the names of the volumes begin that are made for a machine, so that none can be another machine's."""
    return f"{vm}-{uuid[:8]}-"


def check_path(path: str, what: str) -> str:
    """Return `path` if it is an absolute path in its plainest form. Raises VirtfleetError `invalid`."""
    parts = path.split("/")
    plain = path.startswith("/") and path.isprintable() and not {"", ".", ".."} & set(parts[1:])
    if not plain or len(path) > 1024:
        raise VirtfleetError(
            f"use {shown(path)} as {what}",
            "it is not a plain absolute path",
            "Write it from / on, without '..', doubled or final slashes and control characters.",
            "invalid",
        )
    return path
