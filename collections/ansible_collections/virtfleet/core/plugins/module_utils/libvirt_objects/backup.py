# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups as they lie in a pool: their files, their manifests, which of them needs which, and whether they are whole.

A backup of machine UUID is the volumes `UUID.NAME.TARGET.qcow2`, one a disk, and `UUID.NAME.manifest.json`, written
last. `UUID.NAME.part` is there from the first moment until the manifest is: what a run that died leaves is known by it.
An increment lies over its parent's file as an overlay does, so that the newest file of a chain shows the whole disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

if TYPE_CHECKING:
    import libvirt

try:
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

FULL, INCREMENTAL = "full", "incremental"
KINDS = (FULL, INCREMENTAL)
LONGEST_NAME = 64
_FORMAT = 1
_MANIFEST_BYTES = 4 * 2**20
_PART_BYTES = 65536
_CHUNK_BYTES = 256 * 2**10
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_MANIFEST = re.compile(rf"({_UUID})\.(.+)\.manifest\.json", re.ASCII)
_PART = re.compile(rf"({_UUID})\.(.+)\.part", re.ASCII)
_TYPES: dict[str, Any] = {
    "uuid": str,
    "name": str,
    "vm": str,
    "kind": str,
    "parent": (str, type(None)),
    "checkpoint": (str, type(None)),
    "created_at": str,
    "quiesced": bool,
    "state": str,
    "domain_xml": str,
    "disks": list,
}
_DISK_TYPES: dict[str, Any] = {"target": str, "capacity_bytes": int, "size_bytes": int, "sha256": str}


def check_backup_name(name: str) -> str:
    """Return `name` if a backup can have it. Raises VirtfleetError `invalid`."""
    check_name(name, "backup")
    if len(name) > LONGEST_NAME:
        hint = f"Use at most {LONGEST_NAME} characters."
        raise VirtfleetError(f"use {name[:20]}… as backup name", "it is too long", hint, "invalid")
    return name


def pool_of(connection: libvirt.virConnect, name: str, wanted: str, deadline: Deadline) -> libvirt.virStoragePool:
    """Return the pool of that name with what lies in it now. Raises VirtfleetError, such as `not_found`."""
    pool = pools.active_pool(connection, name, wanted)
    kind = pools.type_of(pool)
    if kind not in pools.FILE_TYPES:
        text = f"the pool {name} is of type {kind}, and backups are files"
        raise VirtfleetError(wanted, text, f"Use a pool of type {', '.join(pools.FILE_TYPES)}.", "refused")
    pools.refresh(pool, deadline)
    return pool


def file_of(uuid: str, name: str, target: str) -> str:
    """Return the name of the volume with a disk's content."""
    return f"{uuid}.{name}.{target}.qcow2"


def part_of(uuid: str, name: str) -> str:
    """Return the name of the volume that says that a backup is being made."""
    return f"{uuid}.{name}.part"


def all_in(pool: libvirt.virStoragePool, vm: str | None = None, uuid: str | None = None) -> list[dict[str, Any]]:
    """Return the manifests of a pool's whole backups, oldest first; of one machine, by its name or UUID.

    Each has `children`, the names of the increments that lie over it. Damaged manifests are left out.
    """
    found = []
    for volume_name in pool.listVolumes():
        if (match := _MANIFEST.fullmatch(volume_name)) is None or (uuid is not None and match[1] != uuid):
            continue
        manifest = _read(pool, volume_name, match[1], match[2])
        if manifest is not None and (vm is None or manifest["vm"] == vm or uuid is not None):
            found.append(manifest)
    for each in found:
        each["children"] = sorted(
            other["name"] for other in found if other["uuid"] == each["uuid"] and other["parent"] == each["name"]
        )
    return sorted(found, key=lambda each: (each["created_at"], each["name"]))


