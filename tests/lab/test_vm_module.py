"""Module vm on real hosts: made, changed and removed as predicted; what fails half-way leaves nothing."""

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call

pytestmark = pytest.mark.lab

UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11"
MAC = "52:54:00:aa:bb:01"


def things(connection: libvirt.virConnect) -> set[str]:
    """Return all domains and volumes of a host."""
    found = {f"domain {domain.name()}" for domain in connection.listAllDomains(0)}
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        pool.refresh(0)
        found |= {f"volume {pool.name()}/{name}" for name in pool.listVolumes()}
    return found


@pytest.fixture(scope="module")
def image(lab: Lab) -> str:
    """The small guest image in the pool of host1, as a base."""
    path = lab.status()["image"]
    call("image", lab.host("host1").uri, name="vm-test-base", pool="default", src=path, timeout=120.0)
    return "vm-test-base"


@pytest.fixture
def host(lab: Lab, image: str) -> Iterator[str]:
    """The URI of a host that is the same afterwards as before."""
    uri = lab.host("host1").uri
    with opened_host(uri, Deadline(10)) as connection:
        before = things(connection)
        try:
            yield uri
        finally:
            for domain in connection.listAllDomains(0):
                if f"domain {domain.name()}" not in before:
                    with suppress(libvirt.libvirtError):
                        domain.destroy()
                    domain.undefine()
            for name in things(connection) - before:
                kind, _, where = name.partition(" ")
                if kind == "volume":
                    pool, _, volume = where.partition("/")
                    connection.storagePoolLookupByName(pool).storageVolLookupByName(volume).delete(0)


def machine(image: str, **more: Any) -> dict[str, Any]:
    """Return the options of a small machine that costs no processor time: it starts paused."""
    return {
        "name": "vm-test",
        "uuid": UUID,
        "state": "paused",
        "vcpus": 1,
        "memory": "128MiB",
        "disks": [{"image": image, "size": "1GiB"}],
        "networks": [{"bridge": "vmbr0", "mac": MAC}],
        "cloud_init": {"hostname": "vm-test"},
        "metadata": {"id": "vm_1", "attempt": 1},
    } | more


def state(uri: str, name: str = "vm-test") -> str | None:
    found = call("vm_info", uri, vms=[{"name": name}]).values["vms"]
    return found[0]["state"] if found else None


def test_a_machine_is_made_as_predicted_once_and_removed_with_what_was_made_for_it(host: str, image: str) -> None:
    with opened_host(host, Deadline(10)) as connection:
        before = things(connection)
        options = machine(image)
        predicted = call("vm", host, check=True, **options)
        assert things(connection) == before
        made = call("vm", host, **options)
        assert predicted.changed is made.changed is True
        assert predicted.after == made.after
        assert made.values["vm"]["state"] == "paused"
        assert made.values["vm"]["metadata"]["id"] == "vm_1"
        assert things(connection) - before == {
            "domain vm-test",
            f"volume default/vm-test-{UUID[:8]}-root",
            f"volume default/vm-test-{UUID[:8]}-seed.iso",
        }
        for check in (True, False):
            assert not call("vm", host, check=check, **options).changed
        absent: dict[str, Any] = {"name": "vm-test", "uuid": UUID, "state": "absent", "delete_made_volumes": True}
        assert call("vm", host, check=True, **absent).changed
        assert state(host) == "paused"
        assert call("vm", host, **absent).changed
        assert things(connection) == before
        for check in (True, False):
            assert not call("vm", host, check=check, **absent).changed


def test_the_document_that_libvirt_keeps_is_valid(host: str, image: str, tmp_path: Path) -> None:
    call("vm", host, **machine(image, state="present"))
    with opened_host(host, Deadline(10)) as connection:
        file = tmp_path / "domain.xml"
        file.write_text(connection.lookupByName("vm-test").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    subprocess.run(["virt-xml-validate", str(file), "domain"], check=True, capture_output=True)


def test_every_state_is_reached_from_every_other_as_predicted(host: str, image: str) -> None:
    call("vm", host, **machine(image, state="present"))
    force = {"force": True, "grace": 0.0}
    for wanted in ("paused", "running", "paused", "stopped", "running", "stopped", "present", "stopped"):
        options: dict[str, Any] = {"name": "vm-test", "state": wanted, **(force if wanted == "stopped" else {})}
        predicted = call("vm", host, check=True, **options)
        done = call("vm", host, **options)
        assert (predicted.changed, predicted.before, predicted.after) == (done.changed, done.before, done.after)
        assert state(host) == ("stopped" if wanted == "present" else wanted)
        assert not call("vm", host, check=True, **options).changed
        assert not call("vm", host, **options).changed


def test_absent_keeps_volumes_unless_they_are_named(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    call("vm", host, name="vm-test", state="absent")
    with opened_host(host, Deadline(10)) as connection:
        left = {name for name in things(connection) if "vm-test-5c2b3d0e" in name}
        assert len(left) == 2
        named = [{"pool": "default", "name": name.rpartition("/")[2]} for name in left]
        assert call("vm", host, name="vm-test", state="absent", delete_volumes=named).changed
        assert not {name for name in things(connection) if "vm-test-5c2b3d0e" in name}


def test_a_base_and_an_attached_volume_survive_their_machine(host: str, image: str) -> None:
    call("volume", host, name="vm-test-data", pool="default", size="1MiB")
    disks = [{"image": image, "size": "1GiB"}, {"name": "vm-test-data"}]
    call("vm", host, **machine(image, disks=disks))
    with pytest.raises(VirtfleetError) as refused:
        taken = [{"pool": "default", "name": image}]
        call("vm", host, name="vm-test", state="absent", delete_volumes=taken)
    assert refused.value.code == "refused"
    assert state(host) == "paused"
    call("vm", host, name="vm-test", state="absent", delete_made_volumes=True)
    with opened_host(host, Deadline(10)) as connection:
        assert {"volume default/vm-test-data", f"volume default/{image}"} <= things(connection)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"disks": [{"image": "no-such-base", "size": "1GiB"}]}, "image_missing"),
        ({"disks": [{"image": "vm-test-base", "size": "1GiB"}, {"name": "not-there"}]}, "not_found"),
        ({"disks": [{"image": "vm-test-base", "size": "1MiB"}]}, "invalid"),
        ({"disks": [{"pool": "no-such-pool", "size": "1MiB"}]}, "not_found"),
        ({"networks": [{"bridge": "no-bridge", "mac": MAC}]}, None),
        ({"networks": [{"network": "no-network", "mac": MAC}]}, None),
        ({"networks": [{"bridge": "vmbr0", "network": "default", "mac": MAC}]}, "invalid"),
        ({"machine": "no-such-machine"}, None),
        ({"accel": "kvm"}, "refused"),
        ({"memory": "1024TiB"}, None),
        ({"cloud_init": {"user_data_src": "/no/such/file"}}, "not_found"),
        ({"state": "running", "wait_for": "agent", "timeout": 3.0, "disks": [{"size": "1MiB"}]}, "timeout"),
    ],
)
def test_what_fails_half_way_leaves_nothing(host: str, image: str, change: dict[str, Any], code: str | None) -> None:
    with opened_host(host, Deadline(10)) as connection:
        before = things(connection)
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, **machine(image, **change))
        assert code is None or failed.value.code == code, failed.value
        assert failed.value.values["vm"]["cleaned"] is True
        assert str(failed.value).startswith("Failed to ")
        assert things(connection) == before


