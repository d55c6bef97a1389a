# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a machine back from a backup: as a new machine, or its disks in place of those that it has now."""

from __future__ import annotations

import contextlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import clone as clone_xml
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import checkpoint as checkpoints
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_making, volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_clone_parts import cards_of
from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_NOTE_BYTES = 65536
_GENERATION = re.compile(r"\.r[0-9]+$")


@dataclass(frozen=True)
class Origin:
    """A backup to restore, with the backups that it lies over, newest first."""

    pool: libvirt.virStoragePool
    links: tuple[dict[str, Any], ...]

    @property
    def manifest(self) -> dict[str, Any]:
        """What the backup tells of itself."""
        return self.links[0]

    def file_of(self, target: str) -> libvirt.virStorageVol:
        """Return the volume that shows all of a disk."""
        name = backups.file_of(self.manifest["uuid"], self.manifest["name"], target)
        found = volumes.find(self.pool, name)
        if found is None:
            wanted = f"restore backup {self.manifest['name']}"
            raise VirtfleetError(wanted, f"its file {name} is missing", "Use an older backup.", "not_found")
        return found


@dataclass(frozen=True)
class New:
    """A machine to make. `metadata` are noted about it.

    `networks` and `cloud_init` are as module vm takes them. Without the first it has the cards that it had, with other
    MACs; without the second it has no seed.
    """

    name: str
    uuid: str
    pool: libvirt.virStoragePool
    metadata: dict[str, Any]
    networks: Sequence[dict[str, Any]] | None = None
    cloud_init: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Copy:
    target: str
    pool: libvirt.virStoragePool
    name: str


def as_new(connection: libvirt.virConnect, origin: Origin, new: New, deadline: Deadline) -> libvirt.virDomain:
    """Make a machine with a new identity from a backup. It is not started.

    Disks that the backup has not (its seed among them) are left out. Raises VirtfleetError; what was made is removed.
    """
    wanted = f"restore backup {origin.manifest['name']} as machine {new.name}"
    prefix = volume_prefix(new.name, new.uuid)
    targets = [disk["target"] for disk in origin.manifest["disks"]]
    labels = ["root", *(f"disk{number}" for number in range(1, len(targets)))]
    copies = [_Copy(target, new.pool, f"{prefix}{label}") for target, label in zip(targets, labels, strict=True)]
    _clear_leftovers(connection, new.pool, prefix)
    for copy in copies:
        if volumes.find(copy.pool, copy.name) is not None:
            text = f"pool {copy.pool.name()} has a volume {copy.name} already"
            raise VirtfleetError(wanted, text, "Use another UUID, or delete it if nobody needs it.", "already_exists")
    root = ET.fromstring(origin.manifest["domain_xml"])
    # What is wrong with it is found before anything is copied.
    networks, cards, files = _inside(connection, root, new, wanted)
    seed_name = f"{prefix}seed.iso"
    made = [{"pool": copy.pool.name(), "name": copy.name} for copy in copies]
    made += [{"pool": new.pool.name(), "name": seed_name}] if files is not None else []
    kept: dict[str, Any] = {**new.metadata, "made_volumes": made}
    fixed = [nic["address"].partition("/")[0] for nic in networks if nic["address"]]
    kept |= {"fixed_addresses": fixed} if fixed and files is not None else {}
    _begin(new.pool, prefix, made)
    try:
        paths = _copy(origin, copies, deadline, wanted)
        path = volumes.write_bytes(new.pool, seed_name, seed.image(files)).path() if files is not None else None
        return vms.define_new(connection, _renewed(root, new, paths, kept, cards=cards, seed_path=path))
    except libvirtError as error:
        raise translate(error, wanted) from error
    finally:
        _clear_leftovers(connection, new.pool, prefix)


def check_new(origin: Origin, new: New) -> None:
    """Check what a new machine is to have of its own. Raises VirtfleetError `invalid` or `not_found`."""
    wanted = f"restore backup {origin.manifest['name']} as machine {new.name}"
    _inside(new.pool.connect(), ET.fromstring(origin.manifest["domain_xml"]), new, wanted)


