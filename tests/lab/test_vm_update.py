"""Module vm and machines that are there, on real hosts: hot-plugged, ballooned, throttled, redefined, renamed."""

import json
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import settings
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.every_step import WHEN, failing
from tests.lab.test_storage_modules import call
from tests.lab.test_vm_module import UUID, host, image, machine, state

__all__ = ["host", "image"]  # the fixtures of that file

pytestmark = pytest.mark.lab

BOOT_SECONDS = 180.0
MIB = 2**20

CHANGES: list[dict[str, Any]] = [
    {"vcpus": 2},
    {"max_vcpus": 4},
    {"memory": "64MiB"},
    {"memory": "256MiB"},
    {"max_memory": "256MiB"},
    {"machine": "q35"},
    {"cpu_model": "maximum"},
    {"max_vcpus": 4, "topology": {"cores": 2, "threads": 2}},
    {"hugepages": "2MiB"},
    {"firmware": "uefi"},
    {"boot": ["network", "hd"]},
    {"video": "vga"},
    {"serial": "none"},
    {"rng": False},
    {"watchdog": "poweroff"},
    {"autostart": True},
    {"io": {"bytes_per_second": "10MiB", "read_iops": 100, "write_iops": 50}},
    {"metadata": {"owner": "you", "tags": ["a", "</vm>"]}},
    {"xml_patch": [{"path": "devices/memballoon", "attribute": "model", "value": "none"}]},
    {"xml_patch": [{"path": "description", "value": "</description>"}]},
    {"new_name": "vm-test2"},
]
AT_ONCE = ("io", "metadata", "autostart", "name")


def told(result: Any) -> tuple[Any, ...]:
    vm = result.values["vm"]
    return result.changed, result.before, result.after, vm["plan"], vm["needs_power_cycle"], vm["power_cycled"]


def agreed(uri: str, **options: Any) -> dict[str, Any]:
    """Run in check mode, for real, and again: the first two agree, the third changes nothing. Return the second's."""
    predicted, done = call("vm", uri, check=True, **options), call("vm", uri, **options)
    assert told(predicted) == told(done)
    again = call("vm", uri, **options)
    assert not again.changed, again.values["vm"]["plan"]
    vm: dict[str, Any] = done.values["vm"]
    return vm


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change)[:40])
def test_a_stopped_machine_is_changed_as_predicted_and_once(
    host: str, image: str, change: dict[str, Any], tmp_path: Path
) -> None:
    call("vm", host, **machine(image, state="present"))
    changed = agreed(host, uuid=UUID, **change)
    assert changed["plan"]
    assert not changed["needs_power_cycle"]
    with opened_host(host, Deadline(10)) as connection:
        file = tmp_path / "domain.xml"
        file.write_text(connection.lookupByUUIDString(UUID).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    subprocess.run(["virt-xml-validate", str(file), "domain"], check=True, capture_output=True)
    call("vm", host, uuid=UUID, state="absent", delete_made_volumes=True)


def test_a_machine_that_is_not_stopped_holds_what_can_be_held_at_once(host: str, image: str) -> None:
    """A paused one: it costs no processor time."""
    call("vm", host, **machine(image))
    everything = {name: value for change in CHANGES[:-1] for name, value in change.items()}
    everything |= {"vcpus": 2, "memory": "128MiB"}
    for name in ("machine", "firmware", "hugepages"):
        del everything[name]
    changed = agreed(host, name="vm-test", **everything)
    assert changed["needs_power_cycle"]
    for entry in changed["plan"]:
        assert entry["effect"] == ("live" if entry["what"].partition(".")[0] in AT_ONCE else "next_boot"), entry
    cycled = agreed(host, name="vm-test", allow_power_cycle=True, force=True, grace=0.0, **everything)
    assert cycled["power_cycled"]
    assert not cycled["needs_power_cycle"]
    assert state(host) == "paused"


def test_a_running_machine_gets_vcpus_memory_and_limits_without_a_reboot(host: str, image: str) -> None:
    asked = machine(image, state="running", wait_for="agent", timeout=BOOT_SECONDS, max_vcpus=3, max_memory="192MiB")
    call("vm", host, **asked)
    with opened_host(host, Deadline(10)) as connection:
        domain = connection.lookupByName("vm-test")
        begun = domain.info()[4]
        deadline = time.monotonic() + 60
        while domain.info()[2] * 1024 != 128 * MIB:  # the balloon is filled once its driver is there
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not call("vm", host, **asked).changed

        limits = {"bytes_per_second": "50MiB", "iops": 5000}
        changes: list[dict[str, Any]] = [
            {"vcpus": 3},
            {"memory": "192MiB"},
            {"memory": "112MiB"},
            {"io": limits},
            {"io": {}},
        ]
        for change in changes:
            changed = agreed(host, name="vm-test", **change)
            assert {entry["effect"] for entry in changed["plan"]} == {"live"}, changed["plan"]
            assert not changed["needs_power_cycle"]
        changed = agreed(host, name="vm-test", metadata={"owner": "you"}, autostart=True)
        assert changed["metadata"]["owner"] == "you"
        assert changed["made_volumes"]

        def online() -> int:
            answer = libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-get-vcpus"}', 5, 0)
            return sum(bool(each["online"]) for each in json.loads(answer)["return"])

        deadline = time.monotonic() + 60
        while online() != 3:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert domain.info()[4] > begun

        beyond = agreed(host, name="vm-test", vcpus=4, memory="224MiB")
        assert beyond["needs_power_cycle"]
        assert domain.info()[3] == 3
        too_little: dict[str, Any] = {"name": "vm-test", "memory": "16MiB", "timeout": 10.0}
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, **too_little)
        assert failed.value.code == "timeout"
        assert "take part" in str(failed.value)
        cycling: dict[str, Any] = {"allow_power_cycle": True, "wait_for": "agent", "timeout": BOOT_SECONDS}
        cycled = agreed(host, name="vm-test", vcpus=2, max_vcpus=2, memory="160MiB", max_memory="160MiB", **cycling)
        assert cycled["power_cycled"]
        assert domain.info()[3] == 2
        assert online() == 2


