# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module volume can ask for: a volume that is empty, over an image, a copy of another, or filled from a file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.virtfleet.core.plugins.module_utils import image_source, plan
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.image_source import Source
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_copy, volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import about
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

if TYPE_CHECKING:
    import libvirt

COPYING = ".copying"
"""What is added to a volume's name for a small volume that is there as long as a copy from another host is not whole.
Its length cannot tell: both the copy and the original may have grown since."""


@dataclass(frozen=True)
class Recipe:
    """How a volume is to be. At most one of `image`, `original` and `src` is set; `original` is (pool, volume)."""

    name: str
    size_bytes: int | None = None
    format: str | None = None
    image: str | None = None
    original: tuple[str, str] | None = None
    src: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "volume")
        if self.name.endswith((images.MARKER, images.BEGUN, COPYING)):
            text = f"names that end in {images.MARKER}, {images.BEGUN} or {COPYING} say how far another volume has come"
            raise VirtfleetError(f"make volume {self.name}", text, "Choose another name.", "invalid")
        if self.size_bytes is not None:
            volumes.check_size(self.name, self.size_bytes)


def settings(volume: libvirt.virStorageVol) -> dict[str, Any]:
    """Return what of a volume module volume is about."""
    described = volumes.describe(volume)
    return {key: described[key] for key in ("name", "pool", "format", "capacity_bytes", "image")}


def present(
    connection: libvirt.virConnect,
    pool: libvirt.virStoragePool,
    recipe: Recipe,
    *,
    check: bool,
    deadline: Deadline,
    elsewhere: libvirt.virConnect | None = None,
) -> plan.Plan:
    """Bring the volume of a recipe about, or in check mode only tell what would change.

    `elsewhere` is the host of the original when that is another one. What this call made is removed again when it
    fails.
    """
    if recipe.src is not None:
        wanted = f"make volume {recipe.name} in pool {pool.name()} from a file"
        with image_source.local_file(
            recipe.src, asked_format=recipe.format, checksum=None, wanted=wanted, deadline=deadline
        ) as source:
            return _from_file(connection, pool, recipe, source, check=check, deadline=deadline)
    volume = volumes.find(pool, recipe.name)
    base = images.require(pool, recipe.image, f"make volume {recipe.name}") if recipe.image is not None else None
    if volume is not None and volumes.find(pool, recipe.name + COPYING) is None:
        return _adjusted(connection, volume, recipe, base, check=check)
    if recipe.original is not None and elsewhere is not None:
        return _from_another_host(connection, pool, recipe, elsewhere, check=check, deadline=deadline)
    original = _original(connection, recipe.name, *recipe.original) if recipe.original is not None else None
    after = _predicted(pool, recipe, base or original, over=base is not None)
    todo = plan.compare(None, after)
    if check:
        return todo
    size, volume_format = recipe.size_bytes, str(after["format"])
    if base is not None:
        volumes.make_overlay(pool, recipe.name, base, size)
    elif original is not None:
        volumes.make_copy(pool, recipe.name, original, size, volume_format)
    else:
        volumes.make_empty(pool, recipe.name, after["capacity_bytes"], volume_format)
    return todo


def absent(connection: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, *, check: bool) -> plan.Plan:
    """Delete a volume that nothing uses, or in check mode only tell that it would be."""
    volume, begun = volumes.find(pool, name), volumes.find(pool, name + COPYING)
    before = (
        settings(volume) if volume is not None else {"name": name, "complete": False} if begun is not None else None
    )
    todo = plan.compare(before, None)
    if volume is not None:
        volume_users.check_removal(connection, pool, volume)
    if not check:
        volumes.delete(pool, name)
        if begun is not None:
            volumes.delete(pool, name + COPYING)
    return todo


