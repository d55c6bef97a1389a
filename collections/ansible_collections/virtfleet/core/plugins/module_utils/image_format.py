# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of disk image a file is, read from its first bytes alone. No program looks at it before we trust it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

IMPORTABLE = ("qcow2", "raw")
UNKNOWN = "unknown"

_HEAD_BYTES = 65536
_LARGEST_VIRTUAL_SIZE = 2**50  # 1 PiB: more is a forged header

# What a file begins with, for the kinds that we can name but not take.
_SIGNATURES = (
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"QED\0", "qed"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
)
# What is packed twice, or in a way that we cannot read.
_PACKED = {"gzip": "gunzip", "xz": "unxz", "zstd": "unzstd", "bzip2": "bunzip2", "zip": "unzip"}
# What a raw disk or file system that a machine can use holds: boot sector, ISO 9660, ext2/3/4.
_RAW_SIGNS = ((510, b"\x55\xaa"), (0x8001, b"CD001"), (1080, b"\x53\xef"))

_QCOW2_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2
_CORRUPT = 1 << 1
_EXTENSION_DATA_FILE = 0x44415441


@dataclass(frozen=True)
class ImageFormat:
    """What the first bytes say. `fault` tells why the file must not be used as it is (empty: nothing against it)."""

    format: str
    virtual_size_bytes: int
    fault: str = ""


def inspect(stream: BinaryIO, size_bytes: int) -> ImageFormat:
    """Return the format of a file of `size_bytes` bytes, read from its beginning."""
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    if head.startswith(_QCOW2_MAGIC):
        return _qcow2(head)
    for offset, signature, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return ImageFormat(name, 0)
    if size_bytes % 512 == 0 and any(head[at : at + len(sign)] == sign for at, sign in _RAW_SIGNS):
        return ImageFormat("raw", size_bytes)
    return ImageFormat(UNKNOWN, size_bytes)


def importable(found: ImageFormat, asked: str | None, wanted: str) -> ImageFormat:
    """Return the image as it can be imported, or raise VirtfleetError `invalid` or `refused`.

    `asked` is the format that somebody named. A file without any known sign is taken as raw only if they said so.
    """
    if found.format == UNKNOWN and asked == "raw":
        if found.virtual_size_bytes == 0 or found.virtual_size_bytes % 512:
            text = "it is not a disk: its length is not a multiple of 512 bytes"
            raise VirtfleetError(wanted, text, "Check the file.", "invalid")
        return ImageFormat("raw", found.virtual_size_bytes)
    if found.format == UNKNOWN:
        hint = "Check the file; if it is a raw disk without a partition table, say so with format raw."
        raise VirtfleetError(wanted, "it is no disk image of a kind that is known", hint, "invalid")
    if found.format in _PACKED:
        hint = f"Unpack it first, for example with {_PACKED[found.format]}."
        raise VirtfleetError(wanted, f"it is packed ({found.format})", hint, "invalid")
    if found.format not in IMPORTABLE:
        hint = f"Convert it first: qemu-img convert -f {found.format} -O qcow2 OLD NEW.qcow2"
        raise VirtfleetError(wanted, f"its format is {found.format}", hint, "invalid")
    if asked is not None and asked != found.format:
        text = f"its format is {found.format}, not {asked}"
        raise VirtfleetError(wanted, text, "Leave the option format out, or correct it.", "invalid")
    if found.fault:
        hint = "Make one whole file of it first: qemu-img convert -O qcow2 OLD NEW.qcow2"
        raise VirtfleetError(wanted, found.fault, hint, "refused")
    return found


def _qcow2(head: bytes) -> ImageFormat:
    """Read a qcow2 header (QEMU's docs/interop/qcow2.txt): all numbers are big endian."""
    if len(head) < 72:
        return ImageFormat("qcow2", 0, "its header is cut off")
    version, backing, _backing_size, cluster_bits, size, encryption = struct.unpack_from(">IQIIQI", head, 4)
    if version not in (2, 3):
        return ImageFormat("qcow2", 0, f"its version {version} is not 2 or 3")
    if not 9 <= cluster_bits <= 21 or not 0 < size <= _LARGEST_VIRTUAL_SIZE:
        return ImageFormat("qcow2", 0, "its header is damaged")
    features, header_bytes = 0, 72
    if version == 3:
        if len(head) < 104:
            return ImageFormat("qcow2", 0, "its header is cut off")
        (features,) = struct.unpack_from(">Q", head, 72)
        (header_bytes,) = struct.unpack_from(">I", head, 100)
    fault = ""
    if backing:
        fault = "it is an overlay: it refers to a backing file"
    elif features & _EXTERNAL_DATA_FILE or _EXTENSION_DATA_FILE in _extensions(head, header_bytes):
        fault = "its data lie in another file (external data file)"
    elif encryption:
        fault = "it is encrypted"
    elif features & _CORRUPT:
        fault = "it is marked as corrupt"
    return ImageFormat("qcow2", size, fault)


def _extensions(head: bytes, offset: int) -> set[int]:
    """Return the types of the header extensions that begin at `offset`."""
    kinds: set[int] = set()
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == 0:
            break
        kinds.add(kind)
        offset += 8 + (length + 7) // 8 * 8
    return kinds
