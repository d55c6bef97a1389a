# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of a machine: libvirt's marks in its qcow2 disks, from which on what changes is noted (dirty bitmaps)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


def all_of(domain: libvirt.virDomain) -> list[dict[str, Any]]:
    """Return a machine's checkpoints, oldest first: `{name, description, created_at, parent, disks: [targets]}`."""
    try:
        documents = [each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for each in _listed(domain)]
    except libvirtError as error:
        raise translate(error, f"read the checkpoints of machine {domain.name()}") from error
    found = []
    for document in documents:
        root = ET.fromstring(document)
        created = datetime.fromtimestamp(int(root.findtext("creationTime") or 0), UTC)
        found.append(
            {
                "name": root.findtext("name"),
                "description": root.findtext("description") or "",
                "created_at": created.isoformat().replace("+00:00", "Z"),
                "parent": root.findtext("parent/name"),
                "disks": [
                    disk.get("name") for disk in root.iterfind("disks/disk") if disk.get("checkpoint") == "bitmap"
                ],
            }
        )
    return found


def _listed(domain: libvirt.virDomain) -> list[libvirt.virDomainCheckpoint]:
    try:
        return list(domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL))
    except libvirtError as error:
        if code_of(error) == "refused":
            return []  # a driver without checkpoints
        raise


def find(domain: libvirt.virDomain, name: str) -> libvirt.virDomainCheckpoint | None:
    """Return the checkpoint of that name, or None."""
    try:
        return domain.checkpointLookupByName(name, 0)
    except libvirtError as error:
        if code_of(error) in ("not_found", "refused"):
            return None
        raise translate(error, f"look up checkpoint {name} of machine {domain.name()}") from error


def document(name: str, disks: Sequence[dict[str, Any]], marked: Sequence[str], description: str = "") -> str:
    """Return the `<domaincheckpoint>` that marks the disks `marked` (targets) of a machine's `disks`."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    if description:
        ET.SubElement(root, "description").text = description
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        ET.SubElement(listed, "disk", name=disk["target"], checkpoint="bitmap" if disk["target"] in marked else "no")
    return ET.tostring(root, encoding="unicode")


def marked_disks(machine: dict[str, Any], wanted: str) -> list[str]:
    """Return the targets of the disks that can be marked. Raises VirtfleetError `refused` where that is not possible.

    Only a running machine's QEMU can make a mark, and only qcow2 files hold one.
    """
    written = vms.written_disks(machine)
    raw = [disk["target"] for disk in written if disk["format"] != "qcow2"]
    obstacle = None
    if machine["state"] not in ("running", "paused"):
        obstacle = "the machine is stopped"
    elif raw or not written:
        obstacle = f"its disk {', '.join(raw)} is not qcow2" if raw else "it has no disk that is written to"
    if obstacle is not None:
        raise VirtfleetError(wanted, obstacle, "Only a running machine's qcow2 disks can be marked.", "refused")
    return [disk["target"] for disk in written]


def make(domain: libvirt.virDomain, name: str, description: str = "") -> None:
    """Mark all disks of a running machine that are written to. Raises VirtfleetError."""
    wanted = f"make checkpoint {name} of machine {domain.name()}"
    machine = vms.describe(domain)
    marked = marked_disks(machine, wanted)
    try:
        domain.checkpointCreateXML(document(name, machine["disks"], marked, description), 0)
    except libvirtError as error:
        raise translate(error, wanted) from error


def delete(domain: libvirt.virDomain, name: str) -> bool:
    """Delete a checkpoint and return whether there was one; an older one then notes what this one did.

    A stopped machine's mark cannot be taken out of its file: only what libvirt knows of it is deleted then.
    """
    found = find(domain, name)
    if found is None:
        return False
    flags = 0 if domain.isActive() else libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    try:
        found.delete(flags)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return False
        raise translate(error, f"delete checkpoint {name} of machine {domain.name()}") from error
    return True


def forget_all(domain: libvirt.virDomain) -> None:
    """Forget all checkpoints of a machine whose disks have been replaced by others: they hold no marks."""
    for each in _listed(domain):
        try:
            each.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        except libvirtError as error:
            if code_of(error) != "not_found":
                raise translate(error, f"forget the checkpoints of machine {domain.name()}") from error


def remove_all(domain: libvirt.virDomain) -> None:
    """Delete all checkpoints with their marks, so that the disks can be brought back to a snapshot.

    QEMU refuses to go back while there are marks, and libvirt has stopped the machine by then. A stopped machine is
    started halted for it, and stopped again: it does not run a single instruction.
    """
    names = [each.getName() for each in _listed(domain)]
    if not names:
        return
    woken = not domain.isActive()
    if woken:
        vms.start(domain, paused=True)
    try:
        for name in names:
            delete(domain, name)
    finally:
        if woken:
            vms.destroy(domain)
