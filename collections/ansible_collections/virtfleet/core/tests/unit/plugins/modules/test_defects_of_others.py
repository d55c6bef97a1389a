# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Defects seen in other programs for libvirt, which must not become ours."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins import modules
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import read
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result, outcome
from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from ansible_collections.virtfleet.core.tests.unit.plugins.modules.conftest import Call

GIB, TIB = 2**30, 2**40
POOL = "default-pool"
NAMES = sorted(path.stem for path in Path(next(iter(modules.__path__))).glob("*.py") if path.stem != "__init__")
MACHINE: dict[str, Any] = {"name": "t", "vcpus": 1, "memory": "128MiB"}


@pytest.mark.parametrize("name", NAMES)
def test_no_module_has_a_command_beside_its_state(name: str) -> None:
    spec = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{name}").SPEC
    assert not {"command", "action", "operation"} & set(spec)
    choices = spec.get("state", {}).get("choices", [])
    # States are how something is, not what is done to it.
    assert not {"create", "start", "stop", "delete", "define", "undefine", "destroy", "shutdown"} & set(choices)


@pytest.mark.parametrize("changed", [False, True])
def test_every_result_says_whether_something_changed(changed: bool) -> None:
    told = outcome("vm", lambda *_arguments: Result(changed), {}, check=False, diff=False)
    assert told == {"changed": changed}


def test_a_reading_module_says_that_nothing_changed(call: Call) -> None:
    for name in ("host_info", "vm_info"):
        assert call(name).changed is False


def test_an_iso_and_an_image_survive_the_machine_that_is_deleted(call: Call, test_host: libvirt.virConnect) -> None:
    for name in ("install.iso", "shared-data"):
        call("volume", name=name, pool=POOL, size="1MiB", format="raw")
    disks = [{"pool": POOL, "size": "1GiB"}, *({"pool": POOL, "name": each} for each in ("install.iso", "shared-data"))]
    call("vm", **MACHINE, disks=disks)
    gone = call("vm", name="t", state="absent", delete_made_volumes=True).values["vm"]
    assert len(gone["deleted_volumes"]) == 1
    pool = test_host.storagePoolLookupByName(POOL)
    assert set(pool.listVolumes()) == {"install.iso", "shared-data"}
    for name in pool.listVolumes():
        call("volume", name=name, pool=POOL, state="absent")


def test_a_machine_is_stopped_when_the_module_says_so(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", **MACHINE, state="running")
    assert call("vm", name="t", state="stopped").values["vm"]["state"] == "stopped"
    assert not test_host.lookupByName("t").isActive()
    call("vm", name="t", state="absent")


def test_a_paused_machine_is_paused_and_no_other_state(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", **MACHINE, state="running")
    assert call("vm", name="t", state="paused").values["vm"]["state"] == "paused"
    assert test_host.lookupByName("t").state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert call("vm_info", vms=[{"name": "t"}]).values["vms"][0]["state"] == "paused"
    call("vm", name="t", state="absent")


def test_deleting_a_machine_leaves_the_connection_of_others_open(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", vms=[{**MACHINE, "name": name} for name in ("t1", "t2")])
    gone = call("vm", vms=[{"name": "t1", "state": "absent"}, {"name": "t2", "state": "absent"}])
    assert [each["state"] for each in gone.values["vms"]] == ["absent", "absent"]
    assert test_host.isAlive()


def test_a_machine_that_was_stopped_is_still_there(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", **MACHINE, state="running")
    call("vm", name="t", state="stopped", force=True, grace=0.0)
    assert test_host.lookupByName("t").isPersistent()
    call("vm", name="t", state="absent")


def test_a_volume_that_is_made_is_attached_to_nobody(call: Call, test_host: libvirt.virConnect) -> None:
    before = {domain.name(): domain.XMLDesc(0) for domain in test_host.listAllDomains()}
    call("volume", name="v", pool=POOL, size="1GiB")
    assert {domain.name(): domain.XMLDesc(0) for domain in test_host.listAllDomains()} == before
    call("volume", name="v", pool=POOL, state="absent")


def test_each_disk_has_a_target_of_its_own(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", **MACHINE, disks=[{"pool": POOL, "size": "1GiB"} for _number in range(3)])
    root = ET.fromstring(test_host.lookupByName("t").XMLDesc(0))
    targets = [str(target.get("dev")) for target in root.iterfind("devices/disk/target")]
    assert len(set(targets)) == len(targets) == 3
    call("vm", name="t", state="absent", delete_made_volumes=True)


def test_names_of_volumes_do_not_collide_after_a_deletion() -> None:
    """They come from the machine's UUID, not from how many there are."""
    first, second = (volume_prefix("t", f"{number}c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c21") for number in (5, 6))
    assert first != second


def test_a_volume_lies_where_its_pool_does(call: Call) -> None:
    call("pool", name="p", path="/srv/elsewhere")
    made = call("volume", name="v", pool="p", size="1GiB").values["volume"]
    assert made["path"] == "/srv/elsewhere/v"
    call("volume", name="v", pool="p", state="absent")
    call("pool", name="p", state="absent")


def test_terabytes_do_not_overflow() -> None:
    assert [parse_size(text) for text in ("4TiB", "4T", "8192TiB")] == [4 * TIB, 4 * TIB, 8192 * TIB]


def test_a_machines_kibibytes_are_told_as_bytes() -> None:
    document = "<domain type='test'><name>t</name><memory unit='KiB'>1048576</memory><vcpu>1</vcpu></domain>"
    assert read.read(document)["memory_bytes"] == GIB


def decided(**wanted: int) -> dict[str, Any]:
    """Return what becomes of a machine on a host that has 8 GiB of memory and a pool of 100 GiB, mostly taken."""
    host = {
        **{"name": "h", "zone": "z", "live": True},
        "vcpus": {"total": 8, "allocated": 0, "reserved": 0, "ratio": 1.0},
        "memory": {"total_bytes": 8 * GIB, "allocated_bytes": 7 * GIB, "reserved_bytes": 0, "ratio": 1.0},
        "pools": {POOL: {"total_bytes": 100 * GIB, "allocated_bytes": 95 * GIB, "ratio": 1.0}},
    }
    request = {
        **{"id": "t", "vcpus": 1, "memory_bytes": wanted["memory_bytes"]},
        "disks": [{"pool": POOL, "size_bytes": wanted["disk_bytes"]}],
    }
    state = {"schema_version": 1, "generation": 0, "hosts": [host]}
    return dict(placement.place(state, [request], placement.DEFAULT_POLICY, explain=True))


def test_what_is_free_counts_and_not_the_total_and_memory_is_compared_in_one_unit() -> None:
    assert decided(memory_bytes=GIB, disk_bytes=5 * GIB)["fits"]
    assert not decided(memory_bytes=2 * GIB, disk_bytes=5 * GIB)["fits"]
    assert not decided(memory_bytes=GIB, disk_bytes=6 * GIB)["fits"]


def test_a_refusal_is_heeded() -> None:
    """`if (canAllocate = false)` assigned, and allocated all the same."""
    refused = decided(memory_bytes=2 * GIB, disk_bytes=GIB)
    assert (refused["placements"], len(refused["unplaced"])) == ([], 1)


def test_a_size_without_a_unit_is_refused(call: Call) -> None:
    with pytest.raises(VirtfleetError) as refused:
        call("volume", name="v", pool=POOL, size="10")
    assert refused.value.code == "invalid"
