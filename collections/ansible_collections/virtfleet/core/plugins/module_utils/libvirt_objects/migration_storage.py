# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine's disks between two hosts: which are on storage that both have, and which must be copied.

A disk counts as shared when its pool is a network file system with the same source on both hosts, or when somebody
asserts that the pool of that name is the same storage everywhere. An assertion is proven before it is relied upon.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import about

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_PROBE_PREFIX = "virtfleet-probe-"


@dataclass(frozen=True)
class Refusal:
    """Why a machine cannot go to a host: a stable word, and a sentence."""

    code: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return the members of an entry of a verdict's `reasons`."""
        return {"code": self.code, "text": self.text}


@dataclass(frozen=True)
class DiskMove:
    """One disk. `how` is shared (nothing to do), mirror (QEMU copies it while the machine runs) or copy (we do)."""

    target: str
    pool: str
    volume: str
    path: str
    how: str
    asserted: bool = False
    """Shared only because somebody says so: libvirt cannot see it, and has to be told."""
    base: str | None = None
    """The base volume in the target's pool that a copied overlay lies over; None for a whole copy."""
    capacity_bytes: int = 0
    format: str = "qcow2"

    def as_dict(self) -> dict[str, Any]:
        """Return what a verdict tells of it."""
        return {"target": self.target, "pool": self.pool, "volume": self.volume, "how": self.how}


@dataclass
class StoragePlan:
    """What becomes of all disks of a machine."""

    disks: list[DiskMove] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    top_layers: bool = True
    """Whether only the top layer of each mirrored disk is copied: the target has all bases. Otherwise everything is."""

    @property
    def copied(self) -> list[DiskMove]:
        """The disks that get a volume of their own on the target."""
        return [disk for disk in self.disks if disk.how != "shared"]

    @property
    def mirrored(self) -> list[DiskMove]:
        """The disks that QEMU copies."""
        return [disk for disk in self.disks if disk.how == "mirror"]

    def made_for(self, machine: dict[str, Any]) -> tuple[list[DiskMove], list[DiskMove]]:
        """Return the copied disks that were made for a machine and go with it, and those that only were attached."""
        prefix = volume_prefix(machine["name"], machine["uuid"])
        listed = {(each["pool"], each["name"]) for each in machine["made_volumes"]}
        own = [disk for disk in self.copied if disk.volume.startswith(prefix) or (disk.pool, disk.volume) in listed]
        return own, [disk for disk in self.copied if disk not in own]

    @property
    def asserted_pools(self) -> list[str]:
        """The pools that are shared by assertion alone, and hold a disk of the machine."""
        return sorted({disk.pool for disk in self.disks if disk.asserted})


def plan(
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    machine: dict[str, Any],
    *,
    shared_pools: Collection[str],
    may_copy: bool,
    running: bool,
) -> StoragePlan:
    """Return what becomes of the disks of a described machine; changes nothing."""
    planned = StoragePlan()
    by_path = _volumes_by_path(source)
    for disk in machine["disks"]:
        if not disk["source"]:
            continue  # an empty drive
        found = by_path.get(disk["source"])
        if found is None:
            text = f"its disk {disk['target']} ({disk['source']}) lies in no active pool of its host"
            planned.refusals.append(Refusal("disk_unknown", text))
            continue
        shared, asserted, refusal = _sharing(found, target, shared_pools)
        if refusal is not None:
            planned.refusals.append(refusal)
            continue
        described = volumes.describe(found)
        common = {"target": disk["target"], "pool": described["pool"], "volume": described["name"]}
        if shared:
            path = described["path"]
            planned.disks.append(DiskMove(**common, path=path, how="shared", asserted=asserted))
        else:
            _plan_copy(
                planned,
                source,
                target,
                machine=machine,
                disk=disk,
                described=described,
                may_copy=may_copy,
                running=running,
            )
    if any(disk.format == "overlay" and disk.base is None for disk in planned.mirrored):
        # One migration copies either the top layers or everything: then everything.
        planned.top_layers = False
        planned.disks = [_whole(disk) if disk.how == "mirror" else disk for disk in planned.disks]
    _check_room(planned, target)
    return planned


def _volumes_by_path(connection: libvirt.virConnect) -> dict[str, libvirt.virStorageVol]:
    found = {}
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        for volume in pool.listAllVolumes(0):
            with contextlib.suppress(libvirtError):  # gone since it was listed
                found[volume.path()] = volume
    return found