def wiped(
    connection: libvirt.virConnect, pool: libvirt.virStoragePool, recipe: Recipe, *, check: bool, deadline: Deadline
) -> plan.Plan:
    """Empty a volume that nothing uses, or in check mode only tell that it would be; one that is gone is made anew.

    Raises VirtfleetError: `not_found` for one that is gone and has no size in its recipe, `refused`, `invalid`.
    """
    wanted = f"wipe volume {recipe.name}"
    if recipe.image is not None or recipe.original is not None or recipe.src is not None:
        raise VirtfleetError(wanted, "an empty volume has no content", "Leave image, copy_of and src away.", "invalid")
    volume = volumes.find(pool, recipe.name)
    if volume is None and recipe.size_bytes is None:
        text = f"there is no volume of that name in pool {pool.name()}"
        raise VirtfleetError(wanted, text, "Check the name.", "not_found")
    if volume is None:
        return present(connection, pool, recipe, check=check, deadline=deadline)
    before = settings(volume)
    if before["image"] is not None:
        text = f"it lies over {before['image']}, whose content it would show then"
        raise VirtfleetError(wanted, text, "Delete it, and make it anew.", "refused")
    volume_users.check_removal(connection, pool, volume, wanted)
    todo = plan.compare({**before, "content": "what is on it"}, {**before, "content": "none"})
    if not check:
        volumes.wipe(volume, deadline)
        if before["format"] != "raw":  # what told its format is zeros now
            volumes.delete(pool, recipe.name)
            volumes.make_empty(pool, recipe.name, before["capacity_bytes"], before["format"])
    return todo


def _predicted(
    pool: libvirt.virStoragePool, recipe: Recipe, below: libvirt.virStorageVol | None, *, over: bool
) -> dict[str, Any]:
    """Return what the new volume will be, and refuse what it cannot be, before anything is made."""
    wanted = f"make volume {recipe.name}"
    source = volumes.describe(below) if below is not None else None
    if source is None and recipe.size_bytes is None:
        raise VirtfleetError(wanted, "it has no size", "Say how large it is to be, such as size: 10GiB.", "invalid")
    if over and recipe.format == "raw":
        raise VirtfleetError(wanted, "a raw volume cannot lie over an image", "Use format qcow2.", "invalid")
    capacity = recipe.size_bytes if source is None else max(recipe.size_bytes or 0, source["capacity_bytes"])
    if source is not None and recipe.size_bytes is not None and recipe.size_bytes < source["capacity_bytes"]:
        text = f"{source['name']} has {about(source['capacity_bytes'])}, it is to have only {about(recipe.size_bytes)}"
        raise VirtfleetError(wanted, text, f"Ask for {about(source['capacity_bytes'])} or more.", "invalid")
    volume_format = recipe.format or ("raw" if pools.type_of(pool) == "logical" else "qcow2")
    return {
        "name": recipe.name,
        "pool": pool.name(),
        "format": volume_format,
        "capacity_bytes": capacity,
        "image": source["path"] if source is not None and over else None,
    }


def _adjusted(
    connection: libvirt.virConnect,
    volume: libvirt.virStorageVol,
    recipe: Recipe,
    base: libvirt.virStorageVol | None,
    *,
    check: bool,
) -> plan.Plan:
    """Compare an existing volume with its recipe and grow it if that is what differs."""
    before = settings(volume)
    wanted = f"make volume {recipe.name} as wanted"
    hint = "Choose another name, or delete that volume first."
    if recipe.format is not None and before["format"] != recipe.format:
        text = f"a volume of that name is there with format {before['format']}, not {recipe.format}"
        raise VirtfleetError(wanted, text, hint, "already_exists")
    if base is not None and before["image"] != base.path():
        text = f"a volume of that name is there which does not lie over image {recipe.image}"
        raise VirtfleetError(wanted, text, hint, "already_exists")
    after = dict(before)
    if recipe.size_bytes is not None:
        volumes.check_growth(before, recipe.size_bytes)
        after["capacity_bytes"] = recipe.size_bytes
    todo = plan.compare(before, after)
    if todo.changed:
        users = volume_users.machines_using(connection, {volume.path()}, running_only=True)
        if users:
            text = f"it is a disk of {', '.join(users)}, which runs"
            raise VirtfleetError(f"resize volume {recipe.name}", text, "Stop the machine first.", "refused")
        if not check and recipe.size_bytes is not None:
            volumes.grow(volume, recipe.size_bytes)
    return todo


