"""Modules vm_disk and vm_nic on real hosts: attached, changed, grown and detached, running and not."""

import base64
import json
import time
from typing import Any

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.lab.every_step import WHEN, failing
from tests.lab.test_storage_modules import call
from tests.lab.test_vm_module import MAC, UUID, host, image, machine, things

__all__ = ["host", "image"]  # the fixtures of that file

pytestmark = pytest.mark.lab

MIB = 2**20
BOOT_SECONDS = 180.0
SOON = "for n in 1 2 3 4 5 6 7 8 9 10; do"
SECOND = "52:54:00:aa:bb:02"


def told(result: Any) -> tuple[Any, ...]:
    values = result.values
    return result.changed, result.before, result.after, values["plan"], values["needs_power_cycle"]


def agreed(module: str, uri: str, **options: Any) -> dict[str, Any]:
    """Run in check mode, for real, and again: the first two agree, the third changes nothing. Return the second's."""
    predicted, done = call(module, uri, check=True, **options), call(module, uri, **options)
    assert told(predicted) == told(done)
    assert done.changed
    for check in (True, False):
        again = call(module, uri, check=check, **options)
        assert not again.changed, again.values["plan"]
    return done.values


def data_volume(uri: str, name: str = "vm-test-data", size: str = "16MiB") -> str:
    call("volume", uri, name=name, pool="default", size=size, format="raw")
    return name


def inside(domain: libvirt.virDomain, command: str, seconds: float = 60.0) -> str:
    """Run a shell command in the machine; return what it said, or raise when it failed."""

    def ask(execute: str, **arguments: Any) -> dict[str, Any]:
        document = json.dumps({"execute": execute, "arguments": arguments})
        found: dict[str, Any] = json.loads(libvirt_qemu.qemuAgentCommand(domain, document, 10, 0))["return"]
        return found

    begun = ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})
    deadline = time.monotonic() + seconds
    while True:
        status = ask("guest-exec-status", pid=begun["pid"])
        if status["exited"]:
            said = base64.b64decode(status.get("out-data", "")).decode()
            assert status["exitcode"] == 0, said + base64.b64decode(status.get("err-data", "")).decode()
            return said
        assert time.monotonic() < deadline, command
        time.sleep(0.3)


@pytest.mark.parametrize("state", ["present", "paused"])
@pytest.mark.parametrize("bus", ["virtio", "scsi", "usb"])
def test_a_volume_is_attached_on_each_bus_and_detached_and_stays(host: str, image: str, bus: str, state: str) -> None:
    call("vm", host, **machine(image, state=state))
    volume = data_volume(host)
    options: dict[str, Any] = {"name": "vm-test", "serial": "data", "volume": volume, "bus": bus}
    done = agreed("vm_disk", host, **options)
    assert (done["disk"]["bus"], done["disk"]["size_bytes"]) == (bus, 16 * MIB)
    assert [entry["effect"] for entry in done["plan"]] == ["live" if state == "paused" else "next_boot"]
    with opened_host(host, Deadline(60)) as connection:
        domain = connection.lookupByName("vm-test")
        documents = [domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)]
        assert all(volume in document for document in documents)
        if bus == "scsi":
            assert all("model='virtio-scsi'" in document for document in documents)
    limits = {"iops": 100, "read_bytes_per_second": "1MiB"}
    assert agreed("vm_disk", host, **options, io=limits)["disk"]["io"]["iops"] == 100
    call("vm", host, name="vm-test", state="stopped", force=True, grace=0.0)
    gone = agreed("vm_disk", host, name="vm-test", serial="data", state="absent")
    assert gone["disk"] is None
    with opened_host(host, Deadline(60)) as connection:
        assert connection.storagePoolLookupByName("default").storageVolLookupByName(volume).info()[1] == 16 * MIB


@pytest.mark.parametrize("state", ["present", "paused"])
def test_a_volume_that_is_not_there_is_made_and_goes_again_when_it_cannot_be_attached(
    host: str, image: str, state: str
) -> None:
    call("vm", host, **machine(image, state=state))
    options: dict[str, Any] = {"name": "vm-test", "serial": "data", "volume": "vm-test-new", "size": "16MiB"}
    done = agreed("vm_disk", host, **options)
    assert [entry["what"] for entry in done["plan"]] == ["volume", "attached"]
    assert done["disk"]["size_bytes"] == 16 * MIB
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        taken: dict[str, Any] = {
            "name": "vm-test",
            "serial": "more",
            "volume": "vm-test-more",
            "size": "16MiB",
            "bus": "scsi",
        }
        # The volume, then the controller and the disk in each document. A machine that is halted cannot let go of a
        # controller: it is there from the first time on.
        steps = 4 if state == "paused" else 3
        for number in range(1, steps + 1):
            for when in WHEN:
                with pytest.raises(VirtfleetError), failing(number, when):
                    call("vm_disk", host, **taken)
                assert things(connection) == before
                assert "vm-test-more" not in connection.lookupByName("vm-test").XMLDesc(0)


