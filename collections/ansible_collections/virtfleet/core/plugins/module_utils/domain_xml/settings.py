# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a machine that can be changed: read from its document, and written into it. Sizes are bytes.

`read` and `write` know the same names, those of module vm's options, so that what was written reads back as it was.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.read import is_uefi, size_of
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size, parse_size

ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")

HOST_CPU_MODES = ("host-model", "host-passthrough", "maximum")
IO_LIMITS = {
    "bytes_per_second": "total_bytes_sec",
    "read_bytes_per_second": "read_bytes_sec",
    "write_bytes_per_second": "write_bytes_sec",
    "iops": "total_iops_sec",
    "read_iops": "read_iops_sec",
    "write_iops": "write_iops_sec",
}
"""Our names of the limits of a disk, and libvirt's."""
IO_SIZES = ("bytes_per_second", "read_bytes_per_second", "write_bytes_per_second")
"""Those that are sizes; the others are numbers."""
MAX_LIMIT = 2**50
KEPT_APART = (*metadata.OWN, "attempt")
"""What stands in our metadata for our own use."""
_KIB = 1024
_TYPES = {"kvm": "kvm", "qemu": "tcg"}


def read(root: ET.Element) -> dict[str, Any]:
    """Return the settings of a `<domain>`, and beside them what their change depends on.

    The latter are `balloon` (whether memory can be taken and given while it runs) and `writable_disks` (how many there
    are for limits).
    """
    vcpu, memory = root.find("vcpu"), size_of(root.find("memory"))
    maximum = int(root.findtext("vcpu") or 1)
    balloon = root.find("devices/memballoon")
    current = root.find("currentMemory")
    vcpus = int(vcpu.get("current", maximum)) if vcpu is not None else maximum
    return {
        "vcpus": vcpus,
        "max_vcpus": maximum,
        "memory": memory if current is None else size_of(current),
        "max_memory": memory,
        "accel": _TYPES.get(root.get("type", ""), root.get("type")),
        "machine": _attribute(root, "os/type", "machine"),
        "cpu_model": _cpu_model(root.find("cpu")),
        "topology": _topology(root.find("cpu/topology")),
        "hugepages": _hugepages(root.find("memoryBacking/hugepages")),
        "firmware": "uefi" if is_uefi(root) else "bios",
        "boot": _boot(root),
        "video": _attribute(root, "devices/video/model", "type") or "none",
        "serial": _attribute(root, "devices/serial", "type") or "none",
        "rng": root.find("devices/rng") is not None,
        "watchdog": next((dog.get("action", "reset") for dog in _watchdogs(root)), "none"),
        "tpm": root.find("devices/tpm") is not None,
        "io": _io(root),
        "metadata": {
            key: value for key, value in metadata.of(root).items() if key not in KEPT_APART and value is not None
        },
        "writable_disks": len(writable_disks(root)),
        "balloon": balloon is not None and balloon.get("model") != "none",
    }


def write(root: ET.Element, name: str, value: Any) -> None:
    """Write one setting into a `<domain>`. Raises VirtfleetError `refused` where another part of it stands against."""
    _WRITERS[name](root, value)


def io_limits(given: Mapping[str, Any]) -> dict[str, int]:
    """Return all limits of a disk by our names; what is not given has none, which is 0."""
    found = dict.fromkeys(IO_LIMITS, 0)
    for name, value in given.items():
        if value is None:
            continue
        limit = 0 if value == "0" else parse_size(value, f"io.{name}") if name in IO_SIZES else value
        if not 0 <= limit <= MAX_LIMIT:
            raise _io_invalid(f"no disk has a limit of {limit}", "Use a positive limit, or 0 for none.")
        found[name] = limit
    for whole, parts in (("bytes_per_second", IO_SIZES[1:]), ("iops", ("read_iops", "write_iops"))):
        if found[whole] and any(found[part] for part in parts):
            hint = f"Give {whole} alone, or {' and '.join(parts)}."
            raise _io_invalid(f"{whole} limits reading and writing together", hint)
    return found


def _io_invalid(obstacle: str, hint: str) -> VirtfleetError:
    return VirtfleetError("limit a disk", obstacle, hint, "invalid")


def writable_disks(root: ET.Element) -> list[ET.Element]:
    """Return the disks that a machine can write to: the ones that limits are for."""
    return [
        disk
        for disk in root.iterfind("devices/disk")
        if disk.get("device", "disk") == "disk" and disk.find("readonly") is None
    ]


def child(parent: ET.Element, tag: str) -> ET.Element:
    """Return the child of that name, made if there is none."""
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found