def _inside(
    connection: libvirt.virConnect, root: ET.Element, new: New, wanted: str
) -> tuple[list[dict[str, Any]], list[ET.Element] | None, dict[str, bytes] | None]:
    """Return the networks of a new machine, its cards, None for those that it had, and the files of its seed."""
    cards: list[ET.Element] | None = None
    if new.networks is not None:
        networks, cards = cards_of(connection, root, new.networks, new.uuid, wanted)
    else:
        macs = [clone_xml.mac_of(new.uuid, number) for number in range(len(root.findall("devices/interface")))]
        networks = [{"mac": mac, "address": None, "gateway": None, "dns": None} for mac in macs]
    if new.cloud_init is None:
        return networks, cards, None
    files = vm_making.seed_files(new.cloud_init, networks, instance_id=new.uuid, name=new.name, wanted=wanted)
    return networks, cards, files


def in_place(domain: libvirt.virDomain, origin: Origin, deadline: Deadline) -> None:
    """Give a stopped machine the disks of a backup; the ones that it has now go when the new ones stand.

    Its settings stay as they are. Raises VirtfleetError; the machine is as it was then.
    """
    wanted = f"restore backup {origin.manifest['name']} of machine {domain.name()} in place"
    connection = domain.connect()
    before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    machine = vms.describe(domain)
    old = {disk["target"]: disk["source"] for disk in vms.written_disks(machine)}
    prefix = volume_prefix(domain.name(), domain.UUIDString())
    place, copies, renamed = None, [], {}
    for disk in origin.manifest["disks"]:
        try:
            volume = connection.storageVolLookupByPath(old[disk["target"]])
            pool = volume.storagePoolLookupByVolume()
        except libvirtError as error:
            text = f"its disk {disk['target']} lies in no pool"
            raise VirtfleetError(wanted, text, "Make a pool of that folder with module pool.", "refused") from error
        if place is None:
            place = pool
            _clear_leftovers(connection, place, prefix)
        copies.append(_Copy(disk["target"], pool, _next_name(pool, volume.name())))
        renamed[pool.name(), volume.name()] = copies[-1].name
    if place is None:
        raise VirtfleetError(wanted, "the backup has no disk", "Use another one.", "invalid")
    new = [{"pool": copy.pool.name(), "name": copy.name} for copy in copies]
    _begin(place, prefix, [*new, *({"pool": pool, "name": name} for pool, name in renamed)])
    try:
        paths = _copy(origin, copies, deadline, wanted)
        root = ET.fromstring(before)
        _replace_disks(root, paths)
        if metadata.of(root):
            made = [
                {**each, "name": renamed.get((each["pool"], each["name"]), each["name"])}
                for each in machine["made_volumes"]
            ]
            _note(root, {"made_volumes": made})
        connection.defineXML(ET.tostring(root, encoding="unicode"))
        checkpoints.forget_all(domain)
    except libvirtError as error:
        raise translate(error, wanted) from error
    finally:
        _clear_leftovers(connection, place, prefix)


def _begin(pool: libvirt.virStoragePool, prefix: str, listed: Sequence[dict[str, str]]) -> None:
    """Note which volumes a restore deals with: those that no machine uses when it has ended are left over."""
    volumes.write_text(pool, f"{prefix}restoring", json.dumps(listed))


def _clear_leftovers(connection: libvirt.virConnect, pool: libvirt.virStoragePool, prefix: str) -> None:
    """Delete what a restore, this one or one that died, does not need: the copies if it failed, else the old disks.

    What a machine has as a disk, or other volumes lie over, stays.
    """
    note = volumes.find(pool, f"{prefix}restoring")
    if note is None:
        return
    with contextlib.suppress(ValueError):
        for each in json.loads(volumes.read_text(note, _NOTE_BYTES)):
            with contextlib.suppress(VirtfleetError, libvirtError):
                there = connection.storagePoolLookupByName(each["pool"])
                volume_users.check_removal(connection, there, there.storageVolLookupByName(each["name"]))
                volumes.delete(there, each["name"])
    volumes.delete(pool, f"{prefix}restoring")


