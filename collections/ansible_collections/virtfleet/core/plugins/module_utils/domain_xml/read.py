# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From libvirt's XML to a machine's data, whoever made the machine."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata

_UNITS = {"b": 1, "bytes": 1, "KiB": 2**10, "k": 2**10, "MiB": 2**20, "M": 2**20, "GiB": 2**30, "G": 2**30}


def read(document: str) -> dict[str, Any]:
    """Return what the text of a `<domain>` document says, as `of` does."""
    return of(ET.fromstring(document))


def of(root: ET.Element) -> dict[str, Any]:
    """Return a machine's name, uuid and parts.

    They are `{name, uuid, vcpus, vcpus_maximum, memory_bytes, memory_current_bytes, type, machine, disks, networks,
    metadata, managed}` and the lists of `metadata.OWN`; `memory_bytes` is what it may have at most.
    disks: `[{target, bus, device, source, format, serial, read_only}]`,
    networks: `[{kind, source, mac, model, device}]`. `managed` is whether virtfleet made it.
    """
    # Looked for step by step: a path of several steps takes ElementTree ten times as long, thousands of times over.
    kept = metadata.of(root)
    vcpu, system, devices = root.find("vcpu"), root.find("os"), root.find("devices")
    maximum = int(vcpu.text or 1) if vcpu is not None else 1
    memory = size_of(root.find("memory"))
    kind = system.find("type") if system is not None else None
    return {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "vcpus": int(vcpu.get("current", maximum)) if vcpu is not None else maximum,
        "vcpus_maximum": maximum,
        "memory_bytes": memory,
        "memory_current_bytes": size_of(root.find("currentMemory")) or memory,
        "type": root.get("type"),
        "machine": kind.get("machine") if kind is not None else None,
        "disks": [_disk(disk) for disk in devices.findall("disk")] if devices is not None else [],
        "networks": [_nic(nic) for nic in devices.findall("interface")] if devices is not None else [],
        "metadata": {key: value for key, value in kept.items() if key not in metadata.OWN},
        **{name: kept.get(name) or [] for name in metadata.OWN},
        "managed": bool(kept),
    }


def size_of(element: ET.Element | None, number: str | None = None) -> int:
    """Return the bytes that an element with attribute `unit` means by its text, or by `number`; 0 without one."""
    if element is None:
        return 0
    return int(number or element.text or 0) * _UNITS.get(element.get("unit", "KiB"), 2**10)


def is_uefi(root: ET.Element) -> bool:
    """Tell whether a machine boots by UEFI: its host has chosen the firmware, or will at its start."""
    system, loader = root.find("os"), root.find("os/loader")
    chosen = loader is not None and loader.get("type") == "pflash"
    return chosen or (system is not None and system.get("firmware") == "efi")


def _disk(disk: ET.Element) -> dict[str, Any]:
    source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
    return {
        "target": target.get("dev") if target is not None else None,
        "bus": target.get("bus") if target is not None else None,
        "device": disk.get("device", "disk"),
        "source": None if source is None else source.get("file") or source.get("dev") or source.get("volume"),
        "format": driver.get("type") if driver is not None else None,
        "serial": disk.findtext("serial"),
        "read_only": disk.find("readonly") is not None,
    }


def _nic(nic: ET.Element) -> dict[str, Any]:
    source, mac, model, target = nic.find("source"), nic.find("mac"), nic.find("model"), nic.find("target")
    kind = nic.get("type", "")
    return {
        "kind": kind,
        "source": source.get(kind) if source is not None else None,
        "mac": mac.get("address") if mac is not None else None,
        "model": model.get("type") if model is not None else None,
        "device": target.get("dev") if target is not None else None,
    }
