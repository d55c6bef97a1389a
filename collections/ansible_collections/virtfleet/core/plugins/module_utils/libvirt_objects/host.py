# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host as a whole: what it has, what of that is promised to machines, and how busy it is."""

from __future__ import annotations

import contextlib
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import network as networks
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import nwfilter as nwfilters
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import secret as secrets
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_KIB = 1024
_NANOSECOND = 1e-9

# libvirt's virDomainState, in our words.
_STATES = {
    1: "running",
    2: "running",  # blocked: waits for a resource, which is how libvirt's Xen said "idle"
    3: "paused",
    4: "stopping",
    5: "stopped",
    6: "crashed",
    7: "suspended",
}


def describe(
    connection: libvirt.virConnect,
    *,
    uri: str,
    name: str | None,
    shared_pools: Collection[str],
    refresh: bool,
    sample_seconds: float,
    deadline: Deadline,
) -> dict[str, Any]:
    """Return all that host_info tells of a host. `name` replaces the name that the host gives itself.

    `refresh` makes libvirt read its active pools anew. With `sample_seconds` above 0 the load is measured for so long.
    """
    try:
        arch, memory_mib, cpus, mhz, numa_nodes, sockets, cores, threads = connection.getInfo()
        document = ET.fromstring(connection.getCapabilities())
        capabilities = _capabilities(connection, document, arch)
        machines = read_machines(connection)
        if refresh:
            for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                pools.refresh(pool, deadline)
        return {
            "name": name or connection.getHostname(),
            "uri": uri,
            "uuid": document.findtext("host/uuid"),
            "live": True,
            "arch": arch,
            "kvm": "kvm" in capabilities["domain_types"],
            "libvirt_version": _version(connection.getLibVersion()),
            "hypervisor_version": _version(connection.getVersion()),
            "cpu": {
                "model": document.findtext("host/cpu/model") or arch,
                "mhz": mhz,
                "cpus": cpus,
                "numa_nodes": numa_nodes,
                "sockets": sockets,
                "cores": cores,
                "threads": threads,
            },
            "vcpus": {"total": cpus, "allocated": sum(machine["vcpus"] for machine in machines)},
            "memory": {
                **_memory(connection, memory_mib * _KIB * _KIB),
                "allocated_bytes": sum(machine["memory_bytes"] for machine in machines),
            },
            "pools": _pools(connection, shared_pools),
            "networks": _networks(connection),
            "nwfilters": nwfilters.names_of(connection),
            "secrets": secrets.all_of(connection),
            "load": _load(connection, sample_seconds, deadline),
            "machines": machines,
            "capabilities": capabilities,
        }
    except libvirtError as error:
        raise translate(error, f"read what host {name or uri} has") from error


def read_machines(connection: libvirt.virConnect) -> list[dict[str, Any]]:
    """Return every machine of the host, running or not, in the order of their names.

    Each is `{name, uuid, state, vcpus, vcpus_maximum, memory_bytes, memory_current_bytes, cpu_seconds, metadata}`;
    `memory_bytes` is what it may have at most, and so what is promised to it. Costs one call and one more a machine.
    """
    machines = []
    kinds = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    for domain, statistics in vms.statistics(connection, kinds):
        try:
            document = domain.XMLDesc(0)
        except libvirtError as error:
            if code_of(error) == "not_found":  # deleted since it was listed
                continue
            raise
        machines.append(_machine(document, statistics))
    return sorted(machines, key=lambda machine: str(machine["name"]))


def _machine(document: str, statistics: dict[str, Any]) -> dict[str, Any]:
    root = ET.fromstring(document)
    vcpu = root.find("vcpu")
    maximum = int((vcpu.text if vcpu is not None else None) or 1)
    memory = _bytes_of(root.find("memory"))
    state = _STATES.get(statistics.get("state.state", 0), "unknown")
    cpu_time = statistics.get("cpu.time") if state != "stopped" else None  # seen: a stopped machine with 17.6 s
    return {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "state": state,
        "vcpus": int(vcpu.get("current", maximum)) if vcpu is not None else maximum,
        "vcpus_maximum": maximum,
        "memory_bytes": memory,
        "memory_current_bytes": _bytes_of(root.find("currentMemory")) or memory,
        "cpu_seconds": cpu_time * _NANOSECOND if cpu_time is not None else None,
        "metadata": metadata.of(root),
    }


def _bytes_of(element: ET.Element | None) -> int:
    return int(element.text or 0) * _KIB if element is not None else 0  # libvirt always writes KiB