def check_in_place(domain: libvirt.virDomain, origin: Origin, *, may_stop: bool) -> None:
    """Refuse what cannot be restored in place. Raises VirtfleetError `refused`."""
    wanted = f"restore backup {origin.manifest['name']} of machine {domain.name()} in place"
    machine = vms.describe(domain)
    has = {disk["target"] for disk in vms.written_disks(machine)}
    missing = sorted({disk["target"] for disk in origin.manifest["disks"]} - has)
    if missing:
        text = f"the machine has no disk {', '.join(missing)} any more"
        raise VirtfleetError(wanted, text, "Restore it as a new machine, or attach such a disk.", "refused")
    if domain.snapshotNum(0):
        text = "it has snapshots, which lie in the disks that would be replaced"
        raise VirtfleetError(wanted, text, "Delete them first: module vm_snapshot.", "refused")
    if domain.isActive() and not may_stop:
        text = "the machine is running"
        raise VirtfleetError(wanted, text, "Stop it first, or allow it with stop.", "refused")
    if not domain.isActive() and domain.hasManagedSaveImage(0):
        text = "its memory is saved, which would not fit the disks any more"
        raise VirtfleetError(wanted, text, "Start it and stop it first.", "refused")


def _copy(origin: Origin, copies: Sequence[_Copy], deadline: Deadline, wanted: str) -> dict[str, str]:
    """Copy each disk out of its chain of files into one, and return where these lie."""
    paths = {}
    for copy in copies:
        source = origin.file_of(copy.target)
        # The definition says what the disk was; a chain is qcow2, and so is what comes out of it.
        work = partial(volumes.make_copy, copy.pool, copy.name, source, None, "qcow2")
        paths[copy.target] = bounded(work, deadline, wanted).path()
    return paths


def _next_name(pool: libvirt.virStoragePool, name: str) -> str:
    """Return a free name for what takes a volume's place: libvirt cannot rename one."""
    stem = _GENERATION.sub("", name)
    there = set(pool.listVolumes())
    return next(f"{stem}.r{number}" for number in range(1, len(there) + 2) if f"{stem}.r{number}" not in there)


def _renewed(
    root: ET.Element,
    new: New,
    paths: dict[str, str],
    kept: dict[str, Any],
    *,
    cards: Sequence[ET.Element] | None,
    seed_path: str | None,
) -> str:
    """Return a definition with a new identity, over the disks of `paths` and no others but the seed."""
    devices = root.find("devices")
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        if devices is not None and (target is None or target.get("dev") not in paths):
            devices.remove(disk)
    _replace_disks(root, paths)  # they lie there already, so that there is nothing left to lay
    macs = [clone_xml.mac_of(new.uuid, number) for number in range(len(root.findall("devices/interface")))]
    identity = clone_xml.Identity(new.name, new.uuid, kept, sources={}, cards=cards, macs=macs, seed=seed_path)
    return ET.tostring(clone_xml.clone(root, identity), encoding="unicode")


def _drop(parent: ET.Element, *tags: str) -> None:
    for child in [child for child in parent if child.tag in tags]:
        parent.remove(child)


def _replace_disks(root: ET.Element, paths: dict[str, str]) -> None:
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        path = paths.get(target.get("dev", "")) if target is not None else None
        if path is None:
            continue
        _drop(disk, "source", "backingStore", "mirror")
        disk.set("type", "file")
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", name="qemu")
        driver.set("type", "qcow2")
        ET.SubElement(disk, "source", file=path)


def _note(root: ET.Element, values: dict[str, Any]) -> None:
    """Write values into the machine's metadata, over those that are there."""
    if not values:
        return
    kept = metadata.of(root)
    parent = root.find("metadata")
    if parent is None:
        parent = ET.SubElement(root, "metadata")
    _drop(parent, metadata.TAG)
    parent.append(metadata.build({**kept, **values}))
