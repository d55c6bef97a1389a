# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a machine: which kind its host can do, made, gone back to, deleted, and where they lie.

An internal snapshot lies inside the machine's qcow2 files, its memory too when the machine runs. An external one leaves
the disk as it is and lets the machine go on in a new file over it. A machine has one kind only: libvirt cannot delete
or go back through a chain of both.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import checkpoint as checkpoints
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_addresses
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

INTERNAL, EXTERNAL = "internal", "external"
MODES = ("auto", INTERNAL, EXTERNAL)


@dataclass(frozen=True)
class Wish:
    """A snapshot to make. `memory` None: with the memory of a machine that runs, when that can be."""

    name: str
    mode: str = "auto"
    memory: bool | None = None
    quiesce: bool = False
    description: str | None = None


@dataclass(frozen=True)
class Abilities:
    """What the host can do with this machine; a reason where it cannot."""

    internal: str | None
    """Why no internal snapshot can be made; None = it can."""
    reverts_external: bool
    """Whether libvirt can go back to, and delete, external snapshots in every case."""

    def as_dict(self) -> dict[str, Any]:
        """Return them as modules do."""
        return {
            "internal": self.internal is None,
            "internal_obstacle": self.internal,
            "external": True,
            "revert_external": self.reverts_external,
        }


def all_of(domain: libvirt.virDomain) -> list[dict[str, Any]]:
    """Return a machine's snapshots, oldest first.

    Each is `{name, mode, memory, state, created_at, description, parent, children, current, disks}`; disks are
    `{target, mode, path}`, with the file that holds the snapshot's content.
    """
    try:
        found = [_describe(snapshot) for snapshot in domain.listAllSnapshots(0)]
    except libvirtError as error:
        if code_of(error) == "refused":
            return []  # a driver without snapshots
        raise translate(error, f"list the snapshots of machine {domain.name()}") from error
    for each in found:
        each["children"] = sorted(other["name"] for other in found if other["parent"] == each["name"])
    parents = {each["name"]: each["parent"] for each in found}

    def depth(name: str | None) -> int:
        steps = 0
        while name is not None and steps < len(parents):
            name, steps = parents.get(name), steps + 1
        return steps

    # Moments are whole seconds: of two in the same one, a parent was made before its child.
    return sorted(found, key=lambda each: (each["created_at"], depth(each["name"]), each["name"]))


def _describe(snapshot: libvirt.virDomainSnapshot) -> dict[str, Any]:
    root = ET.fromstring(snapshot.getXMLDesc(0))
    below = {
        target.get("dev"): source.get("file") or source.get("dev")
        for disk in root.iterfind("domain/devices/disk")
        if (target := disk.find("target")) is not None and (source := disk.find("source")) is not None
    }
    disks = [
        # What an external snapshot keeps lies in the file that the machine had until then.
        {"target": disk.get("name"), "mode": disk.get("snapshot"), "path": below.get(disk.get("name"))}
        for disk in root.iterfind("disks/disk")
        if disk.get("snapshot") in (INTERNAL, EXTERNAL)
    ]
    memory = root.find("memory")
    kept = memory.get("snapshot", "no") if memory is not None else "no"
    modes = {disk["mode"] for disk in disks} | ({kept} - {"no"})
    created = datetime.fromtimestamp(int(root.findtext("creationTime") or 0), UTC)
    return {
        "name": root.findtext("name"),
        "mode": modes.pop() if len(modes) == 1 else "mixed" if modes else INTERNAL,
        "memory": kept != "no",
        "state": {"shutoff": "stopped", "disk-snapshot": "running"}.get(
            root.findtext("state") or "", root.findtext("state")
        ),
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "description": root.findtext("description") or "",
        "parent": root.findtext("parent/name"),
        "current": bool(snapshot.isCurrent(0)),
        "disks": disks,
    }