def _memory(connection: libvirt.virConnect, reported_bytes: int) -> dict[str, Any]:
    """Return the memory that the kernel has and what of it is free or only caches files, in bytes.

    virNodeGetInfo can report far too little where the kernel brings memory up late (4 of 24 GiB seen).
    """
    try:
        statistics = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    except libvirtError as error:
        if code_of(error) != "refused":
            raise
        try:
            free = connection.getFreeMemory()
        except libvirtError:
            free = None
        return {"total_bytes": reported_bytes, "free_bytes": free}
    total = max(reported_bytes, statistics.get("total", 0) * _KIB)
    free = sum(statistics.get(key, 0) for key in ("free", "buffers", "cached")) * _KIB
    return {"total_bytes": total, "free_bytes": min(free, total)}


def _pools(connection: libvirt.virConnect, shared_pools: Collection[str]) -> list[dict[str, Any]]:
    described = []
    for pool in connection.listAllStoragePools(0):
        try:
            described.append(pools.describe(pool, shared=pool.name() in shared_pools))
        except libvirtError as error:
            # Stopped or removed since it was listed: the next look shows it as it is then.
            if code_of(error) not in ("not_found", "refused"):
                raise
    return sorted(described, key=lambda pool: str(pool["name"]))


def _networks(connection: libvirt.virConnect) -> list[dict[str, Any]]:
    try:
        listed = connection.listAllNetworks(0)
    except libvirtError as error:
        if code_of(error) == "refused":  # a host without libvirt's network driver
            return []
        raise
    summaries = []
    for network in listed:
        with contextlib.suppress(libvirtError, VirtfleetError):  # removed since it was listed
            summaries.append(networks.summary(network))
    return sorted(summaries, key=lambda network: str(network["name"]))


def _load(connection: libvirt.virConnect, sample_seconds: float, deadline: Deadline) -> dict[str, Any]:
    first = _cpu_seconds(connection)
    percent = None
    if sample_seconds > 0 and first is not None:
        if sample_seconds >= deadline.left():
            wanted = f"measure the load for {sample_seconds:g} s"
            text = f"only {deadline.left():.1f} s are left for the task"
            raise VirtfleetError(wanted, text, "Make timeout longer or sample shorter.", "invalid")
        time.sleep(sample_seconds)
        second = _cpu_seconds(connection)
        if second is not None and second[1] > first[1]:
            percent = round(100 * (second[0] - first[0]) / (second[1] - first[1]), 1)
            first = second
    busy, total = first or (None, None)
    return {"cpu_busy_seconds": busy, "cpu_total_seconds": total, "cpu_percent": percent}


def _cpu_seconds(connection: libvirt.virConnect) -> tuple[float, float] | None:
    """Return the seconds that all CPUs together were busy and that they were up, since the host started."""
    try:
        times = connection.getCPUStats(libvirt.VIR_NODE_CPU_STATS_ALL_CPUS, 0)
    except libvirtError as error:
        if code_of(error) == "refused":
            return None
        raise
    total = sum(times.get(key, 0) for key in ("kernel", "user", "idle", "iowait", "intr"))
    busy = total - times.get("idle", 0) - times.get("iowait", 0)
    return busy * _NANOSECOND, total * _NANOSECOND


def _capabilities(connection: libvirt.virConnect, document: ET.Element, arch: str) -> dict[str, Any]:
    """Return what machines of the host's own architecture can be, read from its capabilities document."""
    found: dict[str, Any] = {
        "domain_types": [],
        "machine_types": [],
        "emulator": None,
        "max_vcpus": None,
        "firmware": [],
        "migration_transports": [
            element.text for element in document.iterfind("host/migration_features/uri_transports/uri_transport")
        ],
    }
    guest = next((g for g in document.iterfind("guest/arch") if g.get("name") == arch), None)
    if guest is not None:
        names = {machine.text for machine in guest.iterfind("machine")}
        found["domain_types"] = [domain.get("type") for domain in guest.iterfind("domain")]
        found["machine_types"] = sorted(name for name in names if name)
        found["emulator"] = guest.findtext("emulator")
    try:
        kind = "qemu" if "qemu" in found["domain_types"] else None
        domain = ET.fromstring(connection.getDomainCapabilities(None, arch, None, kind, 0))
    except libvirtError as error:
        if code_of(error) not in ("refused", "invalid"):
            raise
        return found
    vcpu = domain.find("vcpu")
    found["max_vcpus"] = int(vcpu.get("max", 0)) if vcpu is not None else None
    found["firmware"] = [v.text for v in domain.iterfind("os/enum[@name='firmware']/value")]
    return found


def _version(number: int) -> str:
    """Return libvirt's way of packing a version, 9000000, as 9.0.0."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
