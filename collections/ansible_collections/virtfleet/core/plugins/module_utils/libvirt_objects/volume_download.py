# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a volume, brought to where the module runs: whole or not at all, and only if it is not there already."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_copy
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_CHUNK_BYTES = 2**20


def download(
    connection: libvirt.virConnect,
    pool: libvirt.virStoragePool,
    name: str,
    dest: str,
    *,
    check: bool,
    deadline: Deadline,
) -> tuple[plan.Plan, dict[str, Any]]:
    """Bring a volume's content into the file `dest`, or in check mode tell whether that would change it.

    Returns the plan and `{path, size_bytes, checksum}`. Holes stay holes; the file is readable to its owner only, as
    what is on a disk is nobody else's. Raises VirtfleetError: `not_found`, `invalid` for a path that cannot be,
    `refused` for a volume that is written to or lies over another one, `timeout`.
    """
    wanted = f"download volume {name} to {dest}"
    path = _checked(Path(dest), wanted)
    volume = volumes.find(pool, name)
    if volume is None:
        raise VirtfleetError(wanted, f"there is no volume {name} in pool {pool.name()}", "Check the name.", "not_found")
    volume_copy.check_at_rest(connection, volume, wanted)
    try:
        pools.refresh(pool, deadline)
        before, size = volume_copy.stamp(volume), volumes.describe(volume)["physical_bytes"] or 0
        # Beside its place, so that it comes there in one step.
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent) if not check else (None, None)
        try:
            with os.fdopen(descriptor, "wb") if descriptor is not None else contextlib.nullcontext() as file:
                checksum = _read_into(file, volume, size, deadline, wanted)
            pools.refresh(pool, deadline)
            if volume_copy.stamp(volume) != before:
                raise VirtfleetError(wanted, "it was written to meanwhile", "Try again when it is at rest.", "refused")
            there = _file(path)
            found = {"path": str(path), "size_bytes": size, "checksum": checksum}
            todo = plan.compare(there, found)
            if part is not None and todo.changed:
                Path(part).replace(path)
                part = None
        finally:
            if part is not None:
                Path(part).unlink()
    except libvirtError as error:
        raise translate(error, wanted) from error
    except OSError as error:
        raise VirtfleetError(wanted, f"{error.strerror or error}", "Choose another path.", "refused") from error
    return todo, found


def _checked(path: Path, wanted: str) -> Path:
    if not path.is_absolute() or path.is_dir() or not path.parent.is_dir():
        text = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        text = text if path.is_absolute() else "the path is not absolute"
        raise VirtfleetError(wanted, text, "Give the path of a file in a folder that is there.", "invalid")
    return path


def _read_into(
    file: BinaryIO | None, volume: libvirt.virStorageVol, size_bytes: int, deadline: Deadline, wanted: str
) -> str:
    """Write a volume's content, if there is a file for it, and return its checksum."""
    whole, zeros = hashlib.sha256(), bytes(_CHUNK_BYTES)
    with contextlib.closing(volume_copy.pieces(volume, size_bytes, deadline, wanted)) as pieces:
        for piece in pieces:
            if isinstance(piece, bytes):
                whole.update(piece)
                if file is not None:
                    file.write(piece)
                continue
            if file is not None:
                file.seek(piece, os.SEEK_CUR)
            for begin in range(0, piece, _CHUNK_BYTES):
                whole.update(zeros[: min(_CHUNK_BYTES, piece - begin)])
    if file is not None:
        file.truncate(size_bytes)
        file.flush()
        os.fsync(file.fileno())
    return f"sha256:{whole.hexdigest()}"


def _file(path: Path) -> dict[str, Any] | None:
    """Return what is at a path."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": str(path), "size_bytes": os.fstat(file.fileno()).st_size, "checksum": f"sha256:{checksum}"}
