# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a backup of a machine: of a running one by libvirt's backup job, of a stopped one by copying its volumes."""

from __future__ import annotations

import contextlib
import json
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import agent, vm_addresses
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import checkpoint as checkpoints
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_THAW_SECONDS = 10.0
"""What a thaw may take on top of the deadline: a machine must not stay frozen because time was up."""


@dataclass(frozen=True)
class Wish:
    """A backup to make. `kind` incremental becomes full where an increment is not possible."""

    name: str
    kind: str = backups.FULL
    quiesce: bool = False


@dataclass(frozen=True)
class Way:
    """How a backup can be made now."""

    kind: str
    parent: dict[str, Any] | None
    """The manifest of the backup that an increment lies over."""
    marked: tuple[str, ...]
    """The disks that get a checkpoint."""
    reason: str | None
    """Why it is a full one although an increment was wanted."""


def choose(domain: libvirt.virDomain, wish: Wish, there: Sequence[dict[str, Any]]) -> Way:
    """Find out how a backup can be made. `there` is what the pool has of this machine. Raises VirtfleetError.

    An increment needs a checkpoint with sound marks on just the disks that the machine has, and the backup that was
    made with it.
    """
    wanted = f"make backup {wish.name} of machine {domain.name()}"
    machine = vms.describe(domain)
    written = vms.written_disks(machine)
    if not written:
        raise VirtfleetError(wanted, "it has no disk that is written to", "There is nothing to back up.", "refused")
    running = machine["state"] in ("running", "paused")
    if wish.quiesce and running and not vm_addresses.agent_answers(domain):
        text = "no agent answers inside the machine, so its file systems cannot be made quiet"
        raise VirtfleetError(wanted, text, "Install and start qemu-guest-agent in it, or leave quiesce out.", "refused")
    try:
        marked = tuple(checkpoints.marked_disks(machine, wanted))
    except VirtfleetError as error:
        return Way(backups.FULL, None, (), error.obstacle if wish.kind == backups.INCREMENTAL else None)
    if wish.kind == backups.FULL:
        return Way(backups.FULL, None, marked, None)
    parent, reason = _parent(domain, marked, there)
    return Way(backups.FULL if parent is None else backups.INCREMENTAL, parent, marked, reason)