def test_what_takes_a_reboot_is_told_and_waits_for_it(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    options: dict[str, Any] = {"name": "vm-test", "serial": "data", "volume": data_volume(host)}
    call("vm_disk", host, **options)
    changed = agreed("vm_disk", host, **options, bus="scsi", read_only=True)
    assert changed["needs_power_cycle"]
    detached = agreed("vm_disk", host, name="vm-test", serial="data", state="absent")
    assert detached["needs_power_cycle"], "a machine that is halted cannot let go of a disk"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"serial": "new"}, "not_found"),
        ({"serial": "new", "volume": "no-such-volume"}, "not_found"),
        ({"serial": "new", "volume": "vm-test-base"}, "refused"),
        ({"serial": "root", "volume": "vm-test-data"}, "refused"),
        ({"serial": "root", "size": "512MiB"}, "refused"),
        ({"serial": "root", "size": "0B"}, "invalid"),
        ({"serial": "root", "size": "1"}, "invalid"),
        ({"serial": "x" * 21, "volume": "vm-test-data"}, "invalid"),
        ({"serial": "</serial>", "volume": "vm-test-data"}, "invalid"),
        ({"serial": "new", "volume": "../data"}, "invalid"),
        ({"serial": "new", "volume": "vm-test-taken"}, "refused"),
        ({"serial": "new", "volume": "vm-test-taken", "shareable": True}, "refused"),
        ({"name": "nobody", "serial": "new", "volume": "vm-test-data"}, "not_found"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_machine(
    host: str, image: str, options: dict[str, Any], code: str
) -> None:
    call("vm", host, **machine(image, state="present"))
    data_volume(host)
    taken = data_volume(host, "vm-test-taken")
    call("vm", host, name="vm-test-other", vcpus=1, memory="32MiB", disks=[{"name": taken}])
    with opened_host(host, Deadline(60)) as connection:
        before = connection.lookupByName("vm-test").XMLDesc(0)
        for check in (True, False):
            with pytest.raises(VirtfleetError) as failed:
                call("vm_disk", host, check=check, **{"name": "vm-test", **options})
            assert failed.value.code == code, failed.value
        assert connection.lookupByName("vm-test").XMLDesc(0) == before


def test_a_shareable_volume_is_a_disk_of_two_machines(host: str, image: str) -> None:
    volume = data_volume(host)
    for name in ("vm-test", "vm-test-other"):
        call("vm", host, name=name, vcpus=1, memory="32MiB", state="paused")
        agreed("vm_disk", host, name=name, serial="data", volume=volume, shareable=True)


def test_a_disk_grows_to_a_size_and_by_one_and_the_machine_sees_it(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    to: dict[str, Any] = {"name": "vm-test", "serial": "root", "size": "2GiB"}
    grown = agreed("vm_disk", host, **to)
    assert grown["disk"]["size_bytes"] == 2048 * MIB
    assert grown["filesystem"]["grown"] is False
    assert "agent" in grown["filesystem"]["reason"]
    by: dict[str, Any] = {"name": "vm-test", "serial": "root", "grow_by": "1GiB"}
    assert call("vm_disk", host, check=True, **by).after == call("vm_disk", host, **by).after
    with opened_host(host, Deadline(60)) as connection:
        domain = connection.lookupByName("vm-test")
        assert domain.blockInfo("vda")[0] == 3072 * MIB
        pool = connection.storagePoolLookupByName("default")
        assert pool.storageVolLookupByName(f"vm-test-{UUID[:8]}-root").info()[1] == 3072 * MIB
        domain.destroy()
        agreed("vm_disk", host, **to | {"size": "4GiB"})
        assert domain.blockInfo("vda")[0] == 4096 * MIB


def test_a_volume_that_was_made_for_a_machine_and_detached_outlives_it(host: str, image: str) -> None:
    call("vm", host, **machine(image, state="present", disks=[{"image": image, "size": "1GiB"}, {"size": "16MiB"}]))
    agreed("vm_disk", host, name="vm-test", serial="disk1", state="absent")
    call("vm", host, name="vm-test", state="absent", delete_made_volumes=True)
    with opened_host(host, Deadline(60)) as connection:
        left = [name for name in connection.storagePoolLookupByName("default").listVolumes() if "vm-test-5c" in name]
    assert left == [f"vm-test-{UUID[:8]}-disk1"]


def test_a_running_machine_works_with_its_disks_and_cards(host: str, image: str) -> None:
    """Everything that takes a machine that is awake, in one boot."""
    call("vm", host, **machine(image, state="running", wait_for="agent", timeout=BOOT_SECONDS))
    with opened_host(host, Deadline(60)) as connection:
        domain = connection.lookupByName("vm-test")
        for bus in ("virtio", "scsi", "usb"):
            volume = data_volume(host, f"vm-test-{bus}", "32MiB")
            call("vm_disk", host, name="vm-test", serial=bus, volume=volume, bus=bus)
        # The machine needs drivers for its disks, which it has for virtio and SCSI.
        for bus, device in (("virtio", "vdc"), ("scsi", "sda")):
            inside(domain, f"{SOON} [ -b /dev/{device} ] && exit 0; sleep 1; done; exit 1")
            inside(domain, f"mke2fs -b 4096 /dev/{device} && mkdir -p /mnt/{bus} && mount /dev/{device} /mnt/{bus}")
            inside(domain, f"echo kept > /mnt/{bus}/file")
            options: dict[str, Any] = {"name": "vm-test", "serial": bus, "size": "64MiB", "timeout": 120.0}
            grown = agreed("vm_disk", host, **options)
            assert grown["filesystem"] == {"grown": True, "reason": None, "mounted_at": f"/mnt/{bus}"}
            blocks = inside(domain, f"df -k /mnt/{bus} | tail -n 1").split()[1]
            assert 40 * 1024 < int(blocks) <= 64 * 1024

        # The disk grows first, the file system at another time: the second run is the retry.
        call("vm_disk", host, name="vm-test", serial="virtio", size="96MiB", grow_filesystem=False)
        retried = agreed("vm_disk", host, name="vm-test", serial="virtio", size="96MiB", timeout=120.0)
        assert [entry["what"] for entry in retried["plan"]] == ["filesystem"]
        assert retried["filesystem"]["grown"] is True
        assert inside(domain, "cat /mnt/virtio/file").strip() == "kept"

        # The root partition must grow first, and this machine does that when it boots.
        root = agreed("vm_disk", host, name="vm-test", serial="root", size="1200MiB", timeout=120.0)
        assert root["filesystem"]["grown"] is False
        assert "growpart" in root["filesystem"]["reason"]

        for bus in ("virtio", "scsi"):
            inside(domain, f"umount /mnt/{bus}")
        for bus in ("virtio", "scsi", "usb"):
            agreed("vm_disk", host, name="vm-test", serial=bus, state="absent", timeout=120.0)
        inside(domain, "[ ! -b /dev/vdc ] && [ ! -b /dev/sda ]")

        agreed("vm_nic", host, name="vm-test", mac=SECOND, bridge="vmbr0")
        inside(
            domain,
            f"{SOON} grep -q {SECOND} /sys/class/net/*/address && exit 0; sleep 1; done; exit 1",
        )
        down = agreed("vm_nic", host, name="vm-test", mac=SECOND, link="down")
        assert down["nic"]["link"] == "down"
        carrier = f"cat $(dirname $(grep -l {SECOND} /sys/class/net/*/address))/carrier"
        assert inside(domain, carrier).strip() == "0"
        agreed("vm_nic", host, name="vm-test", mac=SECOND, link="up")
        agreed("vm_nic", host, name="vm-test", mac=SECOND, state="absent", timeout=120.0)
        inside(domain, f"! grep -q {SECOND} /sys/class/net/*/address")


@pytest.mark.parametrize("state", ["present", "paused"])
def test_a_card_is_attached_joined_elsewhere_cut_off_and_detached(host: str, image: str, state: str) -> None:
    call("vm", host, **machine(image, state=state))
    with opened_host(host, Deadline(60)) as connection:
        xml = "<network><name>vm-test-net</name><bridge name='vmtestbr'/></network>"
        network = connection.networkDefineXML(xml)
        network.create()
        try:
            effect = "live" if state == "paused" else "next_boot"
            options: dict[str, Any] = {"name": "vm-test", "mac": SECOND.upper()}
            added = agreed("vm_nic", host, **options, bridge="vmbr0", link="down")
            assert added["nic"] == {
                "mac": SECOND,
                "kind": "bridge",
                "source": "vmbr0",
                "model": "virtio",
                "link": "down",
                "filter": "none",
            }
            for change in ({"link": "up"}, {"network": "vm-test-net"}, {"bridge": "vmbr0"}):
                done = agreed("vm_nic", host, **options, **change)
                assert {entry["effect"] for entry in done["plan"]} == {effect}
            changed = agreed("vm_nic", host, **options, model="e1000")
            assert changed["needs_power_cycle"] is (state == "paused")
            gone = agreed("vm_nic", host, **options, state="absent")
            assert gone["needs_power_cycle"] is (state == "paused")
        finally:
            connection.lookupByName("vm-test").isActive() and connection.lookupByName("vm-test").destroy()
            network.destroy()
            network.undefine()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"mac": SECOND}, "not_found"),
        ({"mac": "52:54:00:aa:bb"}, "invalid"),
        ({"mac": "53:54:00:aa:bb:02", "bridge": "vmbr0"}, "invalid"),
        ({"mac": SECOND, "bridge": "vmbr0; id"}, "invalid"),
        ({"mac": SECOND, "bridge": "vmbr0", "filter": "no-such-filter"}, "not_found"),
        ({"mac": SECOND, "bridge": "vmbr0", "filter": "<f/>"}, "invalid"),
        ({"mac": SECOND, "bridge": "vmbr0", "model": "</model>"}, "invalid"),
    ],
)
def test_a_card_that_cannot_be_is_refused(host: str, image: str, options: dict[str, Any], code: str) -> None:
    call("vm", host, **machine(image, state="present"))
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call("vm_nic", host, check=check, name="vm-test", **options)
        assert failed.value.code == code
    assert call("vm_nic", host, name="vm-test", mac=MAC, link="down").changed
