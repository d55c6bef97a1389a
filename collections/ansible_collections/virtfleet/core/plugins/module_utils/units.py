# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes: text with a unit outside, bytes inside."""

from __future__ import annotations

import re
from fractions import Fraction

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

# As libvirt reads them (virScaleInteger): a bare letter is binary, kB and its kin are decimal.
_FACTORS = {
    "b": 1,
    **{letter: 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
}
_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,3})\s*", re.ASCII)
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LARGEST = 2**63 - 1  # libvirt and file systems count in signed 64 bits


def parse_size(text: str, what: str = "a size") -> int:
    """Return the bytes that `text` means, such as `10GiB`, `1.5 GiB`, `512M` or `20GB` (decimal).

    A unit is required; the number of bytes must be whole and below 2^63. `what` names the value in the error.
    Raises VirtfleetError `invalid`.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    shown = repr(text) if len(repr(text)) <= 40 else f"a text of {len(str(text))} characters"
    wanted = f"read {shown} as {what}"
    if match is None:
        raise VirtfleetError(wanted, "it is not a number with a unit", "Write it like 512MiB or 10GiB.", "invalid")
    factor = _FACTORS.get(match[2].lower())
    if factor is None:
        hint = "Use B, KiB, MiB, GiB, TiB or PiB (or kB, MB, GB, TB, PB for powers of 1000)."
        raise VirtfleetError(wanted, f"{match[2]!r} is not a unit", hint, "invalid")
    size = Fraction(match[1]) * factor
    if size.denominator != 1:
        raise VirtfleetError(wanted, "it is not a whole number of bytes", "Use a smaller unit.", "invalid")
    if size > _LARGEST:
        raise VirtfleetError(wanted, "it is larger than any disk or memory can be", "Use a smaller size.", "invalid")
    return int(size)


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` (>= 0) in the largest binary unit that says it exactly; `parse_size` reads it back.

    At most three decimals are used: 1610612736 is `1.5GiB`, 1000 is `1000B`.
    """
    for power in range(len(_BINARY) - 1, 0, -1):
        value = Fraction(size_bytes, 1024**power)
        if value >= 1 and (value * 1000).denominator == 1:
            return f"{float(value):.3f}".rstrip("0").rstrip(".") + _BINARY[power]
    return f"{size_bytes}B"


def about(size_bytes: int) -> str:
    """Return `size_bytes` rounded to one decimal, for a sentence: `23.5GiB`."""
    for power in range(len(_BINARY) - 1, 0, -1):
        if abs(size_bytes) >= 1024**power:
            return f"{size_bytes / 1024**power:.1f}".removesuffix(".0") + _BINARY[power]
    return f"{size_bytes}B"


def parse_disk_size(text: str, what: str) -> int:
    """Return the size of a disk in bytes, rounded up to a whole KiB: there is no smaller part of a qcow2 disk."""
    return -(-parse_size(text, what) // 1024) * 1024