def _drop(parent: ET.Element | None, tag: str, keep: Callable[[ET.Element], bool] = lambda _element: False) -> None:
    for element in list(parent.iterfind(tag)) if parent is not None else []:
        if not keep(element) and parent is not None:
            parent.remove(element)


def _attribute(root: ET.Element, path: str, name: str) -> str | None:
    element = root.find(path)
    return None if element is None else element.get(name)


def _cpu_model(cpu: ET.Element | None) -> str | None:
    if cpu is None:
        return None
    return str(cpu.get("mode")) if cpu.get("mode") in HOST_CPU_MODES else cpu.findtext("model")


def _topology(element: ET.Element | None) -> dict[str, int] | None:
    if element is None:
        return None
    return {key: int(element.get(key, 1)) for key in ("sockets", "cores", "threads")}


def _hugepages(element: ET.Element | None) -> str:
    if element is None:
        return "off"
    page = element.find("page")
    if page is None:
        return "default"
    return format_size(size_of(ET.Element("size", unit=page.get("unit", "KiB")), page.get("size")))


def _boot(root: ET.Element) -> list[str]:
    named = [str(boot.get("dev")) for boot in root.iterfind("os/boot")]
    if named:
        return named
    ordered = [
        (int(order.get("order", 0)), "network" if device.tag == "interface" else _medium(device))
        for device in root.iterfind("devices/*")
        for order in device.iterfind("boot")
    ]
    return list(dict.fromkeys(kind for _order, kind in sorted(ordered)))


def _medium(device: ET.Element) -> str:
    return {"cdrom": "cdrom", "floppy": "fd"}.get(device.get("device", ""), "hd")


def _watchdogs(root: ET.Element) -> list[ET.Element]:
    # The one of the chip set cannot be taken out.
    return [dog for dog in root.iterfind("devices/watchdog") if dog.get("model") != "itco"]


def _io(root: ET.Element) -> dict[str, int] | None:
    """Return the limits that all writable disks share; None when they differ."""
    found = [
        {name: int(disk.findtext(f"iotune/{theirs}") or 0) for name, theirs in IO_LIMITS.items()}
        for disk in writable_disks(root)
    ] or [dict.fromkeys(IO_LIMITS, 0)]
    return found[0] if all(each == found[0] for each in found) else None


def _write_vcpus(root: ET.Element, value: int) -> None:
    _vcpus(root, value, int(root.findtext("vcpu") or 1))


