# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots inside the files of a clone, which came with their bytes: gone back to, and taken out.

libvirt does that for machines only (it has no such call for volumes). So the clone is told, in libvirt's own words for
it ("redefine"), that it has these snapshots: of its disks alone, for the memory in them belongs to the other machine.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices
from ansible_collections.virtfleet.core.plugins.module_utils.errors import translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.snapshot import INTERNAL
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


def take_out(
    domain: libvirt.virDomain, there: Sequence[Mapping[str, Any]], back_to: str | None, deadline: Deadline
) -> None:
    """Bring the disks of a stopped clone to one of the snapshots, if one is named, and delete all of them.

    `there` are the source's internal snapshots, as `snapshot.all_of` tells. Raises VirtfleetError.
    """
    goal = f"take the snapshots out of the disks of machine {domain.name()}"
    root = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    # The wanted one first: it may share its name with nothing else, and needs the others no more.
    order = sorted(there, key=lambda each: each["name"] != back_to)
    try:
        for each in order:
            document = _document(root, each)
            known = domain.snapshotCreateXML(document, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
            if each["name"] == back_to:
                bounded(partial(domain.revertToSnapshot, known, 0), deadline, goal)
            bounded(partial(known.delete, 0), deadline, goal)
    except libvirtError as error:
        raise translate(error, goal) from error


def _document(root: ET.Element, told: Mapping[str, Any]) -> str:
    kept = {disk["target"] for disk in told["disks"] if disk["mode"] == INTERNAL}
    snapshot = ET.Element("domainsnapshot")
    ET.SubElement(snapshot, "name").text = told["name"]
    ET.SubElement(snapshot, "state").text = "shutoff"
    ET.SubElement(snapshot, "creationTime").text = "1"
    ET.SubElement(snapshot, "memory", snapshot="no")
    disks = ET.SubElement(snapshot, "disks")
    for disk in root.iterfind("devices/disk"):
        target = devices.target_of(disk)
        ET.SubElement(disks, "disk", name=target, snapshot=INTERNAL if target in kept else "no")
    snapshot.append(root)
    return ET.tostring(snapshot, encoding="unicode")
