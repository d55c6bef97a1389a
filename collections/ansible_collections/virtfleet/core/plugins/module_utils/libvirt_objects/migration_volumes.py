# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volumes of a machine that moves: made and filled on the target, proven to be other ones, cleared away."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_storage import (
    DiskMove,
    StoragePlan,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.volume_copy import pour
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_PROBE_PREFIX = "virtfleet-probe-"


def prove(source: libvirt.virConnect, target: libvirt.virConnect, planned: StoragePlan, wanted: str) -> None:
    """Raise VirtfleetError `refused` for a pool that is not what the plan takes it for.

    A pool that is asserted to be shared must be the same storage on both hosts; one from which is copied must not be: a
    copy over itself, or the old volume removed after it, would be the machine's only disk.
    """
    for name in planned.asserted_pools:
        if not is_same_storage(source, target, name):
            text = f"pool {name} is said to be shared, but what is written to it on one host is not there on the other"
            hint = "Correct virtfleet_shared_pools, or let the disks be copied."
            raise VirtfleetError(wanted, text, hint, "refused")
    for name in sorted({disk.pool for disk in planned.copied}):
        if is_same_storage(source, target, name):
            text = f"pool {name} is the same storage on both hosts, but nobody has said so, and so it would be copied"
            hint = "Name it in shared_pools (of a host: the variable virtfleet_shared_pools)."
            raise VirtfleetError(wanted, text, hint, "refused")


def is_same_storage(source: libvirt.virConnect, target: libvirt.virConnect, name: str) -> bool:
    """Tell by trial whether two pools of one name are the same storage: what one makes, the other cannot make again."""
    here, there = pools.find(source, name), pools.find(target, name)
    if here is None or there is None or not here.isActive() or not there.isActive():
        return False
    # Of the second one nothing is there. A client of NFS goes on believing for half a minute that the first one is.
    probe, other = (volumes.volume_xml(f"{_PROBE_PREFIX}{secrets.token_hex(8)}", 512, "raw") for _ in range(2))
    wanted = f"find out whether pool {name} is shared"
    try:
        made = volumes.define(here, probe)
        try:
            taken = not _can_make(there, probe)
        finally:
            made.delete(0)
        return taken and _can_make(there, other)
    except libvirtError as error:
        raise translate(error, wanted) from error


def _can_make(pool: libvirt.virStoragePool, document: str) -> bool:
    try:
        made = volumes.define(pool, document)
    except libvirtError as error:
        if code_of(error) in ("refused", "already_exists"):
            return False
        raise
    made.delete(0)
    return True


def prepare(
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    planned: StoragePlan,
    deadline: Deadline,
    made: list[DiskMove],
) -> None:
    """Make the volumes of copied disks on the target; each is noted in `made` at once. Raises VirtfleetError."""
    for disk in planned.copied:
        pool = pools.active_pool(target, disk.pool, f"copy volume {disk.volume}")
        if volumes.find(pool, disk.volume) is not None:
            volumes.delete(pool, disk.volume)  # an earlier attempt's: `plan` has seen that it is nobody's
        made.append(disk)
        if disk.how == "copy":
            _carry(source, pool, disk, deadline)
        elif disk.base is not None:
            base = volumes.find(pool, disk.base)
            if base is None:
                text = f"its base {disk.base} has just gone from pool {disk.pool}"
                raise VirtfleetError(f"copy volume {disk.volume}", text, "Try again.", "image_missing")
            volumes.make_overlay(pool, disk.volume, base, disk.capacity_bytes)
        else:
            kind = "raw" if disk.format == "raw" else "qcow2"
            volumes.make_empty(pool, disk.volume, disk.capacity_bytes, kind)


def _carry(source: libvirt.virConnect, pool: libvirt.virStoragePool, disk: DiskMove, deadline: Deadline) -> None:
    """Copy a volume that nobody writes to, as it lies there, from host to host through libvirt's streams."""
    here = pools.active_pool(source, disk.pool, f"copy volume {disk.volume}")
    original = volumes.find(here, disk.volume)
    wanted = f"copy volume {disk.volume} of pool {disk.pool} to the target"
    if original is None:
        raise VirtfleetError(wanted, "it has just gone", "Look who removed it.", "not_found")
    described = volumes.describe(original)
    length = described["physical_bytes"] or described["capacity_bytes"]
    copy = volumes.make_for_upload(pool, disk.volume)
    pour(original, copy, length, deadline, wanted)
    pools.refresh(pool, deadline)  # what was uploaded says itself what it is


def discard(connection: libvirt.virConnect, disks: Sequence[DiskMove]) -> bool:
    """Delete these volumes of a host, unless another machine there has them; False when one is left."""
    clean = True
    for disk in disks:
        try:
            pool = pools.find(connection, disk.pool)
            if pool is None or not pool.isActive():
                continue
            volume = volumes.find(pool, disk.volume)
            if volume is None:
                continue
            if volume_users.machines_using(connection, {volume.path()}) or volume_users.overlays_of(
                pool, volume.path()
            ):
                clean = False
            else:
                clean = volumes.delete(pool, disk.volume) and clean
        except (libvirtError, VirtfleetError):
            clean = False
    return clean


def leftovers(
    source: libvirt.virConnect, target: libvirt.virConnect, machine: dict[str, Any], shared_pools: Collection[str]
) -> list[DiskMove]:
    """Return the volumes made for a machine that lie on `source` although it is on `target` with copies of its own.

    Only volumes whose pool is proven to be other storage than the target's are returned: a shared disk has no copy.
    """
    in_use = {disk["source"] for disk in machine["disks"]}
    found = []
    proven: dict[str, bool] = {}
    by_name = vms.leftovers(source, machine["name"], machine["uuid"])
    listed = [{"pool": each["pool"], "name": each["name"]} for each in machine["made_volumes"]]
    for each in by_name + [volume for volume in listed if volume not in by_name]:
        pool = pools.find(source, each["pool"])
        volume = volumes.find(pool, each["name"]) if pool is not None else None
        if volume is None or volume.path() not in in_use or each["pool"] in shared_pools:
            continue
        if each["pool"] not in proven:
            other = pools.find(target, each["pool"])
            has_own = other is not None and other.isActive() and volumes.find(other, each["name"]) is not None
            proven[each["pool"]] = has_own and not is_same_storage(source, target, each["pool"])
        if proven[each["pool"]]:
            found.append(DiskMove("", each["pool"], each["name"], volume.path(), "copy"))
    return found
