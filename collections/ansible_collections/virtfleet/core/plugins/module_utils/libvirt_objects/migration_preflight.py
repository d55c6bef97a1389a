# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a machine could go to another host, and if not, why: a verdict with reason codes. Changes nothing.

What cannot be found out without migrating is `unknown` and refuses nothing: libvirt refuses it in time, and the machine
stays where it is.
"""

from __future__ import annotations

import ipaddress
import socket
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.read import is_uefi
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration_storage as storage
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import nwfilter
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.capabilities import emulates_tpm
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_storage import Refusal
from ansible_collections.virtfleet.core.plugins.module_utils.units import about

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

LAST_JOB = 1 | 2
"""VIR_DOMAIN_JOB_STATS_COMPLETED and _KEEP_COMPLETED: without the latter whoever reads it first is the last one."""
PAUSED_MOVES_AGAIN = 10000000
"""QEMU 10.0.0; before it, one that is moved, still paused since it was moved before, crashes (seen with 7.2)."""
EMULATION_MOVES_WELL = 9000000
"""QEMU 9.0.0; before it, emulation forgets memory that is written while it is sent (seen with 7.2: the machine's kernel
ends in a panic after one in five live migrations under load). KVM never did."""
_KIB = 1024


@dataclass
class Verdict:
    """What was found out: each check is ok, refused or unknown; any refusal means no. `warnings` refuse nothing."""

    checks: dict[str, str] = field(default_factory=dict)
    reasons: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    storage: storage.StoragePlan = field(default_factory=storage.StoragePlan)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as modules return it."""
        return {
            "ok": self.ok,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "warnings": self.warnings,
            "checks": self.checks,
            "disks": [disk.as_dict() for disk in self.storage.disks],
        }


def judge(
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    domain: libvirt.virDomain,
    *,
    peer_uri: str,
    address: str | None,
    live: bool,
    shared_pools: Collection[str],
    may_copy: bool,
) -> Verdict:
    """Return whether a machine of `source` can go to `target`. Raises VirtfleetError when a host cannot be asked."""
    verdict = Verdict()
    try:
        running = bool(domain.isActive())
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE if running else libvirt.VIR_DOMAIN_XML_INACTIVE
        root = ET.fromstring(domain.XMLDesc(flags))
        capabilities = ET.fromstring(target.getCapabilities())
        same = ET.fromstring(source.getCapabilities()).findtext("host/uuid") == capabilities.findtext("host/uuid")
        _note(verdict, "host", [Refusal("same_host", "source and target are the same host")] if same else [])
        if same:
            return verdict
        _note(verdict, "identity", _identity(target, domain))
        _note(verdict, "machine_type", _machine_type(capabilities, root))
        _note(verdict, "cpu", _cpu(source, target, root))
        _note(verdict, "memory", _memory(target, domain) if running else [])
        _note(verdict, "networks", _networks(target, root))
        _note(verdict, "devices", _devices(domain, root, running=running) + _tpm(target, root, running=running))
        _note(verdict, "state", _state(source, domain))
        _note(verdict, "names", _names(peer_uri, address))
        if not running:
            verdict.warnings += _firmware(root)
        elif live:
            verdict.warnings += _emulation(source, root)
        # The libvirt port was tried: we are connected. Where the data go is only known once they flow.
        verdict.checks["ports"] = "unknown"
        machine = vms.describe(domain)
        verdict.storage = storage.plan(
            source, target, machine, shared_pools=shared_pools, may_copy=may_copy, running=running
        )
        _note(verdict, "disks", verdict.storage.refusals)
    except libvirtError as error:
        raise translate(error, "find out whether a machine can be migrated") from error
    return verdict


def refuse(verdict: Verdict, wanted: str) -> None:
    """Raise VirtfleetError `refused` with every reason, if there is one."""
    if verdict.reasons:
        text = "; ".join(reason.text for reason in verdict.reasons)
        hint = "Correct that, or choose another host. The machine was left as it is."
        raise VirtfleetError(wanted, text, hint, "refused", values={"verdict": verdict.as_dict()})


