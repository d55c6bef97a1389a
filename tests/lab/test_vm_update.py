"""Module vm and machines that are there, on real hosts: hot-plugged, ballooned, throttled, redefined, renamed."""

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import hypothesis
import libvirt
import libvirt_qemu  # type: ignore[import-untyped]
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import settings
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped]
from virtfleet.lab import Lab

from tests.lab.every_step import WHEN, failing
from tests.lab.test_storage_modules import ROOT, call
from tests.lab.test_vm_module import UUID, host, image, machine, state

__all__ = ["host", "image"]  # the fixtures of that file

pytestmark = pytest.mark.lab

SCHEMA = etree.RelaxNG(file="/usr/share/libvirt/schemas/domain.rng")
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
    {"tpm": True},
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
    with opened_host(host, Deadline(60)) as connection:
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
    call("vm", host, **asked | {"wait_for": "running"})
    # It has not booted yet, and gives nothing back before: what it is told now holds then.
    for memory in ("160MiB", "128MiB"):
        assert {entry["effect"] for entry in agreed(host, name="vm-test", memory=memory)["plan"]} == {"live"}
    call("vm", host, **asked)
    with opened_host(host, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
        domain = connection.lookupByName("vm-test")
        before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        options: dict[str, Any] = {"hugepages": "1GiB", "allow_power_cycle": True, "force": True, "grace": 0.0}
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, name="vm-test", **options)
        assert "put back" in str(failed.value)
        assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
        assert state(host) == "paused"


def test_another_image_is_told_as_what_only_a_new_machine_could_have(host: str, image: str) -> None:
    call("vm", host, **machine(image, state="present"))
    other = call("vm", host, **machine(image, state="present", disks=[{"image": "other-base", "size": "1GiB"}]))
    assert not other.changed
    entry = {"what": "disks.root.image", "before": image, "after": "other-base", "effect": "recreate"}
    assert other.values["vm"]["plan"] == [entry]
    assert call("vm", host, **machine(image, state="present")).values["vm"]["plan"] == []


LIMITS = st.fixed_dictionaries({}, optional={"iops": st.integers(0, 10**6), "bytes_per_second": st.just("5MiB")})
MACHINES = st.fixed_dictionaries(
    {"max_vcpus": st.sampled_from([4, 8]), "vcpus": st.integers(1, 4), "memory": st.sampled_from(["64MiB", "100MiB"])},
    optional={
        "max_memory": st.sampled_from(["128MiB", "1GiB"]),
        "machine": st.sampled_from(["q35", "pc"]),
        "cpu_model": st.sampled_from(["maximum", "qemu64", "Nehalem"]),
        "topology": st.sampled_from([{"cores": 2}, {"cores": 2, "threads": 2}, {"threads": 4}]),
        "firmware": st.sampled_from(["bios", "uefi"]),
        "boot": st.lists(st.sampled_from(["hd", "cdrom", "network"]), min_size=1, unique=True),
        "video": st.sampled_from(["none", "vga", "virtio", "cirrus"]),
        "serial": st.sampled_from(["none", "pty"]),
        "rng": st.booleans(),
        "watchdog": st.sampled_from(["none", "reset", "poweroff"]),
        "tpm": st.booleans(),
        "hugepages": st.sampled_from(["off", "default", "2MiB"]),
        "autostart": st.booleans(),
        "io": LIMITS,
        "metadata": st.dictionaries(
            st.text("ab<>&{}'\"$é ", max_size=8), st.text("ab<>&{}'\"$é ", max_size=8), max_size=3
        ),
    },
)


@given(first=MACHINES, second=MACHINES)
@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_any_machine_is_read_back_as_it_was_made_and_as_it_was_changed(
    host: str, image: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    call("vm", host, name="vm-test", state="absent", delete_made_volumes=True)
    call("vm", host, name="vm-test", uuid=UUID, disks=[{"size": "1MiB"}], **first)
    for wanted in (first, second):
        call("vm", host, name="vm-test", **wanted)
        left = call("vm", host, name="vm-test", **wanted)
        assert not left.changed, left.values["vm"]["plan"]
        with opened_host(host, Deadline(60)) as connection:
            document = connection.lookupByName("vm-test").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        SCHEMA.assertValid(etree.fromstring(document))


@pytest.mark.parametrize("when", WHEN)
def test_an_error_at_any_step_of_a_change_leaves_the_machine_as_it_was(host: str, image: str, when: str) -> None:
    call("vm", host, **machine(image, max_vcpus=2))
    options: dict[str, Any] = {"vcpus": 2, "io": {"iops": 99}, "metadata": {"owner": "x"}, "autostart": True}
    with opened_host(host, Deadline(60)) as connection:
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


STEPS: list[tuple[str, dict[str, Any], int]] = [
    ("vm", {"metadata": {"owner": "x"}, "io": {"iops": 99}, "autostart": True, "video": "vga"}, 4),
    ("vm_disk", {"serial": "new", "volume": "vm-test-new", "size": "16MiB"}, 3),
    ("vm_nic", {"mac": "52:54:00:aa:bb:02", "bridge": "vmbr0"}, 2),
]


@pytest.mark.parametrize(("module", "options", "steps"), STEPS, ids=["vm", "vm_disk", "vm_nic"])
def test_a_run_killed_at_any_step_of_a_change_is_finished_by_the_next(
    host: str, image: str, module: str, options: dict[str, Any], steps: int
) -> None:
    for number in range(1, steps + 1):
        call("vm", host, **machine(image))
        command = [sys.executable, "-m", "tests.lab.every_step", module, host]
        words = [json.dumps({"name": "vm-test", **options}), str(number), "after"]
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        call(module, host, name="vm-test", **options)
        assert not call(module, host, name="vm-test", **options).changed
        call("vm", host, name="vm-test", state="absent", delete_made_volumes=True)
        call("volume", host, name="vm-test-new", pool="default", state="absent")


def test_firmware_variables_a_tpm_and_saved_state_go_with_their_machine(lab: Lab, host: str, image: str) -> None:
    call("vm", host, **machine(image, firmware="uefi", tpm=True))
    with opened_host(host, Deadline(60)) as connection:
        domain = connection.lookupByName("vm-test")
        variables = ET.fromstring(domain.XMLDesc(0)).findtext("os/nvram")
        folder = lab.host("host1").folder
        kept = [path for path in folder.rglob("*.fd") if variables and path.name == Path(variables).name]
        sealed = list(folder.rglob(f"{domain.UUIDString()}/tpm2/*"))
        assert kept and sealed
        domain.managedSave(0)
        assert domain.hasManagedSaveImage()
    assert call("vm", host, name="vm-test", state="absent", delete_made_volumes=True).changed
    assert not any(path.exists() for path in [*kept, *sealed])
    assert state(host) is None
