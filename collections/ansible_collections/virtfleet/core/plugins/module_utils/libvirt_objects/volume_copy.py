# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a volume, copied byte by byte: what lies below it stays below the copy, its snapshots are in it too.

libvirt's own copy (`volume.make_copy`) makes one independent volume of the whole chain, without snapshots.
The bytes go through the process that asks, from one of libvirt's streams into the other; holes are told, not sent.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Generator

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_CHUNK_BYTES = 256 * 2**10
_HOLE = -3
"""What libvirt's stream answers where a hole begins."""


def stamp(volume: libvirt.virStorageVol) -> tuple[str | None, str | None]:
    """Return what changes when a volume's file is written to: its length and the moment of the last change."""
    try:
        root = ET.fromstring(volume.XMLDesc(0))
    except libvirtError as error:
        raise translate(error, "describe a volume") from error
    return root.findtext("physical"), root.findtext("target/timestamps/mtime")


def check_at_rest(connection: libvirt.virConnect, volume: libvirt.virStorageVol, wanted: str) -> None:
    """Refuse a volume whose file alone is not all that it holds now. Raises VirtfleetError `refused`."""
    below = volumes.describe(volume)["image"]
    if below is not None:
        text, hint = f"it lies over {below}, which would stay behind", "Make a whole copy of it on its own host first."
        raise VirtfleetError(wanted, text, hint, "refused")
    users = volume_users.machines_using(connection, {volume.path()}, running_only=True)
    if users:
        text = f"it is a disk of {', '.join(users)}, which runs, and a copy of what is written to is broken"
        raise VirtfleetError(wanted, text, "Stop the machine or detach the volume first.", "refused")


def copy_file(
    original: libvirt.virStorageVol, pool: libvirt.virStoragePool, name: str, deadline: Deadline
) -> libvirt.virStorageVol:
    """Make a volume with the very bytes of another one; it is removed again when that fails.

    Raises VirtfleetError: `timeout`, `pool_full`, `already_exists` and libvirt's.
    """
    wanted = f"copy volume {original.name()} to {name}"
    size = volumes.describe(original)["physical_bytes"] or 0
    volumes.make_for_upload(pool, name)
    try:
        made = volumes.find(pool, name)
        pour(original, made, size, deadline, wanted)
        pools.refresh(pool, deadline)  # libvirt reads the format, and what lies below
        copied = volumes.find(pool, name)
        if copied is None:
            raise VirtfleetError(wanted, "the copy has vanished from the pool", "Look who removed it.", "not_found")
        return copied
    except BaseException:
        with contextlib.suppress(VirtfleetError):  # what stopped the copy may stop this too
            volumes.delete(pool, name)
        raise


def pour(
    original: libvirt.virStorageVol, made: libvirt.virStorageVol, size_bytes: int, deadline: Deadline, wanted: str
) -> None:
    """Fill a volume, of this host or another, with the first `size_bytes` bytes of one that nobody writes to.

    Raises VirtfleetError: `timeout`, `pool_full` and libvirt's.
    """
    try:
        with volumes.stream_of(made) as outgoing:
            made.upload(outgoing, 0, size_bytes, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
            with contextlib.closing(pieces(original, size_bytes, deadline, wanted)) as read:
                for piece in read:
                    if isinstance(piece, int):
                        outgoing.sendHole(piece, 0)
                        continue
                    rest = piece
                    while rest:
                        rest = rest[outgoing.send(rest) :]
    except libvirtError as error:
        raise volumes.explained(error, wanted, made) from error


def pieces(
    original: libvirt.virStorageVol, size_bytes: int, deadline: Deadline, wanted: str
) -> Generator[bytes | int, None, None]:
    """Yield what the first `size_bytes` bytes of a volume hold: data, and of each hole between its length.

    Raises VirtfleetError `timeout`, and libvirtError.
    """
    with volumes.stream_of(original) as incoming:
        original.download(incoming, 0, size_bytes, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
        while True:
            if deadline.passed:
                text = f"the copy took longer than {deadline.seconds:g} s"
                raise VirtfleetError(wanted, text, "Allow more time with the option timeout.", "timeout")
            data = incoming.recvFlags(_CHUNK_BYTES, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
            if data == _HOLE:
                yield incoming.recvHole(0)
            elif data:
                yield data
            else:
                return
