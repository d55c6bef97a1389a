# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a clone: from which volume each is made, how, and what stands against it. Nothing is made here."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import clone as clone_xml
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import nwfilter
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import snapshot as snapshots
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import NO_FILTER, source_of
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.nwfilter_rules import check_filter_name

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

FULL, LINKED, FRESH = "full", "linked", "fresh"
MODES = (FULL, LINKED, FRESH)


@dataclass(frozen=True)
class Part:
    """A disk of the clone. `origin` is the volume that it is made from, `image` the base that the new one lies over."""

    target: str
    serial: str | None
    name: str
    """Of the new volume; it is in the pool of `origin`."""
    pool: libvirt.virStoragePool
    origin: libvirt.virStorageVol
    described: dict[str, Any]
    image: libvirt.virStorageVol | None

    def as_dict(self, mode: str) -> dict[str, Any]:
        """Return what is told of it."""
        made = {FULL: "copy", LINKED: "copy over the image", FRESH: "empty" if self.image is None else "over the image"}
        below = self.image.name() if self.image is not None and mode != FULL else None
        facts = {
            "target": self.target,
            "serial": self.serial,
            "pool": self.pool.name(),
            "name": self.name,
            "made": made[mode],
            "image": below,
        }
        return facts | {"from": self.described["name"], "size_bytes": self.described["capacity_bytes"]}


def parts(
    source: libvirt.virDomain,
    root: ET.Element,
    prefix: str,
    *,
    mode: str,
    snapshot: Mapping[str, Any] | None,
    goal: str,
) -> list[Part]:
    """Return the disks that the clone has for itself. Raises VirtfleetError `refused`."""
    connection = source.connect()
    own = clone_xml.own_disks(root)
    _refuse_others(root, goal)
    paths = _paths_then(own, snapshot, goal) if snapshot is not None else {}
    found = []
    for number, disk in enumerate(own):
        target = devices.target_of(disk)
        path = paths.get(target) or devices.source_of(disk) or _path_in_pool(connection, disk)
        volume = _volume(connection, path, target, goal)
        described = volumes.describe(volume)
        image, directly = _image_below(connection, described)
        _check(mode, number, target, image=image, directly=directly, goal=goal)
        label = "root" if number == 0 else f"disk{number}"
        try:
            pool = volume.storagePoolLookupByVolume()
        except libvirtError as error:
            raise translate(error, goal) from error
        found.append(Part(target, disk.findtext("serial"), f"{prefix}{label}", pool, volume, described, image))
    return found


def cards_of(
    connection: libvirt.virConnect, root: ET.Element, given: Sequence[dict[str, Any]], uuid: str, goal: str
) -> tuple[list[dict[str, Any]], list[ET.Element]]:
    """Return the wanted networks, each with its MAC, and the cards for them.

    Raises VirtfleetError, such as `not_found` for a filter that the host lacks.
    """
    there = root.findall("devices/interface")
    networks = [{**nic, "mac": nic["mac"] or clone_xml.mac_of(uuid, number)} for number, nic in enumerate(given)]
    cards = []
    for number, nic in enumerate(networks):
        kind, name = source_of(nic)
        # What guards a card of the original guards the new one, too, unless another filter is named.
        guard = devices.read_nic(there[number])["filter"] if number < len(there) else NO_FILTER
        if nic["filter"] is not None:
            guard = check_filter_name(nic["filter"])
            if guard != NO_FILTER:
                nwfilter.require(connection, guard, goal)
        wanted = {
            "source": {"kind": kind, "name": check_name(name, kind)},
            "model": check_name(nic["model"] or "virtio", "card model"),
            "link": "up",
            "filter": guard,
        }
        cards.append(devices.nic_element(wanted, nic["mac"]))
    return networks, cards


def _refuse_others(root: ET.Element, goal: str) -> None:
    devices_of_host = clone_xml.passed_through(root)
    if devices_of_host:
        text = f"it has a device of its host for itself ({', '.join(devices_of_host)}), and only one machine can"
        raise VirtfleetError(goal, text, "Detach it, or make the new machine with module vm.", "refused")


def _paths_then(own: list[ET.Element], snapshot: Mapping[str, Any], goal: str) -> dict[str, str]:
    """Return, for an external snapshot, where each disk's content of that moment lies. Refuses disks that it lacks."""
    kept = {disk["target"]: disk for disk in snapshot["disks"]}
    missing = [target for disk in own if (target := devices.target_of(disk)) not in kept]
    if missing:
        text = f"snapshot {snapshot['name']} has no disk {', '.join(missing)}"
        raise VirtfleetError(goal, text, "Choose a snapshot that was made with the disks of today.", "refused")
    if snapshot["mode"] != snapshots.EXTERNAL:
        return {}
    return {target: disk["path"] for target, disk in kept.items()}


def _path_in_pool(connection: libvirt.virConnect, disk: ET.Element) -> str | None:
    source = disk.find("source")
    if source is None or not source.get("pool"):
        return None
    try:
        pool = connection.storagePoolLookupByName(source.get("pool"))
        return str(pool.storageVolLookupByName(source.get("volume")).path())
    except libvirtError:
        return None


def _volume(connection: libvirt.virConnect, path: str | None, target: str, goal: str) -> libvirt.virStorageVol:
    try:
        if path is not None:
            return connection.storageVolLookupByPath(path)
    except libvirtError as error:
        if code_of(error) != "not_found":
            raise translate(error, goal) from error
    text = f"its disk {target} ({path or 'of a network'}) is no volume of an active pool"
    raise VirtfleetError(goal, text, "Make a pool of its folder, or detach the disk.", "refused")


def _image_below(
    connection: libvirt.virConnect, described: Mapping[str, Any]
) -> tuple[libvirt.virStorageVol | None, bool]:
    """Return the image at the bottom of a volume's chain, and whether the volume lies directly over it."""
    path, directly = described["image"], True
    while path:
        try:
            below = connection.storageVolLookupByPath(path)
            pool = below.storagePoolLookupByVolume()
        except libvirtError:
            return None, False
        if pool.name() != described["pool"]:
            return None, False
        if images.look(pool, below.name()).state == "complete":
            return below, directly
        path, directly = volumes.describe(below)["image"], False
    return None, False


def _check(
    mode: str, number: int, target: str, *, image: libvirt.virStorageVol | None, directly: bool, goal: str
) -> None:
    if mode == LINKED and not (image is not None and directly):
        text = f"its disk {target} does not lie over an image of its pool, which both could share"
        hint = "Ask for a full clone; only images, which nobody writes to, can lie below two machines."
        raise VirtfleetError(goal, text, hint, "refused")
    if mode == FRESH and number == 0 and image is None:
        text = f"its disk {target} lies over no image that a new one could be made from"
        raise VirtfleetError(goal, text, "Ask for a full clone, or name an image with module vm.", "refused")
