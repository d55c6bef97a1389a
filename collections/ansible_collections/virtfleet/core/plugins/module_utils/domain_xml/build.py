# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a machine's data to libvirt's XML. Built as a tree: no text of anybody can become markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from string import ascii_lowercase

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata, patch, settings
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import Disk, Nic, VmSpec
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

AGENT_CHANNEL = "org.qemu.guest_agent.0"
TRANSLATION_CACHE_MIB = 64
"""The cache of translated code: of QEMU's own choice, 1 GiB, an emulated machine reboots three times slower. With 32
the boot of a Linux fills it, and QEMU 7.2 aborts when a vCPU is plugged into a machine whose cache has no free part."""
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def build(spec: VmSpec) -> str:
    """Return the `<domain>` document of a machine.

    Raises VirtfleetError `invalid` for characters that XML 1.0 cannot carry, such as NUL.
    """
    return written(tree(spec))


def written(root: ET.Element) -> str:
    """Return a `<domain>` as text. Raises VirtfleetError `invalid` for characters that XML 1.0 cannot carry."""
    document = ET.tostring(root, encoding="unicode")
    found = _NOT_IN_XML.search(document)
    if found is not None:
        text = f"an option holds the character {found[0]!r}, which XML cannot carry"
        wanted = f"describe machine {root.findtext('name')} to libvirt"
        raise VirtfleetError(wanted, text, "Leave it out.", "invalid")
    return document


def tree(spec: VmSpec) -> ET.Element:
    """Return the `<domain>` of a machine."""
    root = ET.Element("domain", type=spec.virt_type)
    _text(root, "name", spec.name)
    _text(root, "uuid", spec.uuid)
    if spec.metadata:
        ET.SubElement(root, "metadata").append(metadata.build(spec.metadata))
    _text(root, "memory", str(spec.memory_bytes), unit="b")
    _text(root, "vcpu", str(spec.vcpus), placement="static")
    system = ET.SubElement(root, "os")
    kind = _text(system, "type", "hvm", arch=spec.arch)
    if spec.machine:
        kind.set("machine", spec.machine)
    ET.SubElement(system, "boot", dev="hd")
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if spec.virt_type == "qemu":
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(TRANSLATION_CACHE_MIB), unit="MiB")
    _cpu(root, spec)
    ET.SubElement(root, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(root, event, action)
    devices = ET.SubElement(root, "devices")
    for number, disk in enumerate(spec.disks):
        _disk(devices, disk, f"vd{ascii_lowercase[number]}")
    for nic in spec.nics:
        _nic(devices, nic)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "target", port="0")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", model="virtio")
    for name in settings.NAMES:
        if name in spec.settings:
            settings.write(root, name, spec.settings[name])
    for step in spec.patch:
        patch.apply(root, step)
    return root


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _cpu(root: ET.Element, spec: VmSpec) -> None:
    if spec.cpu_model in ("host-model", "host-passthrough", "maximum"):
        ET.SubElement(root, "cpu", mode=spec.cpu_model)
    elif spec.cpu_model:
        _text(ET.SubElement(root, "cpu", mode="custom", match="exact"), "model", spec.cpu_model)
    elif spec.virt_type == "kvm":
        ET.SubElement(root, "cpu", mode="host-model")


def _disk(devices: ET.Element, disk: Disk, target: str) -> None:
    element = ET.SubElement(devices, "disk", type="block" if disk.block else "file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=disk.format)
    ET.SubElement(element, "source", {"dev" if disk.block else "file": disk.source})
    ET.SubElement(element, "target", dev=target, bus="virtio")
    if disk.read_only:
        ET.SubElement(element, "readonly")
    if disk.serial:
        _text(element, "serial", disk.serial)


def _nic(devices: ET.Element, nic: Nic) -> None:
    element = ET.SubElement(devices, "interface", type=nic.kind)
    if nic.mac:
        ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "source", {nic.kind: nic.source})
    ET.SubElement(element, "model", type=nic.model)
    if nic.filter:
        ET.SubElement(element, "filterref", filter=nic.filter)