def abilities(connection: libvirt.virConnect, domain: libvirt.virDomain) -> Abilities:
    """Find out what can be done with this machine on this host."""
    machine = vms.describe(domain)
    raw = [disk["target"] for disk in vms.written_disks(machine) if disk["format"] != "qcow2"]
    obstacle = f"its disk {', '.join(raw)} is not qcow2" if raw else None
    if not vms.written_disks(machine):
        obstacle = "it has no disk that is written to"
    elif obstacle is None and _has_flash(domain):
        obstacle = "it boots by UEFI, whose variables lie outside of its disks"
    # A host says so itself, since there is libvirt that can: version numbers are not asked.
    features = ET.fromstring(connection.getCapabilities()).find("guest/features/externalSnapshot")
    return Abilities(obstacle, features is not None)


def _has_flash(domain: libvirt.virDomain) -> bool:
    loader = ET.fromstring(domain.XMLDesc(0)).find("os/loader")
    return loader is not None and loader.get("type") == "pflash"


def choose(domain: libvirt.virDomain, can: Abilities, wish: Wish, there: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Return the kind of a new snapshot, and whether it has the machine's memory. Raises VirtfleetError `refused`."""
    goal = f"make snapshot {wish.name} of machine {domain.name()}"
    active = bool(domain.isActive())
    kinds = {each["mode"] for each in there}
    # A running machine's internal snapshot has its memory; one of the disks alone is external.
    needs_external = wish.quiesce or (active and wish.memory is False)
    mode = wish.mode
    if mode == "auto":
        mode = EXTERNAL if needs_external or can.internal is not None else INTERNAL
        if mode == INTERNAL and kinds == {EXTERNAL}:
            mode = EXTERNAL
        if mode == EXTERNAL and not can.reverts_external:
            why = "the disks alone are wanted" if needs_external else can.internal or "its others are external"
            text = f"only an external one is possible ({why}), and this host's libvirt cannot go back to such a one"
            raise VirtfleetError(goal, text, "Ask for mode external if that is enough for you.", "refused")
    if mode == INTERNAL and needs_external:
        what = "quiesced" if wish.quiesce else "without its memory"
        text = f"an internal snapshot of a running machine cannot be {what}: its memory is saved with it"
        raise VirtfleetError(goal, text, "Leave that out, or use mode external.", "refused")
    if mode == INTERNAL and can.internal is not None:
        raise VirtfleetError(goal, f"an internal one is not possible: {can.internal}", "Use mode external.", "refused")
    if mode == EXTERNAL and wish.memory:
        text = "an external one has no memory here"
        raise VirtfleetError(goal, text, "Leave memory out, or use mode internal.", "refused")
    if kinds - {mode}:
        other = ", ".join(sorted(kinds - {mode}))
        text = f"it would be {mode}, and the machine has {other} ones: libvirt cannot go back through a chain of both"
        raise VirtfleetError(goal, text, "Use the other mode, or delete those first.", "refused")
    if wish.quiesce and not vm_addresses.agent_answers(domain):
        text = "no agent answers inside the machine, so its file systems cannot be made quiet"
        raise VirtfleetError(goal, text, "Install and start qemu-guest-agent in it, or leave quiesce out.", "refused")
    return mode, active and mode == INTERNAL


def make(domain: libvirt.virDomain, wish: Wish, mode: str, *, memory: bool, deadline: Deadline) -> dict[str, Any]:
    """Make a snapshot and return it as it is then. Raises VirtfleetError; a half-made one is removed again."""
    goal = f"make snapshot {wish.name} of machine {domain.name()}"
    machine = vms.describe(domain)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC if mode == EXTERNAL else 0
    if mode == EXTERNAL:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if wish.quiesce else 0
    document = _document(machine, wish, mode, memory=memory)
    try:
        bounded(lambda: domain.snapshotCreateXML(document, flags), deadline, goal)
    except libvirtError as error:
        raise translate(error, goal) from error
    if mode == EXTERNAL:
        _note_volumes(domain)
    made = next((each for each in all_of(domain) if each["name"] == wish.name), None)
    if made is None or made["mode"] != mode:
        raise VirtfleetError(goal, "libvirt made it, but does not show it as wanted", "Look: virsh snapshot-list.")
    return made


def _document(machine: dict[str, Any], wish: Wish, mode: str, *, memory: bool) -> str:
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = wish.name
    if wish.description:
        ET.SubElement(root, "description").text = wish.description
    ET.SubElement(root, "memory", snapshot=INTERNAL if memory else "no")
    disks = ET.SubElement(root, "disks")
    written = {disk["target"] for disk in vms.written_disks(machine)}
    for disk in machine["disks"]:
        element = ET.SubElement(disks, "disk", name=disk["target"])
        element.set("snapshot", mode if disk["target"] in written else "no")
        if mode == EXTERNAL and disk["target"] in written:
            ET.SubElement(element, "driver", type="qcow2")
            ET.SubElement(element, "source", file=f"{disk['source']}.{wish.name}")
    return ET.tostring(root, encoding="unicode")


def _note_volumes(domain: libvirt.virDomain) -> None:
    """Write the files that the machine goes on in into its metadata, so that they go when it goes."""
    connection = domain.connect()
    machine = vms.describe(domain)
    kept = metadata.read(domain.XMLDesc(0))
    if not kept:
        return
    made = list(kept.get("made_volumes") or [])
    own = {each["name"] for each in made}
    for disk in vms.written_disks(machine):
        for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            folder, _slash, name = str(disk["source"]).rpartition("/")
            if ET.fromstring(pool.XMLDesc(0)).findtext("target/path") != folder or name in own:
                continue
            pool.refresh(0)
            made.insert(0, {"pool": pool.name(), "name": name})  # before what it lies over
    element = metadata.build({**kept, "made_volumes": made})
    element.tag = "vm"  # libvirt puts it into the namespace itself
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
    document = ET.tostring(element, encoding="unicode")
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, document, "virtfleet", metadata.NAMESPACE, flags)


