# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a machine as options of module vm: what they may be, and what they mean for a machine that is there.

Pure: nothing here talks to libvirt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import (
    HOST_CPU_MODES,
    IO_LIMITS,
    IO_SIZES,
    KEPT_APART,
    NAMES,
    io_limits,
)
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import about, format_size, parse_size

MAX_VCPUS = 4096
"""No host offers more. libvirtd 9.0 aborts on a number that it cannot allocate (-1 was seen to kill it)."""
MIN_MEMORY_BYTES = 2**20
MAX_MEMORY_BYTES = 2**50
_MIB = 2**20
AT_ONCE = ("metadata", "autostart", "name")
"""Settings that hold at once, whether the machine runs or not."""

NOTHING: Mapping[str, Any] = {
    **{"vcpus": 0, "max_vcpus": 0, "memory": 0, "max_memory": 0, "topology": None, "metadata": {}},
    "writable_disks": 0,
}
"""What `complete` starts from for a machine that is not there."""

IO_SPEC: dict[str, Any] = {
    "type": "dict",
    "options": {name: {"type": "str" if name in IO_SIZES else "int"} for name in IO_LIMITS},
}
SPEC: dict[str, Any] = {
    "max_vcpus": {"type": "int"},
    "max_memory": {"type": "str"},
    "topology": {
        "type": "dict",
        "options": {"sockets": {"type": "int"}, "cores": {"type": "int"}, "threads": {"type": "int"}},
    },
    "hugepages": {"type": "str"},
    "firmware": {"type": "str", "choices": ["bios", "uefi"]},
    "boot": {"type": "list", "elements": "str", "choices": ["hd", "cdrom", "network", "fd"]},
    "video": {"type": "str", "choices": ["none", "vga", "virtio", "qxl", "cirrus", "bochs"]},
    "serial": {"type": "str", "choices": ["none", "pty"]},
    "rng": {"type": "bool"},
    "watchdog": {"type": "str", "choices": ["none", "reset", "shutdown", "poweroff", "pause", "dump"]},
    "tpm": {"type": "bool"},
    "autostart": {"type": "bool"},
    "io": IO_SPEC,
    "new_name": {"type": "str"},
    "xml_patch": {
        "type": "list",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "attribute": {"type": "str"},
            "value": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    },
}
"""The options beside those that making a machine needs; part of module vm's SPEC."""


