# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import subprocess
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils import network_definition
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import network as networks

from .conftest import Call

NAT: dict[str, Any] = {
    "mode": "nat",
    "address": "192.168.77.1/24",
    "dhcp": {
        "start": "192.168.77.10",
        "end": "192.168.77.20",
        "hosts": [{"mac": "52:54:00:00:00:0A", "address": "192.168.77.3", "name": "db1"}],
    },
}
BRIDGE = {"mode": "bridge", "bridge": "vmbr0"}


def with_dhcp(**changed: Any) -> dict[str, Any]:
    changed_nat = copy.deepcopy(NAT)
    changed_nat["dhcp"].update(changed)
    return changed_nat


# (what is there first, what is asked for, what changes)
TRANSITIONS = [
    (None, NAT, ["exists"]),
    (None, {**NAT, "state": "inactive"}, ["exists"]),
    (None, BRIDGE, ["exists"]),
    (None, {"mode": "isolated"}, ["exists"]),
    (None, {"mode": "routed", "address": "10.9.0.1/16", "domain": "lab.example", "bridge": "vr0"}, ["exists"]),
    (None, {"state": "absent"}, []),
    (NAT, NAT, []),
    (NAT, {}, []),
    (BRIDGE, BRIDGE, []),
    (NAT, {"state": "inactive"}, ["active"]),
    (NAT, {"state": "absent"}, ["exists"]),
    ({**NAT, "state": "inactive"}, {}, ["active"]),
    (NAT, {"autostart": False}, ["autostart"]),
    (NAT, {**with_dhcp(end="192.168.77.30"), "restart": True}, ["dhcp.end"]),
    (NAT, {**NAT, "address": "192.168.77.2/24", "restart": True}, ["address"]),
    (NAT, {**NAT, "dhcp": None, "restart": True}, ["dhcp"]),
    (NAT, {**BRIDGE, "restart": True}, ["mode", "bridge", "address", "dhcp"]),
    ({**NAT, "state": "inactive"}, {**with_dhcp(end="192.168.77.30"), "state": "inactive"}, ["dhcp.end"]),
]


@pytest.mark.parametrize(("first", "asked", "changes"), TRANSITIONS)
def test_a_network_is_brought_into_the_wanted_state_once(
    call: Call,
    test_host: libvirt.virConnect,
    first: dict[str, Any] | None,
    asked: dict[str, Any],
    changes: list[str],
) -> None:
    if first is not None:
        call("network", name="n", **first)

    def documents() -> list[str]:
        return [net.XMLDesc(0) + str((net.isActive(), net.autostart())) for net in test_host.listAllNetworks()]

    untouched = documents()
    predicted = call("network", name="n", check=True, **asked)
    assert documents() == untouched
    done = call("network", name="n", **asked)
    for result in (predicted, done):
        assert [change["what"] for change in result.values["plan"]] == changes
        assert result.changed == bool(changes)
    assert (predicted.before, predicted.after) == (done.before, done.after)
    again = call("network", name="n", **asked)
    assert not again.changed
    assert (again.values["network"] is None) == (asked.get("state") == "absent")


def test_a_changed_definition_of_an_active_network_is_noticed_and_needs_leave_to_restart(call: Call) -> None:
    call("network", name="n", **NAT)
    for check in (True, False):
        with pytest.raises(VirtfleetError, match=r"dhcp\.end .* restart: true") as caught:
            call("network", name="n", check=check, **with_dhcp(end="192.168.77.30"))
        assert caught.value.code == "refused"


def test_a_network_that_a_running_machine_uses_is_not_stopped(call: Call, test_host: libvirt.virConnect) -> None:
    call("network", name="n", **NAT)
    test_host.createXML(
        "<domain type='test'><name>web1</name><memory>1024</memory><os><type>hvm</type></os><devices>"
        "<interface type='network'><source network='n'/></interface></devices></domain>"
    )
    for state in ("inactive", "absent"):
        for check in (True, False):
            with pytest.raises(VirtfleetError, match="machines use it: web1") as caught:
                call("network", name="n", state=state, check=check)
            assert caught.value.code == "refused"
    assert call("network", name="n", state="absent", force=True).changed


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nat"},
        {"mode": "routed"},
        {"mode": "nat", "address": "192.168.77.1"},
        {"mode": "nat", "address": "192.168.77.0/24"},
        {"mode": "nat", "address": "192.168.77.255/24"},
        {"mode": "nat", "address": "192.168.77.1/31"},
        {"mode": "nat", "address": "{{ 1 }}"},
        {"mode": "nat", "address": "fe80::1/64"},
        {"mode": "bridge"},
        {"mode": "bridge", "bridge": "vmbr0", "address": "192.168.77.1/24"},
        {"mode": "bridge", "bridge": "a" * 16},
        {"mode": "bridge", "bridge": "../x"},
        {"mode": "bridge", "bridge": "<x/>"},
        {"mode": "isolated", "domain": "-o x; y"},
        with_dhcp(start=None),
        with_dhcp(end="192.168.77.5"),
        with_dhcp(end="10.0.0.1"),
        with_dhcp(start="192.168.77.1"),
        with_dhcp(hosts=[{"mac": "nonsense", "address": "192.168.77.3"}]),
        with_dhcp(hosts=[{"mac": "52:54:00:00:00:01", "address": "10.0.0.3"}]),
        with_dhcp(hosts=[{"mac": "52:54:00:00:00:01", "address": "192.168.77.3", "name": "<x/>"}]),
        with_dhcp(hosts=[{"mac": f"52:54:00:00:00:0{i}", "address": "192.168.77.3"} for i in (1, 2)]),
    ],
)
def test_what_cannot_be_a_network_is_refused_and_nothing_is_left(
    call: Call, test_host: libvirt.virConnect, options: dict[str, Any]
) -> None:
    with pytest.raises(VirtfleetError) as caught:
        call("network", name="n", **options)
    assert caught.value.code == "invalid"
    assert networks.find(test_host, "n") is None


def test_without_a_definition_there_must_be_one(call: Call) -> None:
    with pytest.raises(VirtfleetError) as caught:
        call("network", name="n")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("nat", {key: value for key, value in NAT.items() if key != "mode"}),
        ("routed", {"address": "10.9.0.1/16", "domain": "lab.example", "bridge": "vr0"}),
        ("isolated", {}),
        ("isolated", {"address": "10.9.0.1/16", "dhcp": {"start": None, "end": None, "hosts": []}}),
        ("bridge", {"bridge": "vmbr0"}),
    ],
)
def test_every_document_is_valid_for_libvirts_own_schema(mode: str, options: dict[str, Any]) -> None:
    definition = network_definition.wanted_definition("n", mode, **options)
    document = network_definition.network_xml("n", definition, "0ce8ca2f-6ba7-4b9e-9b0c-2b3d0a3b1a11")
    subprocess.run(["virt-xml-validate", "-", "network"], input=document, text=True, check=True)
