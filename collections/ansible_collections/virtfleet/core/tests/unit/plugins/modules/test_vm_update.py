# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm and machines that are there: check mode tells what the real run does, and a second run changes nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import read
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.tests.unit.plugins.modules.conftest import Call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

SCHEMA = etree.RelaxNG(file="/usr/share/libvirt/schemas/domain.rng")
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c21"
MACHINE: dict[str, Any] = {
    **{"name": "t", "uuid": UUID, "vcpus": 2, "memory": "256MiB"},
    "metadata": {"id": "vm_1", "owner": "me"},
}

CHANGES: list[dict[str, Any]] = [
    {"vcpus": 1},
    {"vcpus": 4},
    {"max_vcpus": 4},
    {"max_vcpus": 1},
    {"memory": "128MiB"},
    {"memory": "1GiB"},
    {"max_memory": "1GiB"},
    {"max_memory": "64MiB"},
    {"machine": "q35"},
    {"cpu_model": "maximum"},
    {"cpu_model": "qemu64"},
    {"topology": {"cores": 2}},
    {"topology": {"sockets": 1, "cores": 1, "threads": 2}},
    {"hugepages": "2MiB"},
    {"hugepages": "default"},
    {"firmware": "uefi"},
    {"boot": ["network", "hd"]},
    {"boot": ["cdrom"]},
    {"video": "vga"},
    {"serial": "none"},
    {"rng": False},
    {"watchdog": "poweroff"},
    {"autostart": True},
    {"metadata": {"owner": "you", "tags": ["a", "</x>"]}},
    {"metadata": {"{{ 7 * 7 }}": "$(id)"}},
    {"xml_patch": [{"path": "devices/memballoon", "attribute": "model", "value": "none"}]},
    {"xml_patch": [{"path": "description", "value": "</description>"}]},
    {"xml_patch": [{"path": "features/acpi", "state": "absent"}]},
    {"new_name": "t2"},
]
NOTHING: list[dict[str, Any]] = [
    {},
    {"vcpus": 2, "memory": "256MiB", "max_memory": "262144KiB"},
    {"metadata": {"owner": "me"}},
    {"metadata": {"nothing": None, "attempt": 7}},
    {"boot": ["hd"], "video": "none", "serial": "pty", "rng": True, "watchdog": "none", "tpm": False},
    {"firmware": "bios", "hugepages": "off", "autostart": False, "io": {}, "accel": "auto"},
    {"new_name": "t"},
    {"xml_patch": [{"path": "features/nonsense", "state": "absent"}]},
]


def told(result: Any) -> tuple[Any, ...]:
    """Return what check mode and the real run must agree on."""
    vm = result.values["vm"]
    return result.changed, result.before, result.after, vm["plan"], vm["needs_power_cycle"], vm["power_cycled"]


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change)[:40])
def test_a_change_is_made_as_predicted_and_once(
    call: Call, test_host: libvirt.virConnect, change: dict[str, Any], state: str
) -> None:
    call("vm", **MACHINE, state=state)
    options = {"name": "t", "uuid": UUID, **change}
    if state == "running" and "new_name" in change:
        options["allow_power_cycle"] = True
    before = test_host.lookupByUUIDString(UUID).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    predicted = call("vm", check=True, **options)
    assert test_host.lookupByUUIDString(UUID).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
    done = call("vm", **options)
    assert told(predicted) == told(done)
    assert done.changed
    assert done.values["vm"]["plan"]
    for check in (True, False):
        again = call("vm", check=check, **options)
        assert not again.changed
        assert again.values["vm"]["plan"] == []
    document = test_host.lookupByUUIDString(UUID).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    SCHEMA.assertValid(etree.fromstring(document))


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("options", NOTHING, ids=lambda options: str(options)[:40])
def test_what_is_as_wanted_already_changes_nothing(call: Call, options: dict[str, Any], state: str) -> None:
    call("vm", **MACHINE, state=state)
    for check in (True, False):
        done = call("vm", check=check, name="t", **options)
        assert not done.changed
        assert done.values["vm"]["plan"] == []
        assert not done.values["vm"]["needs_power_cycle"]


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: str(change)[:40])
def test_a_machine_that_is_made_so_needs_no_change(call: Call, change: dict[str, Any]) -> None:
    asked = {"vcpus": 2, "memory": "256MiB", **change}
    if asked["vcpus"] > asked.get("max_vcpus", 9):
        asked["vcpus"] = asked["max_vcpus"]
    if change == {"max_memory": "64MiB"}:
        asked["memory"] = "64MiB"
    call("vm", name="t", **asked)
    for check in (True, False):
        done = call("vm", check=check, name="t", **asked)
        assert not done.changed, done.values["vm"]["plan"]