def settings_of(options: Mapping[str, Any], machine_names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings that the options name, in the form of `domain_xml.settings`. Raises VirtfleetError `invalid`.

    `machine_names` are the full names that the host has for machine types such as q35.
    """
    given = {name: options[name] for name in NAMES if options.get(name) is not None}
    found: dict[str, Any] = {name: _checked(name, value) for name, value in given.items() if name != "accel"}
    if given.get("accel") in ("kvm", "tcg"):
        found["accel"] = given["accel"]
    if "machine" in found:
        found["machine"] = (machine_names or {}).get(found["machine"], found["machine"])
    for now, most, what in (("vcpus", "max_vcpus", "vCPUs"), ("memory", "max_memory", "memory")):
        if now in found and most in found and found[now] > found[most]:
            raise _invalid(now, f"a machine cannot have more {what} than {most} says", f"Raise {most}.")
    return found


def _checked(name: str, value: Any) -> Any:
    read = {
        "vcpus": lambda: _vcpus(name, value),
        "max_vcpus": lambda: _vcpus(name, value),
        "memory": lambda: memory_bytes(value, name),
        "max_memory": lambda: memory_bytes(value, name),
        "machine": lambda: check_name(value, "machine type"),
        "cpu_model": lambda: check_name(value, "CPU model"),
        "topology": lambda: _topology(value),
        "hugepages": lambda: _hugepages(value),
        "io": lambda: io_limits(value),
        "metadata": lambda: _metadata(value),
        "boot": lambda: _boot(value),
    }.get(name)
    return value if read is None else read()


def _vcpus(name: str, value: int) -> int:
    if not 1 <= value <= MAX_VCPUS:
        raise _invalid(name, f"it cannot have {value} vCPUs", f"Use 1 to {MAX_VCPUS}.")
    return value


def _hugepages(value: str) -> str:
    return value if value in ("off", "default") else format_size(parse_size(value, "the size of huge pages"))


def _metadata(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): each for key, each in value.items() if key not in KEPT_APART and each is not None}


def _boot(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise _invalid("boot", "a device stands in it twice", "Name each once.")
    return value


def memory_bytes(text: str, name: str = "memory") -> int:
    """Return a machine's memory in whole MiB, as it is given to it. Raises VirtfleetError `invalid`."""
    size = -(-parse_size(text, f"the {name} of a machine") // _MIB) * _MIB
    if not MIN_MEMORY_BYTES <= size <= MAX_MEMORY_BYTES:
        limits = f"Use {about(MIN_MEMORY_BYTES)} to {about(MAX_MEMORY_BYTES)}."
        raise _invalid(name, f"it cannot have {about(size)} of memory", limits)
    return size


def _topology(given: Mapping[str, Any]) -> dict[str, int]:
    found = {key: given.get(key) or 1 for key in ("sockets", "cores", "threads")}
    if any(not 1 <= number <= MAX_VCPUS for number in found.values()):
        raise _invalid("topology", "each of its numbers is at least 1", f"Use 1 to {MAX_VCPUS}.")
    if given.get("sockets") is None:
        del found["sockets"]
    return found


def complete(found: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the wanted settings with what follows from them for a machine that is as `kept` says.

    A maximum that nobody named rises with what is to be in use, a lowered one takes it along; sockets follow from
    cores and threads. Metadata are joined to those kept. Raises VirtfleetError `invalid`.
    """
    wanted = dict(found)
    for now, most in (("vcpus", "max_vcpus"), ("memory", "max_memory")):
        if now in wanted and most not in wanted and wanted[now] > kept[most]:
            wanted[most] = wanted[now]
        if most in wanted and now not in wanted and wanted[most] < kept[now]:
            wanted[now] = wanted[most]
    maximum = wanted.get("max_vcpus", kept["max_vcpus"])
    topology = wanted.get("topology")
    if topology is None and kept["topology"] is not None and maximum != kept["max_vcpus"]:
        topology = {key: kept["topology"][key] for key in ("cores", "threads")}
    if topology is not None:
        each = topology["cores"] * topology["threads"]
        whole = {"sockets": topology.get("sockets", max(1, maximum // each)), **topology}
        if whole["sockets"] * each != maximum:
            text = f"{whole['sockets']} sockets of {whole['cores']} cores of {whole['threads']} threads are not"
            hint = "Give max_vcpus that is a multiple of cores times threads, or another topology."
            raise _invalid("topology", f"{text} the {maximum} vCPUs that it may have", hint)
        if "topology" in wanted or whole != kept["topology"]:
            wanted["topology"] = whole
    if kept["writable_disks"] == 0:
        wanted.pop("io", None)  # there is nothing to limit
    if "metadata" in wanted:
        wanted["metadata"] = {**kept["metadata"], **wanted["metadata"]}
    return {name: wanted[name] for name in NAMES if name in wanted}


def effects(live: Mapping[str, Any] | None, *, paused: bool = False) -> plan.EffectOf:
    """Return what tells when a setting's new value holds, for a machine that runs with the settings `live`, or not."""

    def effect_of(name: str, _now: Any, wanted: Any) -> str:
        if name in AT_ONCE:
            return plan.LIVE
        if live is None:
            return plan.NEXT_BOOT
        hot = {
            "io": lambda: True,
            # A vCPU that is in use is not taken away: the machine would have to let go of it, and not every one does.
            "vcpus": lambda: live["vcpus"] <= wanted <= live["max_vcpus"],
            "memory": lambda: wanted <= live["max_memory"] and live["balloon"] and not paused,
        }.get(name)
        return plan.LIVE if hot is not None and hot() else plan.NEXT_BOOT

    return effect_of


def comparable(live: Mapping[str, Any], wanted: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the live settings those that tell whether they are as wanted.

    libvirt writes out what the modes of the host's CPU have come to, so that the mode cannot be seen any more. And a
    machine that has more memory than it was told to have has not given the rest back yet: it does once it has booted,
    or never, if it has no driver for that. What it is told next it does as late.
    """
    unknown = set()
    if wanted.get("cpu_model") in HOST_CPU_MODES and kept["cpu_model"] == wanted["cpu_model"]:
        unknown.add("cpu_model")
    if gives_late(live, kept):
        unknown.add("memory")
    return {name: value for name, value in live.items() if name not in unknown}


def gives_late(live: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Tell whether a machine has more memory than it was told to have."""
    return bool(live["memory"] > kept["memory"])


def _invalid(name: str, obstacle: str, hint: str) -> VirtfleetError:
    return VirtfleetError(f"use {name} for a machine", obstacle, hint, "invalid")