def _note(verdict: Verdict, check: str, found: list[Refusal] | None) -> None:
    """Write down a check; None = it cannot be found out."""
    verdict.checks[check] = "unknown" if found is None else "refused" if found else "ok"
    verdict.reasons += found or []


def _identity(target: libvirt.virConnect, domain: libvirt.virDomain) -> list[Refusal]:
    try:
        vms.find(target, domain.name(), domain.UUIDString())
    except VirtfleetError as error:
        if error.code != "already_exists":
            raise
        return [Refusal("name_taken", f"the target has another machine called {domain.name()}")]
    return []


def _machine_type(capabilities: ET.Element, root: ET.Element) -> list[Refusal]:
    kind = root.find("os/type")
    if kind is None:
        return []
    arch, machine, virt = kind.get("arch"), kind.get("machine"), root.get("type")
    guest = next((each for each in capabilities.iterfind("guest/arch") if each.get("name") == arch), None)
    if guest is None:
        return [Refusal("architecture", f"the target runs no {arch} machines")]
    if virt not in [each.get("type") for each in guest.iterfind("domain")]:
        return [Refusal("virtualization", f"the target cannot run machines of type {virt}")]
    known = {each.text for each in guest.iterfind(".//machine")} | {
        each.get("canonical") for each in guest.iterfind(".//machine")
    }
    if machine and machine not in known:
        return [Refusal("machine_type", f"the target does not know the machine type {machine}")]
    return []


def _cpu(source: libvirt.virConnect, target: libvirt.virConnect, root: ET.Element) -> list[Refusal] | None:
    cpu, kind = root.find("cpu"), root.find("os/type")
    if cpu is None or kind is None:
        return []
    if cpu.get("mode") in ("host-passthrough", "maximum"):
        mine, theirs = (ET.fromstring(each.getCapabilities()).findtext("host/cpu/model") for each in (source, target))
        text = f"its CPU is that of its host ({mine}), and the target has another ({theirs})"
        return [Refusal("cpu", text)] if mine != theirs else []
    if cpu.find("model") is None:
        return []  # host-model of a stopped machine: it is chosen anew at its next start
    document = ET.tostring(cpu, encoding="unicode")
    try:
        answer = target.compareHypervisorCPU(None, kind.get("arch"), kind.get("machine"), root.get("type"), document, 0)
    except libvirtError as error:
        if code_of(error) in ("refused", "invalid", "internal"):
            return None
        raise
    text = f"the target cannot offer its CPU, {cpu.findtext('model')} with the features it was started with"
    return [Refusal("cpu", text)] if answer == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE else []


def _memory(target: libvirt.virConnect, domain: libvirt.virDomain) -> list[Refusal] | None:
    try:
        statistics = target.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    except libvirtError as error:
        if code_of(error) == "refused":
            return None
        raise
    free = sum(statistics.get(key, 0) for key in ("free", "buffers", "cached")) * _KIB
    needed = domain.maxMemory() * _KIB
    if needed > free:
        text = f"it may take {about(needed)} of memory, and the target has {about(free)} free"
        return [Refusal("memory", text)]
    return []


def _networks(target: libvirt.virConnect, root: ET.Element) -> list[Refusal] | None:
    refusals: list[Refusal] = []
    wanted: dict[str, set[str]] = {"network": set(), "bridge": set(), "filter": set()}
    for card in root.iterfind("devices/interface"):
        kind, origin, guard = card.get("type", ""), card.find("source"), card.find("filterref")
        if guard is not None:
            wanted["filter"].add(str(guard.get("filter")))
        if kind in ("network", "bridge") and origin is not None and origin.get(kind):
            wanted[kind].add(str(origin.get(kind)))
    for name in sorted(wanted["network"]):
        try:
            active = bool(target.networkLookupByName(name).isActive())
        except libvirtError as error:
            if code_of(error) != "not_found":
                raise
            active = False
        if not active:
            refusals.append(Refusal("network_missing", f"the target has no active network {name}"))
    refusals += [
        Refusal("filter_missing", f"the target has no network filter {name}")
        for name in sorted(wanted["filter"])
        if nwfilter.find(target, name) is None
    ]
    if not wanted["bridge"]:
        return refusals
    try:
        there = {interface.name() for interface in target.listAllInterfaces(0)}
    except libvirtError as error:
        if code_of(error) in ("refused", "internal"):
            return refusals or None  # a host without libvirt's interface driver
        raise
    missing = sorted(wanted["bridge"] - there)
    return refusals + [Refusal("bridge_missing", f"the target has no bridge {name}") for name in missing]


