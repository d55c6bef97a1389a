# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images: base volumes that machines' disks lie over, imported once into a pool and then never changed.

An import is told complete from broken by two small volumes beside the image: `<name>.part` is made (exclusively, also
between hosts that share the pool's directory) before the first byte, `<name>.ok` after the last one. A run that finds
`.part` waits while the image grows and takes over once it has stood still. `.ok` holds what the image was made from.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.image_source import Source
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import about
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

if TYPE_CHECKING:
    import libvirt

T = TypeVar("T")
MARKER = ".ok"
BEGUN = ".part"
MARKER_BYTES = 65536
STALLED_SECONDS = 10.0  # an upload by another run that has not grown for so long is taken for dead
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Found:
    """What a pool holds under an image's name: `state` is absent, complete, partial or foreign (not made by import)."""

    name: str
    pool: str
    state: str
    volume: libvirt.virStorageVol | None = None
    marker: dict[str, Any] | None = None


def check_image_name(name: str) -> str:
    """Return `name` if an image that is imported can have it. Raises VirtfleetError `invalid`."""
    check_name(_check_base_name(name) + BEGUN, "image")
    return name


def _check_base_name(name: str) -> str:
    """Return `name` if it can be that of a base volume, whoever made that. Raises VirtfleetError `invalid`."""
    check_name(name, "image")
    if name.endswith((MARKER, BEGUN)):
        text = f"names that end in {MARKER} or {BEGUN} belong to imports"
        raise VirtfleetError(f"use {name} as the name of an image", text, "Choose another name.", "invalid")
    return name


def check_pool(pool: libvirt.virStoragePool, wanted: str) -> None:
    """Refuse a pool whose volumes are not files: an image and its overlays are files."""
    kind = pools.type_of(pool)
    if kind not in pools.FILE_TYPES:
        text = f"the pool {pool.name()} is of type {kind}, and images are files"
        raise VirtfleetError(wanted, text, f"Use a pool of type {', '.join(pools.FILE_TYPES)}.", "refused")


def look(pool: libvirt.virStoragePool, name: str) -> Found:
    """Return what the pool holds under the name of an image."""
    volume = volumes.find(pool, name)
    marker_volume = volumes.find(pool, name + MARKER)
    if volume is not None and marker_volume is not None:
        marker = _read_marker(marker_volume)
        # A damaged marker proves nothing; a begun import that got as far as its marker is complete.
        if marker is not None:
            return Found(name, pool.name(), "complete", volume, marker)
    if volumes.find(pool, name + BEGUN) is not None or (volume is None and marker_volume is not None):
        return Found(name, pool.name(), "partial", volume)
    return Found(name, pool.name(), "absent" if volume is None else "foreign", volume)


def look_again(pool: libvirt.virStoragePool, name: str, deadline: Deadline) -> Found:
    """Like `look`, but where it finds nothing or only a part, libvirt reads the directory anew first.

    Another host may have written into a directory that both share.
    """
    try:
        found = look(pool, name)
    except VirtfleetError:
        # Listed, but not readable: another host has removed it.
        return look_afresh(pool, name, deadline)
    return look_afresh(pool, name, deadline) if found.state in ("absent", "partial") else found


def look_afresh(pool: libvirt.virStoragePool, name: str, deadline: Deadline) -> Found:
    """Have libvirt read the pool's directory anew, then return what it holds under the name of an image."""
    return _afresh(pool, deadline, lambda: look(pool, name))


def take_away(
    connection: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, deadline: Deadline, *, check: bool
) -> dict[str, Any] | None:
    """Delete an image unless it is used, and return what was there; with `check` only look.

    Another host may have laid overlays over it, or delete it at the same time, in a directory that both share.
    """

    def unused() -> dict[str, Any] | None:
        found = look(pool, name)
        before = describe(found)
        _check_unused(connection, pool, found)
        return before

    before = _afresh(pool, deadline, unused)
    if before is not None and not check:
        _remove(pool, name)
    return before


def _afresh(pool: libvirt.virStoragePool, deadline: Deadline, look_at: Callable[[], T]) -> T:
    """Return what is seen once libvirt has read the pool's directory anew.

    Again when a file that libvirt lists is not there: another host that shares the directory has just removed it.
    """
    while True:
        pools.refresh(pool, deadline)
        try:
            return look_at()
        except VirtfleetError as error:
            if error.code != "not_found" or deadline.passed:
                raise
        time.sleep(min(_LOOK_SECONDS, deadline.left()))


def require(pool: libvirt.virStoragePool, name: str, wanted: str) -> libvirt.virStorageVol:
    """Return the base volume of an image that is wholly there. Raises VirtfleetError `image_missing`.

    A volume that somebody put there without module image is taken too; only a begun import is not.
    """
    found = look(pool, _check_base_name(name))
    if found.volume is None or found.state == "partial":
        text = "was not wholly imported" if found.state == "partial" else "is not there"
        hint = "Import it with playbooks/image/import.yml or module image."
        raise VirtfleetError(wanted, f"the image {name} {text} in pool {pool.name()}", hint, "image_missing")
    return found.volume


def describe(found: Found) -> dict[str, Any] | None:
    """Return `{name, pool, path, format, virtual_size_bytes, size_bytes, checksum, complete}`, None if it is absent.

    Of an image that is only partly there no more is known than its name, pool and that it is not complete.
    """
    if found.state == "absent" or (found.volume is None and found.state != "partial"):
        return None
    if found.volume is None or found.marker is None:
        return {"name": found.name, "pool": found.pool, "complete": False}
    volume = volumes.describe(found.volume)
    return {
        "name": found.name,
        "pool": found.pool,
        "path": volume["path"],
        "format": found.marker["format"],
        "virtual_size_bytes": found.marker["virtual_size"],
        "size_bytes": found.marker["size"],
        "checksum": found.marker["checksum"],
        "complete": True,
    }


def predict(pool: libvirt.virStoragePool, name: str, source: Source) -> dict[str, Any]:
    """Return what `describe` will tell once a source is imported."""
    return {
        "name": name,
        "pool": pool.name(),
        "path": f"{pools.settings(pool)['path']}/{name}",  # a pool of files names them so
        "format": source.image.format,
        "virtual_size_bytes": source.image.virtual_size_bytes,
        "size_bytes": source.size_bytes,
        "checksum": source.checksum,
        "complete": True,
    }


def check_same(found: Found, name: str, pool_name: str, checksum: str | None) -> None:
    """Refuse to put an image in the place of another one, or of a volume that no import made."""
    wanted = f"import image {name} into pool {pool_name}"
    if found.state == "foreign":
        text = "a volume of that name is there which no import has made"
        raise VirtfleetError(wanted, text, "Choose another name, or delete that volume.", "already_exists")
    if found.marker is not None and checksum is not None and found.marker["checksum"] != checksum:
        text = f"an image of that name is there with another content ({found.marker['checksum']})"
        hint = "An image never changes under its overlays: choose another name, or delete the old image first."
        raise VirtfleetError(wanted, text, hint, "already_exists")


def import_file(
    connection: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, source: Source, deadline: Deadline
) -> Found:
    """Upload an image, or wait for another run that does so already. Returns the complete image.

    Whatever fails, a part that this run has made is removed again.
    """
    wanted = f"import image {name} into pool {pool.name()}"
    while not _begin(connection, pool, name, deadline):
        found = _wait_for_other(connection, pool, name, deadline, wanted)
        if found.state == "complete":
            check_same(found, name, pool.name(), source.checksum)
            return found
    try:
        check_room(pool, source.data_bytes, wanted)
        # With no size a raw file grows as it is filled; the format is found by libvirt afterwards.
        volume = volumes.make_for_upload(pool, name)
        volumes.upload(volume, source.file, source.size_bytes, deadline, wanted)
        marker = {
            "checksum": source.checksum,
            "size": source.size_bytes,
            "virtual_size": source.image.virtual_size_bytes,
            "format": source.image.format,
            "source": source.origin,
        }
        volumes.write_text(pool, name + MARKER, json.dumps(marker, sort_keys=True))
    except BaseException:
        with contextlib.suppress(VirtfleetError):  # what stopped the upload may stop this too; the claim then stays
            _remove(pool, name)
        raise
    volumes.delete(pool, name + BEGUN)
    pools.refresh(pool, deadline)  # libvirt reads the format of what was uploaded
    made = look(pool, name)
    if made.state != "complete":
        raise VirtfleetError(wanted, "somebody removed it as soon as it was there", "Try again.", "internal")
    return made


def _check_unused(connection: libvirt.virConnect, pool: libvirt.virStoragePool, found: Found) -> None:
    """Refuse to remove an image that overlays or machines use, or a volume that no import has made."""
    if found.state == "foreign":
        text, hint = "no import has made that volume", "Delete it with module volume, if that is what is meant."
        raise VirtfleetError(f"remove image {found.name}", text, hint, "refused")
    if found.volume is not None:
        volume_users.check_removal(connection, pool, found.volume)


def _begin(connection: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, deadline: Deadline) -> bool:
    """Claim the import by making `<name>.part`; False when another run holds the claim or has finished."""
    found = look_again(pool, name, deadline)
    if found.state in ("complete", "partial"):
        return False
    check_same(found, name, pool.name(), None)
    claim = json.dumps({"host": connection.getHostname(), "run": str(uuid.uuid4())})
    try:
        volumes.write_text(pool, name + BEGUN, claim)
    except VirtfleetError:
        # Libvirt has several codes for a file that another host has just put there.
        pools.refresh(pool, deadline)
        if volumes.find(pool, name + BEGUN) is None:
            raise
        return False
    return True


def _wait_for_other(
    connection: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, deadline: Deadline, wanted: str
) -> Found:
    """Wait until the other run has finished (complete) or has stood still and was cleared away (absent)."""
    last_growth = time.monotonic()
    last_seen: tuple[Any, ...] | None = None
    while True:
        pools.refresh(pool, deadline)
        found = look(pool, name)
        if found.state != "partial":
            return found
        seen = _progress(pool, found)
        if seen != last_seen:
            last_growth, last_seen = time.monotonic(), seen
        elif time.monotonic() - last_growth >= STALLED_SECONDS:
            if found.volume is not None:
                volume_users.check_removal(connection, pool, found.volume)
            if _progress(pool, found) == seen:  # nobody else has begun again meanwhile
                _remove(pool, name)
            return Found(name, pool.name(), "absent")
        if deadline.passed:
            hint = "Try again when that one has ended, or allow more time with the option timeout."
            raise VirtfleetError(wanted, "another import of it is still going on", hint, "timeout")
        time.sleep(min(_LOOK_SECONDS, deadline.left()))


def _progress(pool: libvirt.virStoragePool, found: Found) -> tuple[str | None, Any, Any]:
    """Return who uploads and how far that is: what changes while an import is alive."""
    claim, allocation, physical = None, None, None
    with contextlib.suppress(VirtfleetError):  # gone between two looks
        if (begun := volumes.find(pool, found.name + BEGUN)) is not None:
            claim = volumes.read_text(begun, MARKER_BYTES)
        if found.volume is not None:
            described = volumes.describe(found.volume)
            allocation, physical = described["allocation_bytes"], described["physical_bytes"]
    return claim, allocation, physical


def _remove(pool: libvirt.virStoragePool, name: str) -> None:
    """Delete all that belongs to an image (ask `_check_unused` first).

    The volume goes first, the claim last: what a crash leaves, or another host sees meanwhile, is always partial.
    """
    for volume_name in (name, name + MARKER, name + BEGUN):
        volumes.delete(pool, volume_name)


def check_room(pool: libvirt.virStoragePool, data_bytes: int, wanted: str) -> None:
    """Refuse to begin an upload that the pool has no room for. Raises VirtfleetError `pool_full`."""
    available = pool.info()[3]
    if data_bytes > available:
        text = f"the pool {pool.name()} is full: {about(data_bytes)} are needed, {about(available)} are left"
        raise VirtfleetError(wanted, text, "Free some space in the pool, or choose another pool.", "pool_full")


def _read_marker(volume: libvirt.virStorageVol) -> dict[str, Any] | None:
    kinds = {"checksum": str, "format": str, "source": str, "size": int, "virtual_size": int}
    try:
        marker = json.loads(volumes.read_text(volume, MARKER_BYTES))
    except ValueError:
        return None
    if not isinstance(marker, dict) or any(not isinstance(marker.get(key), kind) for key, kind in kinds.items()):
        return None
    return marker