def _parent(
    domain: libvirt.virDomain, marked: Sequence[str], there: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the backup that an increment can lie over, or why there is none."""
    marks = {each["name"]: each["disks"] for each in checkpoints.all_of(domain)}
    found = next((each for each in reversed(there) if each["checkpoint"] in marks), None)
    if found is None:
        return None, "the pool has no backup with a checkpoint that the machine still has"
    if set(marks[found["checkpoint"]]) != set(marked) or {each["target"] for each in found["disks"]} != set(marked):
        return None, f"the machine has other disks than backup {found['name']}"
    try:
        # How much has changed since: of a mark that is broken or gone, libvirt cannot say.
        checkpoint = domain.checkpointLookupByName(found["checkpoint"], 0)
        checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE | libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
        backups.chain(there, found)
    except libvirtError:
        return None, f"the mark of checkpoint {found['checkpoint']} is broken or gone"
    except VirtfleetError as error:
        return None, error.obstacle
    return found, None


def predict(domain: libvirt.virDomain, wish: Wish, way: Way) -> dict[str, Any]:
    """Return what the manifest will tell, as far as it is known before."""
    machine = vms.describe(domain)
    return {
        "uuid": domain.UUIDString(),
        "name": wish.name,
        "vm": domain.name(),
        "kind": way.kind,
        "parent": way.parent["name"] if way.parent is not None else None,
        "checkpoint": None,
        "created_at": None,
        "quiesced": wish.quiesce and machine["state"] == "running",
        "state": machine["state"],
        "disks": [
            {"target": disk["target"], "capacity_bytes": None, "size_bytes": 0, "sha256": None}
            for disk in vms.written_disks(machine)
        ],
    }


def clear_leftovers(
    domain: libvirt.virDomain | None, pool: libvirt.virStoragePool, uuid: str, deadline: Deadline
) -> None:
    """Undo what a run that died has left of a machine's backups: its freeze, its job, its files and its checkpoint.

    libvirt goes on with a job whose client died; that one is ended. A backup that has its manifest is whole: the run
    died right after writing it, and only its note goes.
    """
    whole = {each["name"] for each in backups.all_in(pool, uuid=uuid)}
    for name, note in backups.begun(pool, uuid).items():
        if name in whole:
            volumes.delete(pool, backups.part_of(uuid, name))
            continue
        if domain is not None and domain.isActive():
            if note.get("quiesce"):
                with contextlib.suppress(VirtfleetError):  # an agent that is gone holds nothing frozen
                    _thaw(domain, "end a backup that was begun")
            _abort(domain, deadline)
        if domain is not None and isinstance(note.get("checkpoint"), str):
            checkpoints.delete(domain, note["checkpoint"])
        backups.remove(pool, uuid, name)


@dataclass(frozen=True)
class _Task:
    """A backup that is being made."""

    domain: libvirt.virDomain
    pool: libvirt.virStoragePool
    name: str
    machine: dict[str, Any]
    """What it is and has, as `vms.describe` tells."""
    deadline: Deadline
    wanted: str

    def file_of(self, target: str, name: str | None = None) -> str:
        """Return the name of a disk's file in this backup, or in that of `name`."""
        return backups.file_of(self.domain.UUIDString(), name or self.name, target)

    @property
    def disks(self) -> list[dict[str, Any]]:
        """The disks that are backed up."""
        return vms.written_disks(self.machine)


def make(
    domain: libvirt.virDomain, pool: libvirt.virStoragePool, wish: Wish, way: Way, deadline: Deadline
) -> tuple[dict[str, Any], str | None]:
    """Make a backup; return its manifest, and why it is a full one although an increment was wanted.

    Raises VirtfleetError. What fails half-way is ended and removed, and the machine is thawed whatever happens.
    """
    wanted = f"make backup {wish.name} of machine {domain.name()}"
    if domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        hint = "Wait for its end, or end it: virsh domjobabort."
        raise VirtfleetError(wanted, "the machine is being migrated, saved or backed up", hint, "refused")
    task = _Task(domain, pool, wish.name, vms.describe(domain), deadline, wanted)
    try:
        return _made(task, way, quiesce=wish.quiesce), way.reason
    except libvirtError as error:
        broken = (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT)
        if way.parent is None or error.get_error_code() not in broken:
            raise translate(error, wanted) from error
        reason = f"the mark of checkpoint {way.parent['checkpoint']} is broken or gone"
    try:
        return _made(task, Way(backups.FULL, None, way.marked, reason), quiesce=wish.quiesce), reason
    except libvirtError as error:
        raise translate(error, wanted) from error


def _made(task: _Task, way: Way, *, quiesce: bool) -> dict[str, Any]:
    domain, pool, machine = task.domain, task.pool, task.machine
    uuid = domain.UUIDString()
    checkpoint = f"{task.name}-{uuids.uuid4().hex[:8]}" if way.marked else None
    quiesce = quiesce and machine["state"] == "running"
    note = json.dumps({"quiesce": quiesce, "checkpoint": checkpoint})
    # Exclusive: of two runs that make the same backup, one fails here.
    volumes.write_text(pool, backups.part_of(uuid, task.name), note)
    try:
        moment = datetime.now(UTC)
        if domain.isActive():
            _run_job(task, way, checkpoint, quiesce=quiesce)
        else:
            _copy(task)
        pools.refresh(pool, task.deadline)
        manifest = {
            "uuid": uuid,
            "name": task.name,
            "vm": domain.name(),
            "kind": way.kind,
            "parent": way.parent["name"] if way.parent is not None else None,
            "checkpoint": checkpoint,
            "created_at": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "quiesced": quiesce,
            "state": machine["state"],
            "domain_xml": domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
            "disks": [_written(task, disk["target"]) for disk in task.disks],
        }
        backups.write(pool, manifest)
    except BaseException:
        _take_back(task, checkpoint)
        raise
    volumes.delete(pool, backups.part_of(uuid, task.name))
    return manifest


def _written(task: _Task, target: str) -> dict[str, Any]:
    volume = volumes.find(task.pool, task.file_of(target))
    if volume is None:
        raise VirtfleetError(task.wanted, f"the file of disk {target} is not there any more", "Try again.")
    size, sha256 = backups.digest(volume, task.deadline, task.wanted)
    capacity = volumes.describe(volume)["capacity_bytes"]
    return {"target": target, "capacity_bytes": capacity, "size_bytes": size, "sha256": sha256}


def _take_back(task: _Task, checkpoint: str | None) -> None:
    """End the job and remove what there is of it. What cannot be done now, the next run does: its note is left then."""
    with contextlib.suppress(VirtfleetError, libvirtError):
        grace = Deadline(_THAW_SECONDS)
        _abort(task.domain, grace)
        if checkpoint is not None:
            checkpoints.delete(task.domain, checkpoint)
        pools.refresh(task.pool, grace)
        backups.remove(task.pool, task.domain.UUIDString(), task.name)


def _abort(domain: libvirt.virDomain, deadline: Deadline) -> None:
    """End a backup job, if there is one."""

    def job() -> int:
        return int(domain.jobStats().get("operation", 0)) if domain.isActive() else 0

    if job() == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        with contextlib.suppress(libvirtError):  # it has just ended
            domain.abortJob()
        wait_for(lambda: job() != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP, deadline, "the end of a backup")


def _run_job(task: _Task, way: Way, checkpoint: str | None, *, quiesce: bool) -> None:
    """Let libvirt copy the disks as they are at this moment, while the machine goes on."""
    domain, machine = task.domain, task.machine
    paths = {disk["target"]: _file_for(task, way, disk["target"]).path() for disk in task.disks}
    job = _job(machine, paths, way.parent["checkpoint"] if way.parent is not None else None)
    marks = checkpoints.document(checkpoint, machine["disks"], way.marked) if checkpoint is not None else None
    flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
    with _frozen(domain, task.deadline, task.wanted) if quiesce else contextlib.nullcontext():
        # What is written is what the disks hold now: the machine can go on at once.
        bounded(lambda: domain.backupBegin(job, marks, flags), task.deadline, task.wanted)
    wait_for(lambda: not domain.isActive() or not domain.jobInfo()[0], task.deadline, task.wanted)
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED) if domain.isActive() else {}
    if not ended.get("success"):
        said = "its job was ended" if domain.isActive() else "the machine was stopped meanwhile"
        hint = "Look at the room in the pool and at the log of the libvirt daemon on the host."
        raise VirtfleetError(task.wanted, ended.get("errmsg") or said, hint)