def test_the_power_of_a_running_machine_is_cycled_only_when_that_is_allowed(call: Call) -> None:
    call("vm", **MACHINE, state="running")
    change = {"name": "t", "video": "vga"}
    first = call("vm", **change)
    assert first.values["vm"]["needs_power_cycle"]
    assert [entry["effect"] for entry in first.values["vm"]["plan"]] == ["next_boot"]
    waiting = call("vm", **change)
    assert not waiting.changed
    assert waiting.values["vm"]["needs_power_cycle"]
    cycling = change | {"allow_power_cycle": True}
    predicted, done = call("vm", check=True, **cycling), call("vm", **cycling)
    assert told(predicted) == told(done)
    assert done.changed
    assert done.values["vm"]["power_cycled"]
    assert done.values["vm"]["state"] == "running"
    settled = call("vm", **cycling)
    assert not settled.changed
    assert not settled.values["vm"]["power_cycled"]
    assert not settled.values["vm"]["needs_power_cycle"]


def test_a_running_machine_gets_vcpus_and_memory_up_to_its_maxima_at_once(call: Call) -> None:
    call("vm", **MACHINE | {"max_vcpus": 4, "max_memory": "512MiB"}, state="running")
    done = call("vm", name="t", vcpus=4, memory="512MiB")
    assert {entry["what"]: entry["effect"] for entry in done.values["vm"]["plan"]} == {
        "vcpus": "live",
        "memory": "live",
    }
    assert not done.values["vm"]["needs_power_cycle"]
    assert (done.values["vm"]["vcpus"], done.values["vm"]["memory_current_bytes"]) == (4, 512 * 2**20)
    more = call("vm", name="t", vcpus=5, memory="1GiB")
    assert more.values["vm"]["needs_power_cycle"]
    assert {entry["effect"] for entry in more.values["vm"]["plan"]} == {"next_boot"}


def test_a_machine_that_is_stopped_meanwhile_is_changed_without_a_power_cycle(call: Call) -> None:
    call("vm", **MACHINE, state="running")
    options = {"name": "t", "state": "stopped", "vcpus": 3, "force": True, "grace": 0.0}
    predicted, done = call("vm", check=True, **options), call("vm", **options)
    assert told(predicted) == told(done)
    assert done.values["vm"]["state"] == "stopped"
    assert not done.values["vm"]["needs_power_cycle"]
    assert not call("vm", **options).changed