def test_what_a_killed_attempt_left_does_not_stop_the_next(host: str, image: str) -> None:
    call("volume", host, name=f"vm-test-{UUID[:8]}-root", pool="default", size="1MiB")
    call("volume", host, name=f"vm-test-{UUID[:8]}-seed.iso", pool="default", size="1MiB", format="raw")
    assert call("vm", host, **machine(image)).changed
    older = machine(image, metadata={"id": "vm_1", "attempt": 0})
    newer = machine(image, metadata={"id": "vm_1", "attempt": 2})
    assert not call("vm", host, **newer).changed
    assert not call("vm", host, **older).changed
    call("vm", host, name="vm-test", state="absent", delete_made_volumes=True)
    call("vm", host, **newer)
    with pytest.raises(VirtfleetError) as refused:
        call("vm", host, **machine(image))
    assert refused.value.code == "refused"


def test_another_machine_of_the_name_is_never_touched(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    other = str(uuid.uuid4())
    with pytest.raises(VirtfleetError) as refused:
        call("vm", host, **machine(image, uuid=other))
    assert refused.value.code == "already_exists"
    gone = call("vm", host, name="vm-test", uuid=other, state="absent", delete_made_volumes=True)
    assert not gone.changed
    assert state(host) == "paused"


def test_of_several_machines_a_broken_one_stops_no_other(host: str, image: str) -> None:
    def one(number: int, **more: Any) -> dict[str, Any]:
        mac = f"52:54:00:aa:bb:1{number}"
        own = {"name": f"vm-test{number}", "uuid": None, "networks": [{"bridge": "vmbr0", "mac": mac}]}
        return machine(image, **own, **more)

    broken = one(2, disks=[{"image": "no-such-base", "size": "1GiB"}])
    with pytest.raises(VirtfleetError) as failed:
        call("vm", host, vms=[one(1), broken, one(3)])
    assert failed.value.code == "image_missing"
    results = failed.value.values["vms"]
    assert [result.get("failed", False) for result in results] == [False, True, False]
    assert [state(host, f"vm-test{number}") for number in (1, 2, 3)] == ["paused", None, "paused"]
    absent = [{"name": f"vm-test{number}"} for number in (1, 2, 3)]
    done = call("vm", host, state="absent", delete_made_volumes=True, vms=absent)
    assert [each["changed"] for each in done.values["vms"]] == [True, False, True]


def test_differences_of_an_existing_machine_are_told_and_left(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    told = call("vm", host, **machine(image, vcpus=2, memory="256MiB"))
    assert not told.changed
    assert [each["what"] for each in told.values["vm"]["differences"]] == ["vcpus", "memory_bytes"]


def test_a_machine_boots_takes_its_seed_answers_reboots_and_shuts_down(lab: Lab, host: str, image: str) -> None:
    guests = lab.status()["networks"]["guests"]
    address = guests["range"]["last"]
    prefix = guests["cidr"].rpartition("/")[2]
    nic = {"bridge": guests["bridge"], "mac": MAC, "address": f"{address}/{prefix}", "gateway": guests["gateway"]}
    options = machine(image, state="running", wait_for="agent", timeout=120.0, networks=[nic])
    made = call("vm", host, **options)
    assert address in made.values["vm"]["addresses"]
    assert answered(address) == "vm-test"
    call("vm", host, name="vm-test", state="restarted", timeout=120.0, grace=60.0)
    assert answered(address) == "vm-test"
    call("vm", host, name="vm-test", state="stopped", timeout=120.0, grace=60.0)
    assert state(host) == "stopped"


def answered(address: str) -> str:
    """Return what the guest's web server says, once it says something."""
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + 90
    while True:
        try:
            return opener.open(f"http://{address}/", timeout=3).read().decode().strip()
        except (OSError, URLError):
            assert time.monotonic() < deadline, f"{address} did not answer"
            time.sleep(0.3)