def _file_for(task: _Task, way: Way, target: str) -> libvirt.virStorageVol:
    """Make the file that a disk is written into; that of an increment lies over its parent's."""
    capacity = task.domain.blockInfo(target)[0]
    if way.parent is None:
        return volumes.make_empty(task.pool, task.file_of(target), capacity)
    below = task.file_of(target, way.parent["name"])
    base = volumes.find(task.pool, below)
    if base is None:
        text = f"{below}, which it would lie over, is missing"
        raise VirtfleetError(task.wanted, text, "Make a full backup.", "not_found")
    return volumes.make_overlay(task.pool, task.file_of(target), base, capacity)


def _job(machine: dict[str, Any], paths: dict[str, str], since: str | None) -> str:
    root = ET.Element("domainbackup", mode="push")
    if since is not None:
        ET.SubElement(root, "incremental").text = since
    disks = ET.SubElement(root, "disks")
    for disk in machine["disks"]:
        if disk["target"] not in paths:
            ET.SubElement(disks, "disk", name=disk["target"], backup="no")
            continue
        element = ET.SubElement(disks, "disk", name=disk["target"], backup="yes", type="file")
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "target", file=paths[disk["target"]])
    return ET.tostring(root, encoding="unicode")


@contextlib.contextmanager
def _frozen(domain: libvirt.virDomain, deadline: Deadline, wanted: str) -> Iterator[None]:
    """Hold all writing inside the machine. One that somebody has frozen before stays frozen."""
    if agent.is_frozen(domain, deadline, wanted):
        yield
        return
    try:
        agent.freeze(domain, deadline, wanted)
        yield
    finally:
        _thaw(domain, wanted)


def _thaw(domain: libvirt.virDomain, wanted: str) -> None:
    grace = Deadline(_THAW_SECONDS)
    if agent.is_frozen(domain, grace, wanted):
        agent.thaw(domain, grace, wanted)


def _copy(task: _Task) -> None:
    """Copy the disks of a stopped machine, with all that they lie over."""
    for disk in task.disks:
        try:
            original = task.domain.connect().storageVolLookupByPath(disk["source"])
        except libvirtError as error:
            text = f"its disk {disk['target']} lies in no pool, and the machine is stopped"
            hint = "Start the machine, or make a pool of that folder with module pool."
            raise VirtfleetError(task.wanted, text, hint, "refused") from error
        copy = partial(volumes.make_copy, task.pool, task.file_of(disk["target"]), original, None, "qcow2")
        bounded(copy, task.deadline, task.wanted)
    if task.domain.isActive():
        raise VirtfleetError(task.wanted, "the machine was started meanwhile", "Try again.", "refused")
