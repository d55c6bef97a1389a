# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a secret of libvirt's can be for. Pure."""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_path, shown

LONGEST_TEXT = 1024


def check_text(text: str, what: str) -> str:
    """Return a usage or a description that is one line of text. Raises VirtfleetError `invalid`."""
    if not text or len(text) > LONGEST_TEXT or not text.isprintable():
        hint = f"Use one line of at most {LONGEST_TEXT} characters."
        raise VirtfleetError(f"use {shown(text)} as {what} of a secret", "it is not one line of text", hint, "invalid")
    return text


def check_usage(usage: str, usage_id: str) -> str:
    """Return what a secret is for, if libvirt's schema lets it be. Raises VirtfleetError `invalid`."""
    check_text(usage_id, "usage_id")
    if usage == "volume":
        return check_path(usage_id, "the volume that a secret is for")
    if "/" in usage_id:
        wanted = f"use {shown(usage_id)} as usage_id of a secret for {usage}"
        raise VirtfleetError(wanted, "only that of a volume is a path", "Leave out the slashes.", "invalid")
    return usage_id
