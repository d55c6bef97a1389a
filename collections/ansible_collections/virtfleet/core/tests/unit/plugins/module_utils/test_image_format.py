# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import struct

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.image_format import ImageFormat, importable, inspect
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1024**3


def qcow2(
    *,
    version: int = 3,
    backing: int = 0,
    cluster_bits: int = 16,
    size: int = 10 * GIB,
    encryption: int = 0,
    features: int = 0,
    extensions: bytes = b"",
) -> bytes:
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, cluster_bits, size, encryption).ljust(72, b"\0")
    if version >= 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, 104)
    return (head + extensions).ljust(65536, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust((len(data) + 7) // 8 * 8, b"\0")


def at(offset: int, sign: bytes, size: int = 1024 * 1024) -> bytes:
    return (b"\0" * offset + sign).ljust(size, b"\0")


def look(data: bytes) -> ImageFormat:
    return inspect(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    ("data", "kind", "virtual_size", "fault"),
    [
        (qcow2(), "qcow2", 10 * GIB, ""),
        (qcow2(version=2), "qcow2", 10 * GIB, ""),
        (qcow2(features=1), "qcow2", 10 * GIB, ""),  # dirty: qemu repairs it
        (qcow2(extensions=extension(0x6803F857, b"x" * 48)), "qcow2", 10 * GIB, ""),  # feature names
        (qcow2(backing=512), "qcow2", 10 * GIB, "backing file"),
        (qcow2(version=2, backing=512), "qcow2", 10 * GIB, "backing file"),
        (qcow2(features=4), "qcow2", 10 * GIB, "external data file"),
        (qcow2(extensions=extension(0x44415441, b"/etc/shadow")), "qcow2", 10 * GIB, "external data file"),
        (
            qcow2(extensions=extension(0x6803F857, b"x" * 3) + extension(0x44415441, b"/etc/shadow")),
            "qcow2",
            10 * GIB,
            "external data file",
        ),
        (qcow2(encryption=2), "qcow2", 10 * GIB, "encrypted"),
        (qcow2(features=2), "qcow2", 10 * GIB, "corrupt"),
        (qcow2(version=1), "qcow2", 0, "version 1"),
        (qcow2(cluster_bits=40), "qcow2", 0, "damaged"),
        (qcow2(size=0), "qcow2", 0, "damaged"),
        (qcow2(size=2**63), "qcow2", 0, "damaged"),
        (qcow2()[:50], "qcow2", 0, "cut off"),
        (qcow2()[:80], "qcow2", 0, "cut off"),
        (at(510, b"\x55\xaa"), "raw", 1024 * 1024, ""),
        (at(0x8001, b"CD001"), "raw", 1024 * 1024, ""),
        (at(1080, b"\x53\xef"), "raw", 1024 * 1024, ""),
        (at(510, b"\x55\xaa", 1024 * 1024 + 7), "unknown", 1024 * 1024 + 7, ""),
        (at(0, b"KDMV"), "vmdk", 0, ""),
        (b"# Disk DescriptorFile\n", "vmdk", 0, ""),
        (at(0x40, b"\x7f\x10\xda\xbe"), "vdi", 0, ""),
        (at(0, b"vhdxfile"), "vhdx", 0, ""),
        (at(0, b"conectix"), "vhd", 0, ""),
        (at(0, b"QED\0"), "qed", 0, ""),
        (at(0, b"\x1f\x8b"), "gzip", 0, ""),
        (at(0, b"\xfd7zXZ\0"), "xz", 0, ""),
        (b"<!DOCTYPE html><title>404</title>", "unknown", 33, ""),
        (b"", "unknown", 0, ""),
    ],
)
def test_the_first_bytes_tell(data: bytes, kind: str, virtual_size: int, fault: str) -> None:
    found = look(data)
    assert (found.format, found.virtual_size_bytes) == (kind, virtual_size)
    assert fault in found.fault
    assert bool(fault) == bool(found.fault)


@pytest.mark.parametrize(
    ("data", "asked", "code", "words"),
    [
        (qcow2(), None, None, ""),
        (qcow2(), "qcow2", None, ""),
        (at(510, b"\x55\xaa"), None, None, ""),
        (b"\0" * 1024, "raw", None, ""),
        (b"\0" * 1024, None, "invalid", "format raw"),
        (b"\0" * 1000, "raw", "invalid", "multiple of 512"),
        (b"", "raw", "invalid", "not a disk"),
        # A guest may write a qcow2 header into its raw disk: that must not make it a qcow2 image.
        (qcow2(), "raw", "invalid", "qcow2, not raw"),
        (at(510, b"\x55\xaa"), "qcow2", "invalid", "raw, not qcow2"),
        (qcow2(backing=512), None, "refused", "qemu-img convert"),
        (at(0, b"KDMV"), None, "invalid", "qemu-img convert -f vmdk"),
        (at(0, b"\xfd7zXZ\0"), None, "invalid", "unxz"),
    ],
)
def test_only_whole_qcow2_and_raw_can_be_imported(data: bytes, asked: str | None, code: str | None, words: str) -> None:
    if code is None:
        assert importable(look(data), asked, "import image x").format in ("qcow2", "raw")
        return
    with pytest.raises(VirtfleetError) as caught:
        importable(look(data), asked, "import image x")
    assert caught.value.code == code
    assert words in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_whatever_break_the_reader(noise: bytes, as_qcow2: bool) -> None:
    found = look(b"QFI\xfb" + noise if as_qcow2 else noise)
    assert isinstance(found, ImageFormat)