def _from_file(
    connection: libvirt.virConnect,
    pool: libvirt.virStoragePool,
    recipe: Recipe,
    source: Source,
    *,
    check: bool,
    deadline: Deadline,
) -> plan.Plan:
    size = source.image.virtual_size_bytes
    if recipe.size_bytes is not None and recipe.size_bytes < size:
        text = f"the file has {about(size)}, the volume is to have only {about(recipe.size_bytes)}"
        raise VirtfleetError(f"make volume {recipe.name}", text, f"Ask for {about(size)} or more.", "invalid")
    volume = volumes.find(pool, recipe.name)
    if volume is not None and _holds_all_of(volume, source):
        # Its machine may have written to it since, so the content is not compared.
        asked = Recipe(recipe.name, recipe.size_bytes, source.image.format)
        return _adjusted(connection, volume, asked, None, check=check)
    after = {
        "name": recipe.name,
        "pool": pool.name(),
        "format": source.image.format,
        "capacity_bytes": recipe.size_bytes or size,
        "image": None,
    }
    todo = plan.compare(None if volume is None else {**settings(volume), "complete": False}, after)
    if volume is not None:
        volume_users.check_removal(connection, pool, volume)
    if check:
        return todo
    wanted = f"upload volume {recipe.name} into pool {pool.name()}"
    images.check_room(pool, source.data_bytes, wanted)
    volumes.delete(pool, recipe.name)
    made = volumes.make_for_upload(pool, recipe.name)
    try:
        volumes.upload(made, source.file, source.size_bytes, deadline, wanted)
        pools.refresh(pool, deadline)  # libvirt reads the format of what was uploaded
        filled = volumes.find(pool, recipe.name)
        if filled is not None and recipe.size_bytes is not None and recipe.size_bytes > size:
            volumes.grow(filled, recipe.size_bytes)
    except BaseException:
        with contextlib.suppress(VirtfleetError):  # what stopped the upload may stop this too
            volumes.delete(pool, recipe.name)
        raise
    return todo


def _from_another_host(
    connection: libvirt.virConnect,
    pool: libvirt.virStoragePool,
    recipe: Recipe,
    elsewhere: libvirt.virConnect,
    *,
    check: bool,
    deadline: Deadline,
) -> plan.Plan:
    """Copy the file of a volume of another host, as it is there; what an earlier run has left half is made anew."""
    pool_name, name = recipe.original or ("", "")
    original = _original(elsewhere, recipe.name, pool_name, name)
    source = volumes.describe(original)
    wanted = f"copy volume {name} of another host to {recipe.name}"
    volume_copy.check_at_rest(elsewhere, original, wanted)
    if recipe.format not in (None, source["format"]):
        text = f"it is {source['format']} there, and is to be {recipe.format} here"
        raise VirtfleetError(wanted, text, "A copy from another host keeps its format: leave it away.", "invalid")
    if pools.type_of(pool) == "logical":
        text = f"pool {pool.name()} has no files"
        raise VirtfleetError(wanted, text, "Choose a pool of files here.", "invalid")
    asked = Recipe(recipe.name, recipe.size_bytes, source["format"], original=recipe.original)
    after = {**_predicted(pool, asked, original, over=False), "image": None}
    half = volumes.find(pool, recipe.name)
    todo = plan.compare({**settings(half), "complete": False} if half is not None else None, after)
    if half is not None:
        volume_users.check_removal(connection, pool, half)
    if check:
        return todo
    images.check_room(pool, source["allocation_bytes"], wanted)
    volumes.delete(pool, recipe.name)
    if volumes.find(pool, recipe.name + COPYING) is None:
        volumes.write_text(pool, recipe.name + COPYING, source["path"])
    try:
        pool_there = original.storagePoolLookupByVolume()
        pools.refresh(pool_there, deadline)
        before = volume_copy.stamp(original)
        made = volume_copy.copy_file(original, pool, recipe.name, deadline)
        pools.refresh(pool_there, deadline)
        if volume_copy.stamp(original) != before:
            raise VirtfleetError(wanted, "it was written to meanwhile", "Try again when it is at rest.", "refused")
        if after["capacity_bytes"] > source["capacity_bytes"]:
            volumes.grow(made, after["capacity_bytes"])
    except BaseException:
        with contextlib.suppress(VirtfleetError):  # what stopped the copy may stop this too; the note then stays
            volumes.delete(pool, recipe.name)
            volumes.delete(pool, recipe.name + COPYING)
        raise
    volumes.delete(pool, recipe.name + COPYING)
    return todo


def _holds_all_of(volume: libvirt.virStorageVol, source: Source) -> bool:
    """Whether the upload into an existing volume came to its end: it is filled in order, so its length tells."""
    physical = volumes.describe(volume)["physical_bytes"]
    return physical is None or physical >= source.size_bytes


def _original(connection: libvirt.virConnect, copy: str, pool_name: str, name: str) -> libvirt.virStorageVol:
    wanted = f"copy volume {check_name(name, 'volume')} to {copy}"
    original = volumes.find(pools.active_pool(connection, pool_name, wanted), name)
    if original is None:
        raise VirtfleetError(wanted, f"there is no volume {name} in pool {pool_name}", "Check the name.", "not_found")
    return original