def _devices(domain: libvirt.virDomain, root: ET.Element, *, running: bool) -> list[Refusal]:
    refusals = []
    if root.find("devices/hostdev") is not None:
        refusals.append(Refusal("host_device", "it has a device of its host"))
    if not running and domain.hasManagedSaveImage(0):
        refusals.append(Refusal("saved_state", "its memory is saved on its host: start it first"))
    if _number_of(lambda: domain.snapshotNum(0)):
        refusals.append(Refusal("has_snapshots", "it has snapshots, which libvirt does not carry over: delete them"))
    return refusals


def _tpm(target: libvirt.virConnect, root: ET.Element, *, running: bool) -> list[Refusal]:
    """Refuse a machine whose TPM would begin anew: what its system has sealed in it could never be opened again."""
    if root.find("devices/tpm/backend[@type='emulator']") is None:
        return []
    if not running:
        text = "what its TPM holds lies on its host and goes along only while it runs: start it and move it live"
        return [Refusal("tpm_state", text)]
    if not emulates_tpm(target):
        return [Refusal("tpm_missing", "it has a TPM, and the target cannot emulate one: install swtpm there")]
    return []


def _state(source: libvirt.virConnect, domain: libvirt.virDomain) -> list[Refusal]:
    """Refuse a machine that is paused and came here by a migration: it may not have run since."""
    if vms.state_of(domain) != "paused" or source.getVersion() >= PAUSED_MOVES_AGAIN:
        return []
    try:
        last = domain.jobStats(LAST_JOB)
    except libvirtError as error:
        if code_of(error) == "refused":
            return []
        raise
    if last.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN:
        return []
    text = "it is paused since it was moved here, and its QEMU would crash if it were moved again: resume it first"
    return [Refusal("paused_since_migration", text)]


def _firmware(root: ET.Element) -> list[str]:
    """Warn of what a stopped machine leaves behind without being refused for it."""
    if not is_uefi(root):
        return []
    text = "its UEFI variables (boot entries, keys of Secure Boot) lie on its host and begin anew on the target"
    return [f"{text}: if its system has changed them, start it and move it live"]


def _emulation(source: libvirt.virConnect, root: ET.Element) -> list[str]:
    """Warn of what a live migration risks without being refused for it."""
    if root.get("type") != "qemu" or source.getVersion() >= EMULATION_MOVES_WELL:
        return []
    text = "it is emulated, not run by KVM, and its QEMU may lose memory that it writes while it is moved live"
    return [f"{text}: if it is busy, move it with live: false, or when it is stopped"]


def _number_of(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except libvirtError as error:
        if code_of(error) == "refused":
            return 0
        raise


def _names(peer_uri: str, address: str | None) -> list[Refusal]:
    """Return what is wrong with where the source shall find the target, as far as it can be seen from here."""
    host = urlsplit(peer_uri).hostname
    if not host:
        return [Refusal("not_remote", f"{peer_uri} names no host: the source cannot reach the target by it")]
    refusals = []
    for name in dict.fromkeys([host, *([address] if address else [])]):
        try:
            known = {ipaddress.ip_address(name)}
        except ValueError:
            try:
                known = {ipaddress.ip_address(each[4][0]) for each in socket.getaddrinfo(name, None)}
            except (OSError, ValueError):
                refusals.append(Refusal("name_unresolved", f"the name {name} of the target is not known"))
                continue
        if any(each.is_loopback or each.is_unspecified for each in known):
            refusals.append(Refusal("not_remote", f"{name} means each host itself"))
    return refusals