def test_a_name_is_changed_once_and_never_to_that_of_another(call: Call) -> None:
    call("vm", **MACHINE)
    call("vm", name="other", vcpus=1, memory="64MiB")
    for options in ({"name": "t", "new_name": "other"}, {"name": "none", "new_name": "nowhere"}):
        for check in (True, False):
            with pytest.raises(VirtfleetError) as failed:
                call("vm", check=check, **options)
            assert failed.value.code in ("already_exists", "not_found")
    assert call("vm", name="t", new_name="t3").changed
    assert not call("vm", name="t", new_name="t3").changed
    assert call("vm_info", vms=[{"uuid": UUID}]).values["vms"][0]["name"] == "t3"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tpm": True}, "refused"),
        ({"accel": "kvm"}, "refused"),
        ({"new_name": "t2"}, "refused"),
        ({"new_name": "../t2"}, "invalid"),
        ({"topology": {"cores": 3}}, "invalid"),
        ({"xml_patch": [{"path": "uuid", "value": UUID}]}, "refused"),
        ({"xml_patch": [{"path": "a[9]", "value": "x"}]}, "invalid"),
        ({"vcpus": -1}, "invalid"),
    ],
)
def test_what_cannot_be_is_refused_by_check_mode_too(call: Call, options: dict[str, Any], code: str) -> None:
    call("vm", **MACHINE, state="running")
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call(
                "vm",
                check=check,
                name="t",
                vcpus=options.get("vcpus", 2),
                **{k: v for k, v in options.items() if k != "vcpus"},
            )
        assert failed.value.code == code
        assert failed.value.values["vm"]["changed"] is False


def test_what_libvirt_refuses_leaves_the_definition_as_it_was(call: Call, test_host: libvirt.virConnect) -> None:
    call("vm", **MACHINE)
    before = test_host.lookupByName("t").XMLDesc(0)
    patch = [{"path": "nonsense/below", "value": "</domain>"}]
    with pytest.raises(VirtfleetError) as failed:
        call("vm", name="t", vcpus=3, autostart=True, xml_patch=patch)
    assert "nonsense" in str(failed.value)
    assert test_host.lookupByName("t").XMLDesc(0) == before
    assert not test_host.lookupByName("t").autostart()


def test_what_nobody_named_is_left(call: Call, test_host: libvirt.virConnect) -> None:
    """The passwords of a machine's graphics too: libvirt shows them only when it is asked to."""
    test_host.defineXML(
        "<domain type='test'><name>foreign</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>"
        "<metadata><x:y xmlns:x='urn:x'>kept</x:y></metadata>"
        "<devices><graphics type='vnc' passwd='hidden'/></devices></domain>"
    )
    call("vm", name="foreign", vcpus=2, metadata={"owner": "me"})
    root = ET.fromstring(test_host.lookupByName("foreign").XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
    assert root.find("devices/graphics").get("passwd") == "hidden"  # type: ignore[union-attr]
    assert root.findtext("metadata/{urn:x}y") == "kept"
    assert read(root)["metadata"] == {"owner": "me"}


WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=30)
SPECS = st.fixed_dictionaries(
    {"vcpus": st.integers(1, 8), "memory": st.integers(16, 4096).map(lambda mib: f"{mib}MiB")},
    optional={
        "machine": st.sampled_from(["q35", "pc"]),
        "cpu_model": st.sampled_from(["maximum", "qemu64", "Skylake-Server"]),
        "firmware": st.sampled_from(["bios", "uefi"]),
        "boot": st.lists(st.sampled_from(["hd", "cdrom", "network", "fd"]), min_size=1, unique=True),
        "video": st.sampled_from(["none", "vga", "virtio"]),
        "serial": st.sampled_from(["none", "pty"]),
        "rng": st.booleans(),
        "watchdog": st.sampled_from(["none", "reset", "poweroff", "pause"]),
        "hugepages": st.sampled_from(["off", "default", "2MiB", "1GiB"]),
        "autostart": st.booleans(),
        "metadata": st.dictionaries(WORDS, WORDS | st.integers() | st.lists(WORDS, max_size=3), max_size=4),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=SPECS, second=SPECS)
def test_any_machine_reads_back_as_it_was_built_and_as_it_was_changed(
    call: Call, test_host: libvirt.virConnect, first: dict[str, Any], second: dict[str, Any]
) -> None:
    call("vm", name="any", state="absent")
    call("vm", name="any", **first)
    for wanted in (first, second):
        call("vm", name="any", **wanted)
        left = call("vm", name="any", **wanted)
        assert not left.changed, left.values["vm"]["plan"]
        document = test_host.lookupByName("any").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        SCHEMA.assertValid(etree.fromstring(document))
