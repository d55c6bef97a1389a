# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host can give a machine: kinds of acceleration, machine types, a TPM."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


def virtualization(connection: libvirt.virConnect, accel: str, wanted: str) -> tuple[str, str]:
    """Return the host's architecture and kvm or qemu. Raises VirtfleetError `refused` when KVM is asked for in vain."""
    root = ET.fromstring(connection.getCapabilities())
    arch = root.findtext("host/cpu/arch") or "x86_64"
    types = [
        domain.get("type")
        for guest in root.iterfind("guest")
        if guest.findtext("os_type") == "hvm"
        for each in guest.iterfind("arch")
        if each.get("name") == arch
        for domain in each.iterfind("domain")
    ]
    if accel == "kvm" and "kvm" not in types:
        hint = "Use accel auto or tcg, or give the host /dev/kvm."
        raise VirtfleetError(wanted, "the host has no KVM", hint, "refused")
    if accel != "tcg" and "kvm" in types:
        return arch, "kvm"
    # libvirt's test driver has a type of its own.
    return arch, "qemu" if "qemu" in types or not types else str(types[0])


def machine_names(connection: libvirt.virConnect) -> dict[str, str]:
    """Return the full names that the host has for short names of machine types, such as q35."""
    found = {}
    for machine in ET.fromstring(connection.getCapabilities()).iterfind("guest/arch/machine"):
        if machine.text and machine.get("canonical"):
            found[machine.text] = str(machine.get("canonical"))
    return found


def emulates_tpm(connection: libvirt.virConnect) -> bool:
    """Tell whether the host has the program that emulates a TPM."""
    with contextlib.suppress(libvirtError):
        document = ET.fromstring(connection.getDomainCapabilities(None, None, None, None, 0))
        kinds = document.iterfind("devices/tpm/enum[@name='backendModel']/value")
        return any(kind.text == "emulator" for kind in kinds)
    return False


def require_tpm(connection: libvirt.virConnect, name: str) -> None:
    """Refuse a TPM where the host cannot emulate one. Raises VirtfleetError `refused`."""
    if not emulates_tpm(connection):
        hint = "Install swtpm and swtpm-tools on the host, or leave tpm out."
        raise VirtfleetError(f"give machine {name} a TPM", "the host cannot emulate one", hint, "refused")