def test_a_definition_that_does_not_start_is_put_back(host: str, image: str) -> None:
    """Huge pages that the host has not: libvirt takes the definition and fails at the start."""
    call("vm", host, **machine(image))
    with opened_host(host, Deadline(10)) as connection:
        domain = connection.lookupByName("vm-test")
        before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        options: dict[str, Any] = {"hugepages": "1GiB", "allow_power_cycle": True, "force": True, "grace": 0.0}
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, name="vm-test", **options)
        assert "put back" in str(failed.value)
        assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
        assert state(host) == "paused"


@pytest.mark.parametrize("when", WHEN)
def test_an_error_at_any_step_of_a_change_leaves_the_machine_as_it_was(host: str, image: str, when: str) -> None:
    call("vm", host, **machine(image, max_vcpus=2))
    options: dict[str, Any] = {"vcpus": 2, "io": {"iops": 99}, "metadata": {"owner": "x"}, "autostart": True}
    with opened_host(host, Deadline(10)) as connection:
        domain = connection.lookupByName("vm-test")

        def now() -> tuple[Any, ...]:
            found = [
                settings.read(ET.fromstring(domain.XMLDesc(flag))) for flag in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)
            ]
            for each in found:
                each.pop("vcpus")  # one that was plugged in stays until the power is cycled
            return (*found, domain.autostart())

        before = now()
        for number in range(1, 6):
            with pytest.raises(VirtfleetError) as failed, failing(number, when):
                call("vm", host, name="vm-test", **options)
            assert failed.value.values["vm"]["failed"]
            assert now() == before
        agreed(host, name="vm-test", **options)


def test_firmware_variables_and_saved_state_go_with_their_machine(lab: Lab, host: str, image: str) -> None:
    call("vm", host, **machine(image, firmware="uefi"))
    with opened_host(host, Deadline(10)) as connection:
        domain = connection.lookupByName("vm-test")
        variables = ET.fromstring(domain.XMLDesc(0)).findtext("os/nvram")
        folder = lab.host("host1").folder
        kept = [path for path in folder.rglob("*.fd") if variables and path.name == Path(variables).name]
        assert kept
        domain.managedSave(0)
        assert domain.hasManagedSaveImage()
    assert call("vm", host, name="vm-test", state="absent", delete_made_volumes=True).changed
    assert not any(path.exists() for path in kept)
    assert state(host) is None
