# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States as plain data, as the schema writes them; `schema.read_state` reads them back to equal ones."""

from __future__ import annotations

from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import (
    SCHEMA_VERSION,
    Disk,
    Host,
    State,
    Vm,
)


def plain_host(host: Host) -> dict[str, Any]:
    """Return a host as the schema writes it."""
    return {
        "name": host.name,
        "zone": host.zone,
        "rack": host.rack,
        "live": host.live,
        "error": host.error,
        "maintenance": host.maintenance,
        "tags": sorted(host.tags),
        "vcpus": {
            "total": host.vcpus_total,
            "allocated": host.vcpus_allocated,
            "reserved": host.vcpus_reserved,
            "ratio": host.vcpus_ratio,
        },
        "memory": {
            "total_bytes": host.memory_total_bytes,
            "allocated_bytes": host.memory_allocated_bytes,
            "reserved_bytes": host.memory_reserved_bytes,
            "ratio": host.memory_ratio,
        },
        "pools": {
            name: {
                "total_bytes": pool.total_bytes,
                "allocated_bytes": pool.allocated_bytes,
                "ratio": pool.ratio,
                "shared": pool.shared,
            }
            for name, pool in sorted(host.pools.items())
        },
        "load": {
            "cpu_percent": host.load.cpu_percent,
            "io_percent": host.load.io_percent,
            "memory_percent": host.load.memory_percent,
            "disk_percent": host.load.disk_percent,
        },
        "numa": [
            {
                "vcpus_total": node.vcpus_total,
                "memory_total_bytes": node.memory_total_bytes,
                "vcpus_allocated": node.vcpus_allocated,
                "memory_allocated_bytes": node.memory_allocated_bytes,
            }
            for node in host.numa
        ],
    }


def plain_disk(disk: Disk) -> dict[str, Any]:
    """Return a disk as the schema writes it."""
    return {"pool": disk.pool, "size_bytes": disk.size_bytes, "overlay": disk.overlay}


def plain_vm(vm: Vm) -> dict[str, Any]:
    """Return a machine as the schema writes it."""
    return {
        "id": vm.id,
        "host": vm.host,
        "vcpus": vm.vcpus,
        "memory_bytes": vm.memory_bytes,
        "disks": [plain_disk(disk) for disk in vm.disks],
        "zone": vm.zone,
        "groups": list(vm.groups),
        "domain": vm.domain,
        "tags": sorted(vm.tags),
        "exclude": sorted(vm.exclude),
        "numa": list(vm.numa),
        "movable": vm.movable,
        "stays": vm.stays,
        "moved_seconds_ago": vm.moved_seconds_ago,
        "load_percent": vm.load_percent,
    }


def plain_state(state: State) -> dict[str, Any]:
    """Return a state as the schema writes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "generation": state.generation,
        "cursor": state.cursor,
        "hosts": [plain_host(host) for host in state.hosts],
        "vms": [plain_vm(vm) for vm in state.vms],
        "groups": [
            {
                "name": group.name,
                "rule": group.rule,
                "scope": group.scope,
                "hard": group.hard,
                "most": group.most,
            }
            for group in state.groups
        ],
    }
