# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import host as hosts

from .conftest import Call

MIB = 1024**2
GIB = 1024**3


def machine(name: str, *, maximum: int = 4, current: int = 2, memory_mib: int = 512) -> str:
    return (
        f"<domain type='test'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory>"
        f"<currentMemory unit='MiB'>{memory_mib // 2}</currentMemory><vcpu current='{current}'>{maximum}</vcpu>"
        "<os><type>hvm</type></os></domain>"
    )


def info(call: Call, **options: Any) -> dict[str, Any]:
    result = call("host_info", **options)
    assert not result.changed
    host: dict[str, Any] = result.values["host"]
    return host


def test_every_defined_machine_counts_as_allocated_running_or_not(call: Call, test_host: libvirt.virConnect) -> None:
    before = info(call)
    test_host.defineXML(machine("stopped"))
    test_host.createXML(machine("running"))
    after = info(call)
    assert after["vcpus"]["allocated"] - before["vcpus"]["allocated"] == 4
    assert after["memory"]["allocated_bytes"] - before["memory"]["allocated_bytes"] == 2 * 512 * MIB
    states = {one["name"]: one["state"] for one in after["machines"]}
    assert (states["stopped"], states["running"]) == ("stopped", "running")
    stopped = next(one for one in after["machines"] if one["name"] == "stopped")
    assert (stopped["vcpus"], stopped["vcpus_maximum"]) == (2, 4)
    assert (stopped["memory_bytes"], stopped["memory_current_bytes"]) == (512 * MIB, 256 * MIB)


def test_a_pool_has_promised_the_sizes_that_machines_see(call: Call) -> None:
    call("pool", name="p", path="/var/lib/libvirt/p")
    call("volume", pool="p", name="base", size="2GiB")
    call("volume", pool="p", name="over", image="base", size="10GiB")
    call("pool", name="q", path="/var/lib/libvirt/q", state="inactive")
    pools = {pool["name"]: pool for pool in info(call, shared_pools=["p"])["pools"]}
    assert pools["p"]["provisioned_bytes"] == 12 * GIB
    assert pools["p"]["capacity_bytes"] == pools["p"]["allocation_bytes"] + pools["p"]["available_bytes"]
    assert (pools["p"]["shared"], pools["q"]["shared"]) == (True, False)
    figures = ("capacity_bytes", "allocation_bytes", "available_bytes", "provisioned_bytes")
    assert [pools["q"][figure] for figure in figures] == [None] * 4
    assert (pools["q"]["active"], pools["q"]["type"], pools["q"]["path"]) == (False, "dir", "/var/lib/libvirt/q")


def test_networks_tell_their_bridge(call: Call) -> None:
    call("network", name="guests", mode="bridge", bridge="vmbr0")
    networks = {network["name"]: network for network in info(call)["networks"]}
    guests = {"name": "guests", "active": True, "bridge": "vmbr0", "forward": "bridge", "mode": "bridge", "leases": []}
    assert networks["guests"].items() >= guests.items()


def test_the_name_can_be_given(call: Call) -> None:
    assert info(call)["name"]
    assert info(call, name="host-a")["name"] == "host-a"


def test_the_load_is_measured_only_when_asked(call: Call) -> None:
    assert info(call)["load"]["cpu_percent"] is None
    assert info(call, sample=0.1)["load"]["cpu_total_seconds"] > 0
    for sample in (-1, 100):
        with pytest.raises(VirtfleetError) as caught:
            info(call, sample=sample, timeout=10)
        assert caught.value.code == "invalid"


class FewMemory:
    """A host whose virNodeGetInfo knows less than its kernel, as seen on one with memory brought up late."""

    def __init__(self, statistics_kib: dict[str, int]) -> None:
        self.statistics_kib = statistics_kib

    def getMemoryStats(self, _cell: int) -> dict[str, int]:
        return self.statistics_kib


@pytest.mark.parametrize(
    ("statistics_kib", "total", "free"),
    [
        ({"total": 24 * MIB, "free": 20 * MIB, "buffers": MIB, "cached": MIB}, 24 * GIB, 22 * GIB),
        ({"total": 2 * MIB, "free": MIB}, 4 * GIB, GIB),
        ({"total": 24 * MIB, "free": 24 * MIB, "cached": MIB}, 24 * GIB, 24 * GIB),
    ],
)
def test_the_kernels_own_figure_counts_when_it_is_larger(statistics_kib: dict[str, int], total: int, free: int) -> None:
    assert hosts._memory(FewMemory(statistics_kib), 4 * GIB) == {"total_bytes": total, "free_bytes": free}
