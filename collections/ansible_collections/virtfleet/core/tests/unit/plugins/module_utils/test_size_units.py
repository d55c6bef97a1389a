# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.units import (
    about,
    format_size,
    parse_disk_size,
    parse_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("1KiB", 1024),
        ("512MiB", 512 * 1024**2),
        ("10GiB", 10 * GIB),
        ("10 GiB", 10 * GIB),
        ("  10gib ", 10 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("10G", 10 * GIB),
        ("2k", 2048),
        ("10GB", 10**10),
        ("1kB", 1000),
        ("2TiB", 2 * 1024**4),
        ("1PiB", 1024**5),
    ],
)
def test_a_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "10", "GiB", "-1GiB", "+1GiB", "1e3GiB", "10 GiBs", "10 XiB", "0.5B", "1,5GiB", "0x10MiB"),
        "\u0661GiB",  # a digit, but not one of ours
        *(
            "9999999999PiB",
            "9223372036854775808B",
            "1" * 5000 + "B",
            "10GiB\0",
            "10GiB; rm -rf /",
            "{{ 1 }}GiB",
            "😀MiB",
        ),
    ],
)
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        parse_size(text, "the size of a disk")
    assert caught.value.code == "invalid"
    assert caught.value.hint
    assert len(str(caught.value)) < 300


def test_ten_gib_with_a_space_is_not_ten_bytes() -> None:
    assert parse_size("10 GiB") == 10 * GIB


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_what_is_formatted_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1000, "1000B"),
        (1024, "1KiB"),
        (1536 * 1024**2, "1.5GiB"),
        (10 * GIB, "10GiB"),
        (GIB + 1, "1073741825B"),
    ],
)
def test_the_largest_exact_unit_is_used(size: int, text: str) -> None:
    assert format_size(size) == text


def test_about_rounds_for_a_sentence() -> None:
    assert about(25276514304) == "23.5GiB"
    assert about(10 * GIB) == "10GiB"
    assert about(500) == "500B"


@pytest.mark.parametrize(("text", "size"), [("1B", 1024), ("1KiB", 1024), ("1025B", 2048), ("10GiB", 10 * 1024**3)])
def test_the_size_of_a_disk_is_rounded_up_to_what_every_format_can_have(text: str, size: int) -> None:
    assert parse_disk_size(text, "the size of a disk") == size
