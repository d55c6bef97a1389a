# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_clone on the test driver, which has no streams: what is predicted, and what is refused beforehand."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.tests.unit.plugins.modules.conftest import Call

UUID = "6c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c22"
POOL = "default-pool"


@pytest.fixture
def source(call: Call) -> Any:
    """A stopped machine with two disks of its own."""
    disks = [{"pool": POOL, "size": "1GiB"}, {"pool": POOL, "size": "2GiB", "serial": "data"}]
    made = call("vm", name="web1", vcpus=1, memory="128MiB", disks=disks, networks=[{"network": "default"}])
    yield made.values["vm"]
    call("vm", name="web1", state="absent", delete_made_volumes=True)


def test_a_clone_is_predicted_with_the_names_of_its_volumes(call: Call, source: dict[str, Any]) -> None:
    told = call("vm_clone", check=True, source="web1", name="web2", uuid=UUID, state="running")
    assert (told.changed, told.before) == (True, None)
    assert told.after == {"name": "web2", "state": "running", "mode": "full", "snapshot": None}
    assert told.values["disks"] == [
        {
            **{"target": target, "serial": serial, "pool": POOL, "name": f"web2-{UUID[:8]}-{label}", "made": "copy"},
            **{"image": None, "from": f"web1-{source['uuid'][:8]}-{label}", "size_bytes": size},
        }
        for target, serial, label, size in (("vda", "root", "root", 2**30), ("vdb", "data", "disk1", 2**31))
    ]


def test_more_cards_than_the_source_has_can_be_given_and_need_no_macs(call: Call, source: dict[str, Any]) -> None:
    networks = [{"network": "default", "address": "10.0.0.5/24"}, {"bridge": "br0"}]
    assert call("vm_clone", check=True, source="web1", name="web2", networks=networks, cloud_init={}).changed


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"name": "web1"}, "invalid"),
        ({"name": "web2", "source": "nobody"}, "not_found"),
        ({"name": "test"}, "already_exists"),
        ({"name": "web2", "mode": "linked"}, "refused"),
        ({"name": "web2", "mode": "fresh"}, "refused"),
        ({"name": "web2", "source": "test"}, "refused"),  # it runs
        ({"name": "web2", "snapshot": "none"}, "not_found"),
        ({"name": "web2", "snapshot": "x", "mode": "fresh"}, "invalid"),
        ({"name": "../web2"}, "invalid"),
        ({"name": "web2", "uuid": "no uuid"}, "invalid"),
        ({"name": "web2", "networks": [{"bridge": "a", "network": "b"}]}, "invalid"),
        ({"name": "web2", "metadata": {"x": float("nan")}}, "invalid"),
        ({"name": "web2", "timeout": 0.0}, "invalid"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_cannot_be_is_refused_in_check_mode_and_for_real(
    call: Call,
    test_host: libvirt.virConnect,
    source: dict[str, Any],
    options: dict[str, Any],
    code: str,
    *,
    check: bool,
) -> None:
    pool = test_host.storagePoolLookupByName(POOL)
    before = sorted(pool.listVolumes())
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", check=check, **{"source": "web1", **options})
    assert refusal.value.code == code, str(refusal.value)
    assert sorted(pool.listVolumes()) == before


def test_a_disk_in_no_pool_is_refused(call: Call, test_host: libvirt.virConnect, source: dict[str, Any]) -> None:
    domain = test_host.lookupByName("web1")
    document = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    path = source["disks"][1]["source"]
    test_host.defineXML(document.replace(path, "/nowhere/data.img"))
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", check=True, source="web1", name="web2")
    assert (refusal.value.code, "/nowhere/data.img" in refusal.value.obstacle) == ("refused", True)
    test_host.defineXML(document)