def _sharing(
    volume: libvirt.virStorageVol, target: libvirt.virConnect, shared_pools: Collection[str]
) -> tuple[bool, bool, Refusal | None]:
    """Tell whether the target has the very same volume, whether that is only asserted, and what speaks against."""
    here = volume.storagePoolLookupByVolume()
    name = here.name()
    there = pools.find(target, name)
    if there is None or not there.isActive():
        state = "has no pool" if there is None else "has an inactive pool"
        return (
            False,
            False,
            Refusal("pool_missing", f"the target {state} {name}, where its volume {volume.name()} lies"),
        )
    ours, theirs = pools.settings(here), pools.settings(there)
    if ours["path"] != theirs["path"]:
        text = f"pool {name} is {ours['path']} on its host and {theirs['path']} on the target"
        return False, False, Refusal("pool_path_differs", text)
    same_server = ours["type"] == theirs["type"] == "netfs" and ours["source"] == theirs["source"]
    asserted = name in shared_pools
    if not (same_server or asserted):
        return False, False, None
    seen = volumes.find(there, volume.name())
    if seen is None or volumes.describe(seen)["capacity_bytes"] != volumes.describe(volume)["capacity_bytes"]:
        # libvirt may not have looked at the pool since the volume was made.
        with contextlib.suppress(libvirtError):
            there.refresh(0)
        seen = volumes.find(there, volume.name())
    if seen is None:
        text = f"pool {name} is said to be shared, but the target does not see the volume {volume.name()} in it"
        return False, False, Refusal("disk_not_reachable", text)
    return True, asserted and not same_server, None


def _plan_copy(
    planned: StoragePlan,
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    *,
    machine: dict[str, Any],
    disk: dict[str, Any],
    described: dict[str, Any],
    may_copy: bool,
    running: bool,
) -> None:
    name, pool_name = described["name"], described["pool"]
    if not may_copy:
        text = (
            f"its disk {disk['target']} is in pool {pool_name}, which the target does not share, and may not be copied"
        )
        planned.refusals.append(Refusal("copy_not_allowed", text))
        return
    pool = pools.active_pool(target, pool_name, "plan a migration")
    there = volumes.find(pool, name)
    if there is not None and disk["read_only"]:
        same = volumes.describe(there)["capacity_bytes"] == described["capacity_bytes"]
        if same and not name.startswith(volume_prefix(machine["name"], machine["uuid"])):
            planned.disks.append(DiskMove(disk["target"], pool_name, name, described["path"], "shared"))
            return  # an ISO image that each host has
    if there is not None and not name.startswith(volume_prefix(machine["name"], machine["uuid"])):
        text = f"the target's pool {pool_name} has a volume {name} already, and it was not made for this machine"
        planned.refusals.append(Refusal("disk_exists", text))
        return
    users = volume_users.machines_using(target, {described["path"]})
    if [user for user in users if user != machine["name"]]:
        text = f"the target's volume {name} is a disk of {', '.join(users[:3])}"
        planned.refusals.append(Refusal("disk_exists", text))
        return
    base = None
    if described["image"] is not None:
        base = _same_base(source, pool, pool_name, described["image"])
        if base is None and not (running and not disk["read_only"]):
            text = f"the target's pool {pool_name} lacks the base {described['image'].rpartition('/')[2]} of its disk"
            planned.refusals.append(Refusal("base_missing", text))
            return
    mirrored = running and not disk["read_only"]
    planned.disks.append(
        DiskMove(
            target=disk["target"],
            pool=pool_name,
            volume=name,
            path=described["path"],
            how="mirror" if mirrored else "copy",
            base=base,
            capacity_bytes=described["capacity_bytes"],
            format="overlay" if described["image"] is not None else described["format"],
        )
    )


def _same_base(source: libvirt.virConnect, pool: libvirt.virStoragePool, pool_name: str, path: str) -> str | None:
    """Return the name of a disk's base if the target has the very same one, whole; None in doubt."""
    name = path.rpartition("/")[2]
    with contextlib.suppress(libvirtError, VirtfleetError):
        here = pools.active_pool(source, pool_name, "compare two bases")
        mine, theirs = images.look(here, name).marker, images.look(pool, name)
        if mine is None or theirs.marker is None or theirs.volume is None:
            return None
        if theirs.volume.path() == path and mine["checksum"] == theirs.marker["checksum"]:
            return name
    return None


def _whole(disk: DiskMove) -> DiskMove:
    kind = "qcow2" if disk.format == "overlay" else disk.format
    return DiskMove(
        disk.target, disk.pool, disk.volume, disk.path, disk.how, capacity_bytes=disk.capacity_bytes, format=kind
    )


def _check_room(planned: StoragePlan, target: libvirt.virConnect) -> None:
    """Refuse when what is surely written does not fit: raw copies. What others will take, their sizes do not tell."""
    for name in sorted({disk.pool for disk in planned.copied}):
        pool = pools.find(target, name)
        if pool is None:
            continue
        needed = sum(disk.capacity_bytes for disk in planned.copied if disk.pool == name and disk.format == "raw")
        available = pool.info()[3]
        if needed > available:
            text = f"pool {name} of the target has {about(available)} left, and {about(needed)} are to be copied there"
            planned.refusals.append(Refusal("pool_full", text))