def find(domain: libvirt.virDomain, name: str) -> libvirt.virDomainSnapshot | None:
    """Return the snapshot of that name, or None."""
    try:
        return domain.snapshotLookupByName(name, 0)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up snapshot {name} of machine {domain.name()}") from error


def revert(domain: libvirt.virDomain, name: str, *, can: Abilities, deadline: Deadline) -> None:
    """Bring a machine back to where it was. What it wrote since is lost. Raises VirtfleetError.

    Its checkpoints go: they do not know what the way back changes, and QEMU refuses it while they are there.
    """
    goal = f"revert machine {domain.name()} to snapshot {name}"
    check_revert(domain, name, can=can)
    snapshot = find(domain, name)
    checkpoints.remove_all(domain)
    try:
        bounded(lambda: domain.revertToSnapshot(snapshot, 0), deadline, goal)
    except libvirtError as error:
        raise translate(error, goal) from error


def check_revert(domain: libvirt.virDomain, name: str, *, can: Abilities) -> None:
    """Refuse what cannot be gone back to. Raises VirtfleetError `not_found` or `refused`."""
    goal = f"revert machine {domain.name()} to snapshot {name}"
    found = next((each for each in all_of(domain) if each["name"] == name), None)
    if found is None:
        known = ", ".join(each["name"] for each in all_of(domain)) or "none at all"
        raise VirtfleetError(goal, "there is no such snapshot", f"It has {known}.", "not_found")
    if found["mode"] != INTERNAL and not can.reverts_external:
        where = ", ".join(str(disk["path"]) for disk in found["disks"])
        text = f"it is {found['mode']}, and this host's libvirt cannot go back to such a one"
        raise VirtfleetError(goal, text, f"Its content lies in {where}.", "refused")


def delete(domain: libvirt.virDomain, name: str, *, children: bool, deadline: Deadline) -> None:
    """Delete a snapshot, with `children` those made after it too; otherwise they stay. The machine goes on as it is."""
    snapshot = find(domain, name)
    if snapshot is None:
        return
    goal = f"delete snapshot {name} of machine {domain.name()}"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN if children else 0
    try:
        bounded(lambda: snapshot.delete(flags), deadline, goal)
    except libvirtError as error:
        if code_of(error) != "not_found":
            raise translate(error, goal) from error


def superseded(there: Sequence[dict[str, Any]], name: str, prefix: str, keep: int) -> list[str]:
    """Return the oldest of the snapshots whose names begin so, beyond the `keep` newest; never `name`, the new one."""
    ours = [each["name"] for each in there if each["name"].startswith(prefix) and each["name"] != name]
    return ours[: max(0, len(ours) - (keep - 1))]
