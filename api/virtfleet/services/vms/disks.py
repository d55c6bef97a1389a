"""The disks of machines that are there: attached, changed, detached. Volumes that are detached stay."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import names
from virtfleet.errors import Problem, not_found
from virtfleet.models import Job, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions, resizing
from virtfleet.services.vms.resizing import ROOT_SERIAL, Resize

SEED_SERIAL = "seed"
MOST = 16
"""Disks of one machine beside those that it was made with."""


@dataclass(frozen=True)
class NewDisk:
    """A disk to attach: just one of `size_bytes` (a new volume) and `volume` (one that is there)."""

    serial: str
    size_bytes: int | None = None
    volume: str | None = None
    pool: str | None = None
    bus: str = "virtio"
    read_only: bool = False
    shareable: bool = False
    io: Mapping[str, Any] = field(default_factory=dict)


def of(vm: Vm) -> list[dict[str, Any]]:
    """Return the disks of a machine as they are known: the first it was made with, then those attached to it."""
    first = (vm.spec.get("disks") or [{}])[0]
    root = {
        **{"serial": ROOT_SERIAL, "pool": vm.pool, "volume": first.get("name", ""), "size_bytes": vm.disk_bytes},
        **{"bus": "virtio", "read_only": False, "shareable": False, "io": vm.spec.get("io") or {}},
    }
    return [root, *vm.attached]


def find(vm: Vm, serial: str) -> dict[str, Any]:
    """Return one disk. Raises Problem `not_found`."""
    found = next((disk for disk in of(vm) if disk["serial"] == serial), None)
    if found is None:
        raise not_found("disk", serial)
    return found


def attach(session: Session, who: Principal, vm: Vm, new: NewDisk) -> Job:
    """Make the job that attaches a disk. Raises Problem."""
    actions.require_ready(vm)
    if new.serial == SEED_SERIAL or any(disk["serial"] == new.serial for disk in of(vm)):
        detail = f"Vm {vm.name!r} has a disk {new.serial!r} already."
        raise Problem(
            "already_exists", detail, "Choose another serial.", errors=[{"field": "serial", "message": detail}]
        )
    if len(vm.attached) >= MOST:
        raise Problem("conflict", f"Vm {vm.name!r} has {MOST} further disks already.", "Detach one of them first.")
    pool = names.check(new.pool, "pool") if new.pool is not None else vm.pool
    if new.volume is None:
        volume = f"{volume_prefix(vm.libvirt_name, vm.uuid)}data-{new.serial}"
        _require_room(session, vm, pool, new.size_bytes or 0)
    else:
        volume = names.check(new.volume, "volume")
        _require_own(session, who, volume)
    wanted = {
        **{"serial": new.serial, "pool": pool, "volume": volume, "bus": new.bus},
        **{"read_only": new.read_only, "shareable": new.shareable, "io": dict(new.io)},
    }
    disk: dict[str, Any] = dict(wanted)
    if new.size_bytes is not None:
        disk["size"] = format_size(new.size_bytes)
    if not new.io:
        del disk["io"]
    vm.attached = [*vm.attached, {**wanted, "size_bytes": new.size_bytes}]
    return _submit(session, who, vm, disk, "attach", before=None)


def change(
    session: Session,
    who: Principal,
    vm: Vm,
    serial: str,
    *,
    size_bytes: int | None,
    grow_by_bytes: int | None,
    io: Mapping[str, Any] | None,
) -> Job:
    """Make the job that grows a disk, with the file system on it, or limits it. Raises Problem."""
    actions.require_ready(vm)
    found = find(vm, serial)
    if serial == ROOT_SERIAL and io is None:
        return resizing.resize(session, who, vm, Resize(disk_bytes=size_bytes, grow_disk_by_bytes=grow_by_bytes))
    has = found["size_bytes"]
    size = size_bytes if grow_by_bytes is None else (has or 0) + grow_by_bytes
    if grow_by_bytes is not None and has is None:
        detail = f"The size of disk {serial!r} is not known yet."
        raise Problem("invalid", detail, "Give the size to grow to.", errors=[{"field": "grow_by", "message": detail}])
    if size is not None and has is not None and size < has:
        detail = f"Disk {serial!r} has {format_size(has)}, and a disk never shrinks."
        hint = "Attach a smaller one, and copy the files."
        raise Problem("invalid", detail, hint, errors=[{"field": "size", "message": "smaller than it is"}])
    disk: dict[str, Any] = {"serial": serial}
    if size is not None:
        if has is not None:
            resizing.require_modest(vm, size - has, "size" if grow_by_bytes is None else "grow_by")
        _require_room(session, vm, found["pool"], size - (has or 0))
        disk["size"] = format_size(size)
    if io is not None:
        disk["io"] = dict(io)
    after = {**found, "size_bytes": size or has, "io": found["io"] if io is None else dict(io)}
    if serial != ROOT_SERIAL:
        vm.attached = [after if each["serial"] == serial else each for each in vm.attached]
    elif size is not None:
        detail = "The size and the limits of the first disk are changed one at a time."
        raise Problem("invalid", detail, "Ask for one of them.")
    return _submit(session, who, vm, disk, "change", before=found)


def detach(session: Session, who: Principal, vm: Vm, serial: str) -> Job:
    """Make the job that detaches a disk. Raises Problem."""
    actions.require_ready(vm)
    found = find(vm, serial)
    if serial == ROOT_SERIAL:
        raise Problem("conflict", "A machine cannot do without its first disk.", "Delete the machine instead.")
    return _submit(session, who, vm, {"serial": serial, "state": "absent"}, "detach", before=found)


def settle(vm: Vm, context: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
    """Note what became of a disk when its job has ended; `result` is what the run says of it, None when it failed."""
    serial, action, before = context["serial"], context["action"], context["disk"]
    there = next((disk for disk in vm.attached if disk["serial"] == serial), None)
    done = result is not None
    others = [disk for disk in vm.attached if disk["serial"] != serial]
    if action == "detach":
        vm.attached = others if done else vm.attached
    elif action == "attach" and not done:
        vm.attached = others
    elif action == "change" and not done and there is not None:
        vm.attached = [before if disk is there else disk for disk in vm.attached]
    elif there is not None and result is not None:
        size = (result.get("disk") or {}).get("size_bytes")
        kept = {**there, "size_bytes": size if isinstance(size, int) and size > 0 else there["size_bytes"]}
        vm.attached = [kept if disk is there else disk for disk in vm.attached]


def _submit(
    session: Session, who: Principal, vm: Vm, disk: dict[str, Any], action: str, *, before: Mapping[str, Any] | None
) -> Job:
    vm.generation += 1
    variables = {"virtfleet_vm": actions.reference(vm), "virtfleet_disks": [disk]}
    context = {"action": action, "serial": disk["serial"], "disk": before}
    job = actions.submit(session, who, "vm.disk", [vm], variables=variables, context=context)
    ledger.audit(session, who, f"vm.disk.{action}", vm.id, job.id)
    ledger.changed(session, "vm", vm.id, "updated", vm.project_id, name=vm.name, state=vm.state)
    return job


def _require_own(session: Session, who: Principal, volume: str) -> None:
    """Let people attach only what was made for a machine of their project; volumes have no owners of their own."""
    if who.admin:
        return
    own = session.scalars(select(Vm).where(Vm.project_id == who.project_id))
    if not any(volume.startswith(f"{volume_prefix(vm.libvirt_name, vm.uuid)}data-") for vm in own):
        detail = f"Volume {volume!r} was not made for a machine of your project."
        raise Problem("forbidden", detail, "Ask an administrator to attach it.")


def _require_room(session: Session, vm: Vm, pool: str, more_bytes: int) -> None:
    if more_bytes > 0:
        root = {"pool": vm.pool, "size_bytes": vm.disk_bytes, "overlay": True}
        disks = [root, {"pool": pool, "size_bytes": more_bytes}]
        memory = vm.promised_memory_bytes
        resizing.require_room(session, vm, vcpus=vm.vcpus, memory_bytes=memory, disks=disks)