def _write_max_vcpus(root: ET.Element, value: int) -> None:
    _refuse_numa(root, "vCPUs")
    _vcpus(root, min(read(root)["vcpus"], value), value)
    topology = root.find("cpu/topology")
    if topology is not None:
        each = int(topology.get("dies", 1)) * int(topology.get("cores", 1)) * int(topology.get("threads", 1))
        if value % each == 0:
            topology.set("sockets", str(value // each))


def _vcpus(root: ET.Element, value: int, maximum: int) -> None:
    element = child(root, "vcpu")
    element.text = str(maximum)
    element.attrib.pop("current", None)
    if value != maximum:
        element.set("current", str(value))
    _drop(root, "vcpus")  # the list of which are in use; libvirt makes it anew


def _write_memory(root: ET.Element, value: int) -> None:
    element = child(root, "currentMemory")
    element.text, element.attrib["unit"] = str(value // _KIB), "KiB"


def _write_max_memory(root: ET.Element, value: int) -> None:
    _refuse_numa(root, "memory")
    element = child(root, "memory")
    current = read(root)["memory"]
    element.text, element.attrib["unit"] = str(value // _KIB), "KiB"
    _write_memory(root, min(current, value))


def _refuse_numa(root: ET.Element, what: str) -> None:
    if root.find("cpu/numa") is not None:
        raise VirtfleetError(
            f"change the {what} of machine {root.findtext('name')}",
            "they are shared out over NUMA cells",
            "Change the cells with xml_patch, or take them out first.",
            "refused",
        )


def _write_accel(root: ET.Element, value: str) -> None:
    root.set("type", "kvm" if value == "kvm" else "qemu")
    if value == "kvm":
        _drop(root.find("features"), "tcg")


def _write_machine(root: ET.Element, value: str) -> None:
    kind = child(child(root, "os"), "type")
    before = kind.get("machine", "")
    kind.set("machine", value)
    if ("q35" in before) == ("q35" in value):
        return
    # Another chip set has other buses: libvirt gives all devices new places on them.
    devices = child(root, "devices")
    _drop(devices, "controller", lambda each: each.get("type") in ("scsi", "virtio-serial"))
    for device in devices:
        _drop(device, "address", lambda each: each.get("type") != "pci")


def _write_cpu_model(root: ET.Element, value: str) -> None:
    old = root.find("cpu")
    kept = [] if old is None else [each for each in old if each.tag in ("topology", "numa")]
    _drop(root, "cpu")
    if value in HOST_CPU_MODES:
        cpu = ET.SubElement(root, "cpu", mode=value)
    else:
        cpu = ET.SubElement(root, "cpu", mode="custom", match="exact")
        ET.SubElement(cpu, "model").text = value
    cpu.extend(kept)


def _write_topology(root: ET.Element, value: dict[str, int]) -> None:
    element = child(child(root, "cpu"), "topology")
    element.attrib.clear()
    element.attrib.update({key: str(value[key]) for key in ("sockets", "cores", "threads")})


def _write_hugepages(root: ET.Element, value: str) -> None:
    backing = child(root, "memoryBacking")
    _drop(backing, "hugepages")
    if value != "off":
        pages = ET.SubElement(backing, "hugepages")
        if value != "default":
            number, unit = value.rstrip("BiKMGT"), value.lstrip("0123456789.")
            ET.SubElement(pages, "page", size=number, unit=unit)
    if len(backing) == 0:
        root.remove(backing)


def _write_firmware(root: ET.Element, value: str) -> None:
    system = child(root, "os")
    for tag in ("loader", "nvram", "firmware"):
        _drop(system, tag)
    system.attrib.pop("firmware", None)
    if value == "uefi":
        system.set("firmware", "efi")


def _write_boot(root: ET.Element, value: list[str]) -> None:
    system = child(root, "os")
    _drop(system, "boot")
    for device in root.iterfind("devices/*"):
        _drop(device, "boot")
    for kind in value:
        ET.SubElement(system, "boot", dev=kind)


def _write_video(root: ET.Element, value: str) -> None:
    devices = child(root, "devices")
    _drop(devices, "video")
    ET.SubElement(ET.SubElement(devices, "video"), "model", type=value)


def _write_serial(root: ET.Element, value: str) -> None:
    devices = child(root, "devices")
    _drop(devices, "serial")
    _drop(devices, "console", lambda each: _attribute(each, "target", "type") not in (None, "serial"))
    if value != "none":
        ET.SubElement(ET.SubElement(devices, "serial", type=value), "target", port="0")
        ET.SubElement(ET.SubElement(devices, "console", type=value), "target", type="serial", port="0")


def _write_rng(root: ET.Element, value: bool) -> None:
    devices = child(root, "devices")
    _drop(devices, "rng")
    if value:
        ET.SubElement(ET.SubElement(devices, "rng", model="virtio"), "backend", model="random").text = "/dev/urandom"


def _write_watchdog(root: ET.Element, value: str) -> None:
    devices = child(root, "devices")
    for dog in _watchdogs(root):
        devices.remove(dog)
    if value != "none":
        ET.SubElement(devices, "watchdog", model="i6300esb", action=value)


def _write_tpm(root: ET.Element, value: bool) -> None:
    devices = child(root, "devices")
    _drop(devices, "tpm")
    if value:
        ET.SubElement(ET.SubElement(devices, "tpm", model="tpm-crb"), "backend", type="emulator", version="2.0")


def _write_io(root: ET.Element, value: dict[str, int]) -> None:
    for disk in writable_disks(root):
        write_io(disk, value)


def write_io(disk: ET.Element, value: dict[str, int]) -> None:
    """Write the limits of one disk; those that are 0 are none."""
    _drop(disk, "iotune")
    limits = {IO_LIMITS[name]: limit for name, limit in value.items() if limit}
    if limits:
        tune = ET.SubElement(disk, "iotune")
        for theirs, limit in limits.items():
            ET.SubElement(tune, theirs).text = str(limit)


def _write_metadata(root: ET.Element, value: dict[str, Any]) -> None:
    apart = {key: kept for key, kept in metadata.of(root).items() if key in KEPT_APART}
    place = child(root, "metadata")
    _drop(place, metadata.TAG)
    place.append(metadata.build({**value, **apart}))


_WRITERS: dict[str, Callable[[ET.Element, Any], None]] = {
    # The maxima come first: what is in use must fit below them.
    "max_vcpus": _write_max_vcpus,
    "max_memory": _write_max_memory,
    "vcpus": _write_vcpus,
    "memory": _write_memory,
    "accel": _write_accel,
    "machine": _write_machine,
    "cpu_model": _write_cpu_model,
    "topology": _write_topology,
    "hugepages": _write_hugepages,
    "firmware": _write_firmware,
    "boot": _write_boot,
    "video": _write_video,
    "serial": _write_serial,
    "rng": _write_rng,
    "watchdog": _write_watchdog,
    "tpm": _write_tpm,
    "io": _write_io,
    "metadata": _write_metadata,
}
NAMES = tuple(_WRITERS)
"""The settings in the order in which they are written."""
