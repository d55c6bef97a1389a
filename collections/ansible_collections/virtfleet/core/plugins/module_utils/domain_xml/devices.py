# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks and network cards one by one: found by what stays theirs (serial number, MAC), read, and made."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import IO_LIMITS, child, write_io
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

BUSES = {"virtio": "vd", "scsi": "sd", "usb": "sd"}
"""The buses that a disk can be plugged into, and how its device is called there."""


def serial_of(disk: Mapping[str, Any], number: int) -> str:
    """Return the serial number of one of option `disks`, counted from 0: its own, or the one it gets."""
    return str(disk["serial"] or ("root" if number == 0 else f"disk{number}"))


def find_disk(root: ET.Element, serial: str) -> ET.Element | None:
    """Return the disk with that serial number."""
    return next((disk for disk in root.iterfind("devices/disk") if disk.findtext("serial") == serial), None)


def find_nic(root: ET.Element, mac: str) -> ET.Element | None:
    """Return the network card with that MAC address."""
    for nic in root.iterfind("devices/interface"):
        address = nic.find("mac")
        if address is not None and address.get("address", "").lower() == mac.lower():
            return nic
    return None


def read_disk(disk: ET.Element | None) -> dict[str, Any]:
    """Return what of a disk can be wanted; only `attached` for one that is not there."""
    if disk is None:
        return {"attached": False}
    target = disk.find("target")
    return {
        "attached": True,
        "bus": None if target is None else target.get("bus"),
        "read_only": disk.find("readonly") is not None,
        "shareable": disk.find("shareable") is not None,
        "io": {name: int(disk.findtext(f"iotune/{theirs}") or 0) for name, theirs in IO_LIMITS.items()},
    }


def read_nic(nic: ET.Element | None) -> dict[str, Any]:
    """Return what of a card can be wanted; only `attached` for one that is not there."""
    if nic is None:
        return {"attached": False}
    kind = nic.get("type", "")
    source, model, link, reference = (nic.find(tag) for tag in ("source", "model", "link", "filterref"))
    return {
        "attached": True,
        "source": {"kind": kind, "name": None if source is None else source.get(kind)},
        "model": None if model is None else model.get("type"),
        "link": "up" if link is None else link.get("state", "up"),
        "filter": "none" if reference is None else reference.get("filter"),
    }


def source_of(disk: ET.Element) -> str | None:
    """Return the path that a disk's data lie at."""
    source = disk.find("source")
    return None if source is None else source.get("file") or source.get("dev")


def target_of(disk: ET.Element) -> str:
    """Return the name of a disk's device, such as vda."""
    target = disk.find("target")
    return "" if target is None else str(target.get("dev"))


def free_target(roots: list[ET.Element], bus: str) -> str:
    """Return the first name of a device that neither document has. Raises VirtfleetError `refused` when all are taken.

    Where it lies on its bus follows from the name, so that it is the same in both.
    """
    prefix = BUSES[bus]
    taken = {target_of(disk) for root in roots for disk in root.iterfind("devices/disk")}
    for first in ("", *ascii_lowercase):
        for last in ascii_lowercase:
            if f"{prefix}{first}{last}" not in taken:
                return f"{prefix}{first}{last}"
    raise VirtfleetError("attach a disk", "the machine has no room for more", "Detach another one first.", "refused")


def disk_element(
    path: str, disk_format: str, wanted: dict[str, Any], *, block: bool, serial: str, target: str
) -> ET.Element:
    """Return a disk; `wanted` has bus, read_only, shareable and io."""
    element = ET.Element("disk", type="block" if block else "file", device="disk")
    driver = ET.SubElement(element, "driver", name="qemu", type=disk_format)
    if wanted["shareable"]:
        driver.set("cache", "none")  # what one machine writes, the other is to see
    ET.SubElement(element, "source", {"dev" if block else "file": path})
    ET.SubElement(element, "target", dev=target, bus=wanted["bus"])
    write_io(element, wanted["io"])
    if wanted["read_only"]:
        ET.SubElement(element, "readonly")
    if wanted["shareable"]:
        ET.SubElement(element, "shareable")
    ET.SubElement(element, "serial").text = serial
    return element


def write_disk(disk: ET.Element, name: str, value: Any, target: str) -> None:
    """Write one of the values of `read_disk`; `target` is the device's name on another bus."""
    if name == "io":
        write_io(disk, value)
    elif name == "bus":
        where = child(disk, "target")
        where.set("bus", value)
        where.set("dev", target)
        for address in disk.findall("address"):
            disk.remove(address)
    else:
        _mark(disk, {"read_only": "readonly", "shareable": "shareable"}[name], value)


def _mark(element: ET.Element, tag: str, wanted: bool) -> None:
    for mark in element.findall(tag):
        element.remove(mark)
    if wanted:
        ET.SubElement(element, tag)


def scsi_controller(root: ET.Element) -> ET.Element | None:
    """Return the virtio controller that a machine lacks for disks on a SCSI bus; None when it has a controller.

    libvirt would give it the model of an old card that hardly any system has a driver for.
    """
    if find_scsi_controller(root) is not None:
        return None
    return ET.Element("controller", type="scsi", index="0", model="virtio-scsi")


def find_scsi_controller(root: ET.Element) -> ET.Element | None:
    """Return a machine's first controller of a SCSI bus."""
    return root.find("devices/controller[@type='scsi']")


def nic_element(wanted: dict[str, Any], mac: str) -> ET.Element:
    """Return a network card; `wanted` has source, model, link and filter."""
    source = wanted["source"]
    element = ET.Element("interface", type=source["kind"])
    ET.SubElement(element, "mac", address=mac)
    ET.SubElement(element, "source", {source["kind"]: source["name"]})
    ET.SubElement(element, "model", type=wanted["model"])
    if wanted["filter"] != "none":
        ET.SubElement(element, "filterref", filter=wanted["filter"])
    if wanted["link"] == "down":
        ET.SubElement(element, "link", state="down")
    return element


def write_nic(nic: ET.Element, name: str, value: Any) -> None:
    """Write one of the values of `read_nic`."""
    if name == "source":
        nic.set("type", value["kind"])
        source = child(nic, "source")
        source.attrib.clear()
        source.set(value["kind"], value["name"])
    elif name == "model":
        child(nic, "model").set("type", value)
        for address in nic.findall("address"):
            nic.remove(address)
    elif name == "filter":
        for reference in nic.findall("filterref"):
            nic.remove(reference)
        if value != "none":
            ET.SubElement(nic, "filterref", filter=value)
    else:
        child(nic, "link").set("state", value)
