# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a machine's document to that of another one like it: same shape, but nothing that only one of them may have."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices, metadata
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import child

SEED_SERIAL = "seed"
_PREFIX_OF_MACS = "52:54:00"


@dataclass(frozen=True)
class Identity:
    """What the new machine has of its own. `sources` has the path of each disk that is its own, by the disk's target.

    `cards` replace the network cards; None keeps them, with the MACs of `macs`. `seed` is the path of its seed.
    """

    name: str
    uuid: str
    metadata: dict[str, Any]
    sources: Mapping[str, str]
    cards: Sequence[ET.Element] | None = None
    macs: Sequence[str] = ()
    seed: str | None = None


def mac_of(uuid: str, number: int) -> str:
    """Return the MAC of a machine's card, counted from 0: of the same machine always the same one."""
    digest = sha256(f"{uuid} {number}".encode()).hexdigest()
    return ":".join([_PREFIX_OF_MACS, digest[0:2], digest[2:4], digest[4:6]])


def own_disks(root: ET.Element) -> list[ET.Element]:
    """Return the disks that a machine writes to and shares with nobody: those that a clone needs for itself."""
    return [
        disk
        for disk in root.iterfind("devices/disk")
        if disk.get("device", "disk") == "disk" and disk.find("readonly") is None and disk.find("shareable") is None
    ]


def seed_of(root: ET.Element) -> ET.Element | None:
    """Return the disk from which a machine learns its name and address."""
    found = devices.find_disk(root, SEED_SERIAL)
    return found if found is not None and found.find("readonly") is not None else None


def passed_through(root: ET.Element) -> list[str]:
    """Return the devices of the host that a machine has for itself, by their kinds."""
    found = [f"hostdev {each.get('type')}" for each in root.iterfind("devices/hostdev")]
    return found + [f"interface {each.get('type')}" for each in root.iterfind("devices/interface[@type='hostdev']")]


def clone(original: ET.Element, new: Identity) -> ET.Element:
    """Return the `<domain>` of a machine like `original`, which is left as it is."""
    root = copy.deepcopy(original)
    root.attrib.pop("id", None)
    child(root, "name").text = new.name
    child(root, "uuid").text = new.uuid
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = new.uuid
    for generation in root.findall("genid"):
        generation.text = None  # libvirt makes a new one
    system = root.find("os")
    if system is not None:
        for variables in system.findall("nvram"):
            system.remove(variables)  # its own, from the template of the firmware
    _metadata(root, new.metadata)
    _disks(root, new)
    _cards(root, new)
    _shared_places(root)
    return root


def _metadata(root: ET.Element, values: dict[str, Any]) -> None:
    """Replace what we keep with a machine; what others keep there stays."""
    parent = child(root, "metadata")
    for old in parent.findall(metadata.TAG):
        parent.remove(old)
    parent.append(metadata.build(values))


def _disks(root: ET.Element, new: Identity) -> None:
    parent = child(root, "devices")
    old = seed_of(root)
    for disk in root.findall("devices/disk"):
        for chain in disk.findall("backingStore"):
            disk.remove(chain)  # libvirt reads it from the file
        target = devices.target_of(disk)
        if target in new.sources:
            _lay(disk, new.sources[target])
    if new.seed is not None:
        if old is None:
            target = devices.free_target([root], "virtio")
            wanted = {"bus": "virtio", "shareable": False, "read_only": True, "io": {}}
            old = devices.disk_element(new.seed, "raw", wanted, block=False, serial=SEED_SERIAL, target=target)
            parent.append(old)
        _lay(old, new.seed)
    elif old is not None:
        parent.remove(old)


def _lay(disk: ET.Element, path: str) -> None:
    """Let a disk's data lie at another path; a disk of a pool becomes one of a path, too."""
    if disk.get("type") not in ("file", "block"):
        disk.set("type", "file")
    source = child(disk, "source")
    source.attrib.clear()
    source.set("dev" if disk.get("type") == "block" else "file", path)


def _cards(root: ET.Element, new: Identity) -> None:
    parent = child(root, "devices")
    cards = root.findall("devices/interface")
    for number, card in enumerate(cards):
        if new.cards is not None:
            parent.remove(card)
            continue
        child(card, "mac").set("address", new.macs[number])
        for name in card.findall("target"):
            card.remove(name)
        for guard in card.findall("filterref"):
            for parameter in [each for each in guard if each.get("name") in ("IP", "MAC")]:
                guard.remove(parameter)  # the source's; libvirt finds out the clone's
    for card in new.cards or ():
        parent.append(card)


def _shared_places(root: ET.Element) -> None:
    """Let libvirt choose anew what two machines of a host cannot have both: ports, sockets, addresses."""
    for channel in root.iterfind("devices/channel[@type='unix']"):
        for place in channel.findall("source"):
            channel.remove(place)
    for graphics in root.iterfind("devices/graphics"):
        if graphics.get("port") is not None:
            graphics.attrib.pop("port")
            graphics.attrib.pop("tlsPort", None)
            graphics.set("autoport", "yes")
    for cid in root.iterfind("devices/vsock/cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")