def find(there: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Return the backup of that name of those `there`, which are one machine's; None when there is none.

    Raises VirtfleetError `refused` when they are of machines of different UUIDs that had one name.
    """
    found = [each for each in there if each["name"] == name]
    if len(found) > 1:
        text = f"several machines were called {found[0]['vm']}: {', '.join(each['uuid'] for each in found)}"
        raise VirtfleetError(f"find backup {name}", text, "Give the UUID of the one that is meant.", "refused")
    return found[0] if found else None


def _read(pool: libvirt.virStoragePool, volume_name: str, uuid: str, name: str) -> dict[str, Any] | None:
    """Return a manifest; None when it is damaged, or tells of another backup than its name does."""
    try:
        manifest = json.loads(volumes.read_text(pool.storageVolLookupByName(volume_name), _MANIFEST_BYTES))
    except (ValueError, RecursionError, libvirtError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        return None
    if any(not isinstance(manifest.get(key), kind) for key, kind in _TYPES.items()):
        return None
    disks = manifest["disks"]
    if any(not isinstance(disk, dict) or not _is_disk(disk) for disk in disks):
        return None
    return manifest if (manifest["uuid"], manifest["name"]) == (uuid, name) else None


def _is_disk(disk: dict[str, Any]) -> bool:
    return all(isinstance(disk.get(key), kind) for key, kind in _DISK_TYPES.items()) and disk["target"].isalnum()


def write(pool: libvirt.virStoragePool, manifest: dict[str, Any]) -> None:
    """Write a manifest: from now on the backup is there."""
    text = json.dumps({**manifest, "format": _FORMAT}, indent=1, sort_keys=True)
    volumes.write_text(pool, f"{manifest['uuid']}.{manifest['name']}.manifest.json", text)


def shown(manifest: dict[str, Any], pool: str) -> dict[str, Any]:
    """Return a backup as modules show it: without the definition of its machine, with its size and its volumes."""
    disks = [
        {
            **{key: disk[key] for key in _DISK_TYPES},
            "volume": file_of(manifest["uuid"], manifest["name"], disk["target"]),
        }
        for disk in manifest["disks"]
    ]
    plain = ("name", "vm", "uuid", "kind", "parent", "checkpoint", "created_at", "quiesced", "state")
    return {
        **{key: manifest[key] for key in plain},
        "pool": pool,
        "children": manifest.get("children", []),
        "size_bytes": sum(disk["size_bytes"] for disk in disks),
        "disks": disks,
    }


def begun(pool: libvirt.virStoragePool, uuid: str) -> dict[str, dict[str, Any]]:
    """Return what is known of backups of a machine that were begun and not finished, by name."""
    found: dict[str, dict[str, Any]] = {}
    for volume_name in pool.listVolumes():
        if (match := _PART.fullmatch(volume_name)) is not None and match[1] == uuid:
            note: Any = {}
            with contextlib.suppress(ValueError, RecursionError, libvirtError):
                note = json.loads(volumes.read_text(pool.storageVolLookupByName(volume_name), _PART_BYTES))
            found[match[2]] = note if isinstance(note, dict) else {}
    return found


def remove(pool: libvirt.virStoragePool, uuid: str, name: str) -> None:
    """Delete all that belongs to a backup: its manifest first, so that a half-deleted one is never taken for whole."""
    prefix = f"{uuid}.{name}."
    volumes.delete(pool, f"{prefix}manifest.json")
    for volume_name in pool.listVolumes():
        target = volume_name.removeprefix(prefix).removesuffix(".qcow2")
        if volume_name == file_of(uuid, name, target) and target.isalnum():
            volumes.delete(pool, volume_name)
    volumes.delete(pool, part_of(uuid, name))


def chain(there: Sequence[dict[str, Any]], backup: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a backup and all that it lies over, newest first. Raises VirtfleetError `not_found` for a gap."""
    by_name = {each["name"]: each for each in there if each["uuid"] == backup["uuid"]}
    links = [backup]
    while (parent := links[-1]["parent"]) is not None:
        if parent not in by_name or len(links) > len(by_name):
            text = f"backup {parent}, which it lies over, is not there any more"
            raise VirtfleetError(f"use backup {backup['name']}", text, "Use an older backup.", "not_found")
        links.append(by_name[parent])
    return links


def superseded(there: Sequence[dict[str, Any]], prefix: str, count: int) -> list[str]:
    """Return which of one machine's backups go, increments before what they lie over.

    `there` is oldest first, the new one among them. Of those whose names begin with `prefix` the `count` newest stay,
    and all that what stays lies over.
    """
    ours = [each["name"] for each in there if each["name"].startswith(prefix)]
    leaving = set(ours[:-count])
    parents = {each["name"]: each["parent"] for each in there}
    for each in there:
        name: str | None = each["name"] if each["name"] not in leaving else None
        for _step in there:
            name = parents.get(name) if name is not None else None
            leaving.discard(name or "")
    return [each["name"] for each in reversed(there) if each["name"] in leaving]


def verify(pool: libvirt.virStoragePool, links: Sequence[dict[str, Any]], deadline: Deadline) -> None:
    """Read all files of a chain and compare them with what was written. Raises VirtfleetError.

    `not_found` when a file is missing, `refused` when one holds something else.
    """
    for backup in links:
        wanted = f"verify backup {backup['name']} of machine {backup['vm']}"
        for disk in backup["disks"]:
            name = file_of(backup["uuid"], backup["name"], disk["target"])
            volume = volumes.find(pool, name)
            if volume is None:
                hint = "Use an older backup, and delete this one."
                raise VirtfleetError(wanted, f"its file {name} is missing", hint, "not_found")
            if digest(volume, deadline, wanted) != (disk["size_bytes"], disk["sha256"]):
                text = f"its file {name} is not what was written: its SHA-256 is another"
                raise VirtfleetError(wanted, text, "Use an older backup, and look at that disk.", "refused")


def digest(volume: libvirt.virStorageVol, deadline: Deadline, wanted: str) -> tuple[int, str]:
    """Return the length and the SHA-256 of a volume's file, read through libvirt's stream."""
    total, sha = 0, hashlib.sha256()
    try:
        with volumes.stream_of(volume) as stream:
            volume.download(stream, 0, 0, 0)
            while part := stream.recv(_CHUNK_BYTES):
                if deadline.passed:
                    hint = "Allow more time with the option timeout."
                    raise VirtfleetError(wanted, "reading its files takes too long", hint, "timeout")
                sha.update(part)
                total += len(part)
    except libvirtError as error:
        raise translate(error, wanted) from error
    return total, sha.hexdigest()
