# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a machine that is there: attached, detached, throttled and grown. All sizes are bytes."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices, metadata
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import io_limits
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import (
    vm_device,
    vm_filesystem,
    vm_update,
    volume_recipe,
    volume_users,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_device import Done, Machine
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.volume_recipe import Recipe
from ansible_collections.virtfleet.core.plugins.module_utils.units import about
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

NEW: dict[str, Any] = {"bus": "virtio", "read_only": False, "shareable": False, "io": io_limits({})}
"""How a disk is when nothing else is said."""


@dataclass(frozen=True)
class Wanted:
    """A disk as it is wanted; None leaves it as it is. At most one of `size_bytes` and `grow_by_bytes` is given."""

    serial: str
    pool: str | None = None
    volume: str | None = None
    bus: str | None = None
    read_only: bool | None = None
    shareable: bool | None = None
    io: dict[str, int] | None = None
    size_bytes: int | None = None
    grow_by_bytes: int | None = None
    grow_filesystem: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """What was named of the disk itself."""
        return {name: value for name in NEW if (value := getattr(self, name)) is not None}


def present(machine: Machine, wanted: Wanted, *, check: bool, deadline: Deadline) -> Done:
    """Attach a disk, or change one that is attached; in check mode only say what would be done. Raises VirtfleetError.

    What fails half-way is taken back, but for a size: a volume never shrinks.
    """
    goal = f"attach disk {wanted.serial} to machine {machine.name}"
    states = [None if root is None else _state(root, wanted.serial) for root in (machine.kept, machine.live)]
    kept, live = states
    attached = any(state is not None and state["attached"] for state in states)
    volume = _volume(machine, wanted, attached, goal)
    making = _recipe(wanted) if wanted.volume is not None and volume is None else None
    size = making.size_bytes or 0 if making is not None else _size(machine, wanted, volume)
    asked: dict[str, Any] = {"attached": True, **wanted.settings}
    for state in (kept, live):
        if state is not None and not state["attached"]:
            state.update(asked | {"attached": False})  # it comes with all that is asked for
    update = plan.update(asked, kept, live, vm_device.effects(machine, ("io",)))
    grown = _target_size(machine, wanted, size)
    if grown != size:
        effect = plan.LIVE if machine.live is not None else plan.NEXT_BOOT
        update = plan.Update((*update.changes, plan.Change("size_bytes", size, grown, effect)), update.pending)
    if making is not None:
        new = plan.Change("volume", None, making.name)
        update = plan.Update((new, *update.changes), update.pending)
    done = Done(
        update,
        None,
        {"serial": wanted.serial, **{change.what: change.before for change in update.changes}},
        {"serial": wanted.serial, **{change.what: change.after for change in update.changes}},
        needs_power_cycle=machine.live is not None and bool(update.next_boot),
    )
    if not check and update.changed:
        with vm_device.undoing(machine, goal):
            if making is not None:
                volume = _made(machine, wanted, making, deadline, goal)
            _make_so(machine, wanted, update, volume, grown if grown != size else None)
    asked_for_size = wanted.size_bytes is not None or wanted.grow_by_bytes is not None
    if asked_for_size and wanted.grow_filesystem and attached:
        _grow_filesystem(machine, wanted, done, grown, check=check, grows=grown != size, deadline=deadline)
    done.device = described(machine if check else vm_device.again(machine), wanted.serial)
    return done


def _recipe(wanted: Wanted) -> Recipe:
    return Recipe(wanted.volume or "", size_bytes=wanted.size_bytes)


def _made(machine: Machine, wanted: Wanted, recipe: Recipe, deadline: Deadline, goal: str) -> libvirt.virStorageVol:
    """Make the volume that is to be attached."""
    pool = pools.active_pool(machine.connection, wanted.pool or "default", goal)
    machine.undo.append(partial(volumes.delete, pool, recipe.name))
    try:
        volume_recipe.present(machine.connection, pool, recipe, check=False, deadline=deadline)
    except VirtfleetError as error:
        if error.code == "already_exists":
            machine.undo.pop()  # somebody was quicker: it is theirs
        raise
    return volumes.find(pool, recipe.name)


def _grow_filesystem(
    machine: Machine, wanted: Wanted, done: Done, size: int, *, check: bool, grows: bool, deadline: Deadline
) -> None:
    """Have the file system follow, and put into the plan what that changes when the disk itself had grown before."""
    if machine.live is None:
        reason = "the machine is not running: its system may do it when it boots"
        done.more["filesystem"] = vm_filesystem.Found(False, False, reason).as_dict()
        return
    if check and grows:
        reason = "it follows once the disk has grown"
        done.more["filesystem"] = vm_filesystem.Found(False, False, reason).as_dict()
        return
    found = vm_filesystem.grow(machine.domain, wanted.serial, size, check=check, deadline=deadline)
    done.more["filesystem"] = found.as_dict()
    if found.changes and not grows:
        change = plan.Change("filesystem", "smaller than the disk", "as large as the disk")
        done.update = plan.Update((*done.update.changes, change), done.update.pending)
        for state, value in ((done.before, change.before), (done.after, change.after)):
            if state is not None:
                state["filesystem"] = value


def absent(machine: Machine, serial: str, *, check: bool, deadline: Deadline) -> Done:
    """Detach a disk; its volume stays. In check mode only say what would be done."""
    goal = f"detach disk {serial} from machine {machine.name}"
    kept, live = (None if root is None else {"attached": _there(root, serial)} for root in (machine.kept, machine.live))
    update = plan.update({"attached": False}, kept, live, vm_device.effects(machine, ()))
    before = described(machine, serial) if update.changed else None
    waits = machine.live is not None and bool(update.next_boot)
    done = Done(update, None, before, None, needs_power_cycle=waits)
    if not check and update.changed:
        find = partial(devices.find_disk, serial=serial)
        root = machine.kept if machine.kept is not None else machine.live
        found = None if root is None else find(root)
        path = None if found is None else devices.source_of(found)
        with vm_device.undoing(machine, goal):
            vm_device.detach(machine, find, live=not machine.paused, deadline=deadline, wanted=goal)
            if path is not None:
                _disown(machine, path)
    return done


def _disown(machine: Machine, path: str) -> None:
    """Strike a detached volume from those that go with the machine: it is nobody's now, and has data in it."""
    now = vm_device.again(machine)
    for root, flag in ((now.live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (now.kept, libvirt.VIR_DOMAIN_AFFECT_CONFIG)):
        values = metadata.of(root) if root is not None else {}
        made = values.get("made_volumes") or []
        left = [each for each in made if _path_of(machine, each) != path]
        if len(left) != len(made):
            parted = [*(values.get("detached_volumes") or []), *(each for each in made if each not in left)]
            changed = {**values, "made_volumes": left, "detached_volumes": parted}
            vm_update.set_metadata(machine.domain, changed, flag)


def _path_of(machine: Machine, volume: dict[str, str]) -> str | None:
    with contextlib.suppress(libvirtError, KeyError, TypeError):
        pool = machine.connection.storagePoolLookupByName(volume["pool"])
        return str(pool.storageVolLookupByName(volume["name"]).path())
    return None


def described(machine: Machine, serial: str) -> dict[str, Any] | None:
    """Return a disk as it is: in the running machine if there is one, else in its definition."""
    for root in (machine.live, machine.kept):
        disk = devices.find_disk(root, serial) if root is not None else None
        if disk is not None:
            facts = devices.read_disk(disk)
            return {
                "serial": serial,
                "target": devices.target_of(disk),
                "path": devices.source_of(disk),
                **{key: facts[key] for key in ("bus", "read_only", "shareable", "io")},
                "size_bytes": _capacity(machine, disk),
            }
    return None


def _there(root: ET.Element, serial: str) -> bool:
    return devices.find_disk(root, serial) is not None


def _state(root: ET.Element, serial: str) -> dict[str, Any]:
    return devices.read_disk(devices.find_disk(root, serial))


def _volume(machine: Machine, wanted: Wanted, attached: bool, goal: str) -> libvirt.virStorageVol | None:
    """Return the volume that was named, refused if it cannot be this disk; None for none, or one that is to be made."""
    if wanted.volume is None:
        if not attached:
            hint = "Give pool and volume to attach one."
            raise VirtfleetError(goal, "it has no disk of that serial number", hint, "not_found")
        return None
    pool = pools.active_pool(machine.connection, wanted.pool or "default", goal)
    volume = volumes.find(pool, wanted.volume)
    if volume is None and wanted.size_bytes is not None and not attached:
        return None  # it is made
    if volume is None:
        hint = "Make it first with module volume, or give its size to have it made."
        raise VirtfleetError(goal, f"pool {pool.name()} has no volume {wanted.volume}", hint, "not_found")
    path = volume.path()
    for root in machine.documents:
        disk = devices.find_disk(root, wanted.serial)
        if disk is not None and devices.source_of(disk) != path:
            text = f"the disk of that serial number is {devices.source_of(disk)}"
            raise VirtfleetError(goal, text, "Detach that one first, or use another serial.", "refused")
        for other in root.iterfind("devices/disk"):
            if devices.source_of(other) == path and other.findtext("serial") != wanted.serial:
                text = f"it has volume {wanted.volume} already, as disk {other.findtext('serial')}"
                raise VirtfleetError(goal, text, "Use that serial.", "refused")
    _refuse_taken(machine, wanted, pool, volume, goal)
    return volume


def _refuse_taken(
    machine: Machine, wanted: Wanted, pool: libvirt.virStoragePool, volume: libvirt.virStorageVol, goal: str
) -> None:
    path = volume.path()
    users = [name for name in volume_users.machines_using(machine.connection, {path}) if name != machine.name]
    if users and not (wanted.shareable or wanted.read_only):
        text = f"volume {volume.name()} is a disk of {', '.join(users[:5])}"
        hint = "Detach it there first, or make it shareable if what is on it can be used by several machines."
        raise VirtfleetError(goal, text, hint, "refused")
    if users and not all(_may_share(machine, name, path) for name in users):
        text = f"volume {volume.name()} is a disk of {', '.join(users[:5])}, where it is not shareable"
        raise VirtfleetError(goal, text, "Make it shareable there first.", "refused")
    if not wanted.read_only and volume_users.overlays_of(pool, path):
        text = f"other volumes lie over volume {volume.name()}: writing to it would break them"
        raise VirtfleetError(goal, text, "Attach it read_only, or a copy of it.", "refused")


def _may_share(machine: Machine, name: str, path: str) -> bool:
    root = ET.fromstring(machine.connection.lookupByName(name).XMLDesc(0))
    found = [disk for disk in root.iterfind("devices/disk") if devices.source_of(disk) == path]
    return all(disk.find("shareable") is not None or disk.find("readonly") is not None for disk in found)


def _size(machine: Machine, wanted: Wanted, volume: libvirt.virStorageVol | None) -> int:
    for root in (machine.live, machine.kept):
        disk = devices.find_disk(root, wanted.serial) if root is not None else None
        if disk is not None:
            return _capacity(machine, disk)
    return int(volume.info()[1]) if volume is not None else 0


def _capacity(machine: Machine, disk: ET.Element) -> int:
    try:
        return int(machine.domain.blockInfo(devices.target_of(disk))[0])
    except libvirtError as error:
        raise translate(error, f"read the size of disk {devices.target_of(disk)} of machine {machine.name}") from error


def _target_size(machine: Machine, wanted: Wanted, size: int) -> int:
    """Return the size that the disk is to have. Raises VirtfleetError `refused` for a smaller one."""
    if wanted.grow_by_bytes is not None:
        return size + wanted.grow_by_bytes
    if wanted.size_bytes is None:
        return size
    if wanted.size_bytes < size:
        raise VirtfleetError(
            f"resize disk {wanted.serial} of machine {machine.name} to {about(wanted.size_bytes)}",
            f"it has {about(size)}, and a disk never shrinks",
            "Attach a smaller one and copy the files inside the machine.",
            "refused",
        )
    return wanted.size_bytes


def _make_so(
    machine: Machine,
    wanted: Wanted,
    update: plan.Update,
    volume: libvirt.virStorageVol | None,
    size: int | None,
) -> None:
    names = update.names()
    in_live = machine.live is not None and _there(machine.live, wanted.serial)
    in_kept = machine.kept is not None and _there(machine.kept, wanted.serial)
    if size is not None:
        _grow(machine, wanted.serial, volume, size)
    if "attached" in names and volume is not None:
        _attach(machine, wanted, volume, live=machine.live is not None and not in_live, kept=not in_kept)
    if "io" in names and in_live and machine.live is not None and wanted.io is not None:
        disk = devices.find_disk(machine.live, wanted.serial)
        if disk is not None:
            before = devices.read_disk(disk)["io"]
            set_io = partial(vm_update.set_disk_io, machine.domain, devices.target_of(disk))
            machine.undo.append(partial(set_io, before, libvirt.VIR_DOMAIN_AFFECT_LIVE))
            set_io(wanted.io, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    if in_kept:
        vm_device.redefine(machine, partial(_write, machine, wanted, names))


def _write(machine: Machine, wanted: Wanted, names: list[str], root: ET.Element) -> None:
    disk = devices.find_disk(root, wanted.serial)
    for name in names:
        if disk is None or name not in NEW:
            continue
        target = devices.free_target(machine.documents, wanted.bus) if name == "bus" and wanted.bus else ""
        if name == "bus" and wanted.bus == "scsi" and (controller := devices.scsi_controller(root)) is not None:
            root.find("devices").append(controller)  # type: ignore[union-attr]
        devices.write_disk(disk, name, getattr(wanted, name), target)


def _attach(machine: Machine, wanted: Wanted, volume: libvirt.virStorageVol, *, live: bool, kept: bool) -> None:
    facts, asked = volumes.describe(volume), NEW | wanted.settings
    there = next((d for root in machine.documents if (d := devices.find_disk(root, wanted.serial)) is not None), None)
    target = devices.free_target(machine.documents, asked["bus"]) if there is None else devices.target_of(there)
    block = bool(volume.info()[0] == libvirt.VIR_STORAGE_VOL_BLOCK)
    element = devices.disk_element(
        facts["path"], facts["format"], asked, block=block, serial=wanted.serial, target=target
    )
    if asked["bus"] == "scsi":
        for root, needed in ((machine.live, live), (machine.kept, kept)):
            controller = devices.scsi_controller(root) if root is not None and needed else None
            if controller is not None:
                where = {"live": root is machine.live, "kept": root is machine.kept}
                vm_device.attach(machine, controller, devices.find_scsi_controller, **where)
    find = partial(devices.find_disk, serial=wanted.serial)
    vm_device.attach(machine, element, find, live=live, kept=kept and machine.kept is not None)


def _grow(machine: Machine, serial: str, volume: libvirt.virStorageVol | None, size: int) -> None:
    disk = devices.find_disk(machine.live, serial) if machine.live is not None else None
    if volume is None:
        known = (
            disk
            if disk is not None
            else next(
                (found for root in machine.documents if (found := devices.find_disk(root, serial)) is not None), None
            )
        )
        path = None if known is None else devices.source_of(known)
        volume = machine.connection.storageVolLookupByPath(path)
    if disk is None:
        volumes.grow(volume, size)
        return
    if disk.get("type") == "block":
        volumes.grow(volume, size)
    machine.domain.blockResize(devices.target_of(disk), size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    with contextlib.suppress(libvirtError):  # the pool still knows the size that the volume had
        volume.storagePoolLookupByVolume().refresh(0)
