"""Module vm on real hosts: made, changed and removed as predicted; what fails half-way leaves nothing."""

import io
import json
import signal
import subprocess
import sys
import threading
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

from tests.lab.every_step import WHEN, failing
from tests.lab.test_storage_modules import FROZEN_SECONDS, ROOT, call

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
    with opened_host(uri, Deadline(60)) as connection:
        before = things(connection)
    try:
        yield uri
    finally:
        # Opened again: a test may have frozen the daemon, which ends the connections to it.
        with opened_host(uri, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
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
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, **machine(image, **change))
        assert code is None or failed.value.code == code, failed.value
        assert failed.value.values["vm"]["cleaned"] is True
        assert str(failed.value).startswith("Failed to ")
        assert things(connection) == before


CHANGES = 8
"""How many changing calls it takes to make the machine of `machine` (the first reads the image's marker)."""


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("number", range(1, CHANGES + 1))
def test_an_error_at_any_step_of_making_leaves_nothing(host: str, image: str, number: int, when: str) -> None:
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        with pytest.raises(VirtfleetError) as failed, failing(number, when):
            call("vm", host, **machine(image))
        assert f"broken {when}" in str(failed.value)
        assert failed.value.values["vm"]["cleaned"] is True
        assert things(connection) == before


@pytest.mark.parametrize("number", range(2, CHANGES + 1))
def test_a_run_killed_at_any_step_of_making_is_finished_by_the_next(host: str, image: str, number: int) -> None:
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        killed(host, machine(image), number)
        assert things(connection) != before
        call("vm", host, **machine(image, metadata={"id": "vm_1", "attempt": 2}))
        assert state(host) == "paused"
        made = {f"volume default/vm-test-{UUID[:8]}-{what}" for what in ("root", "seed.iso")}
        assert things(connection) - before == {"domain vm-test", *made}
        call("vm", host, name="vm-test", uuid=UUID, state="absent", delete_made_volumes=True)
        assert things(connection) == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_killed_while_it_removes_is_finished_by_the_next(host: str, image: str, number: int) -> None:
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        call("vm", host, **machine(image))
        # By its name alone: what was made for it is then known by the machine only.
        absent: dict[str, Any] = {"name": "vm-test", "state": "absent", "delete_made_volumes": True}
        killed(host, absent, number)
        assert call("vm", host, **absent).changed
        assert things(connection) == before


def killed(uri: str, options: dict[str, Any], number: int) -> None:
    """Run the module in a process that is killed right after its changing call of that number."""
    command = [sys.executable, "-m", "tests.lab.every_step", "vm", uri, json.dumps(options), str(number), "after"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_daemon_that_freezes_meanwhile_ends_the_task_in_time(lab: Lab, host: str, image: str) -> None:
    """The boot disk is empty, so that the agent never answers and the task waits until the daemon freezes."""
    options = machine(image, state="running", wait_for="agent", timeout=120.0, disks=[{"size": "1MiB"}])
    freezer = threading.Timer(4.0, lambda: lab.fault("freeze-libvirtd", "host1"))
    freezer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, **options)
        assert time.monotonic() - begun < 4.0 + FROZEN_SECONDS
        assert failed.value.code == "host_frozen"
        assert failed.value.values["vm"]["cleaned"] is False
    finally:
        freezer.join()
        lab.undo("host1")
    # What could not be cleaned up then is found by the metadata and names later.
    call("vm", host, name="vm-test", uuid=UUID, state="absent", delete_made_volumes=True)
    with opened_host(host, Deadline(60)) as connection:
        assert not {thing for thing in things(connection) if "vm-test-" in thing and image not in thing}


def test_a_full_pool_is_named_and_nothing_is_left(lab: Lab, host: str, image: str) -> None:
    lab.fault("fill-pool", "host1")
    try:
        with opened_host(host, Deadline(60)) as connection:
            before = things(connection)
            with pytest.raises(VirtfleetError) as failed:
                call("vm", host, **machine(image))
            assert failed.value.code == "pool_full"
            assert failed.value.values["vm"]["cleaned"] is True
            assert things(connection) == before
    finally:
        lab.undo("host1")


ODD = [
    {"vcpus": 0},
    {"vcpus": -1},
    {"vcpus": 10**9},
    {"memory": "0MiB"},
    {"memory": "1\0MiB"},
    {"grace": float("nan")},
    {"grace": -1.0},
    {"machine": "\x01"},
    {"machine": "</type>"},
    {"cpu_model": "{{ 7 * 7 }}"},
    {"uuid": "x\0"},
    {"name": "../vm-test"},
    {"name": "x" * 5000},
    {"name": "vm-test\0"},
    {"disks": [{"size": "1MiB", "serial": "$(id) \0"}]},
    {"disks": [{"size": "1MiB", "serial": "x" * 21}]},
    {"disks": [{"size": "1MiB", "name": "../x"}]},
    {"disks": [{"size": "1MiB", "pool": "\0"}]},
    {"disks": [{"image": "</name>"}]},
    {"disks": [{"size": "1MiB"} for _ in range(26)]},
    {"networks": [{"bridge": "vmbr0; id", "mac": MAC}]},
    {"networks": [{"network": "\0", "mac": MAC}]},
    {"networks": [{"bridge": "vmbr0", "mac": MAC, "model": "virtio'\0"}]},
    {"networks": [{"bridge": "vmbr0", "mac": MAC, "address": '10.0.0.5/24"\nx: y'}]},
    {"networks": [{"bridge": "vmbr0", "mac": "52:54:00:aa:bb:\0"}]},
    {"cloud_init": {"user_data_src": "/dev/zero"}},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:50])
def test_what_cannot_be_is_refused_before_anything_is_made(host: str, image: str, odd: dict[str, Any]) -> None:
    """The number of vCPUs -1 killed a libvirtd that it was handed to."""
    with opened_host(host, Deadline(60)) as connection:
        before = things(connection)
        for check in (True, False):
            with pytest.raises(VirtfleetError) as failed:
                call("vm", host, check=check, **machine(image, **odd))
            assert failed.value.code == "invalid", failed.value
            assert failed.value.values["vm"]["cleaned"] is True
            assert things(connection) == before


@pytest.mark.parametrize(
    "text", ["{{ 7 * 7 }}", "</vm><x/>", "$(id) `id`", "../../x", "x" * 5000, "a\0b", "é 😀\u2028"]
)
def test_hostile_text_is_kept_as_it_is(host: str, image: str, text: str) -> None:
    seed = {"hostname": text, "ssh_keys": [text], "user_data": text}
    made = call("vm", host, **machine(image, metadata={"owner": text, text: text}, cloud_init=seed))
    assert made.values["vm"]["metadata"] == {"owner": text, text: text}


def test_a_disk_that_was_kept_with_data_in_it_is_never_replaced(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    call("vm", host, name="vm-test", state="absent")
    with opened_host(host, Deadline(60)) as connection:
        kept = connection.storagePoolLookupByName("default").storageVolLookupByName(f"vm-test-{UUID[:8]}-root")
        stream = connection.newStream(0)
        data = bytes(range(256)) * 4096
        kept.upload(stream, 0, len(data), 0)
        stream.sendAll(lambda _stream, count, rest: rest.read(count), io.BytesIO(data))
        stream.finish()
        for check in (True, False):
            with pytest.raises(VirtfleetError) as refused:
                call("vm", host, check=check, **machine(image))
            assert refused.value.code == "already_exists"
        assert kept.info()[2] >= len(data)


def test_a_list_names_a_machine_once(host: str, image: str) -> None:
    for second in ({"name": "vm-test"}, {"name": "vm-test2", "uuid": UUID.upper()}):
        with pytest.raises(VirtfleetError) as refused:
            call("vm", host, vms=[machine(image), machine(image, **{"uuid": None, **second})])
        assert refused.value.code == "invalid"
    assert state(host) is None


def test_managed_only_leaves_what_others_made(host: str) -> None:
    with opened_host(host, Deadline(60)) as connection:
        kept = "<memory unit='MiB'>16</memory><os><type>hvm</type></os>"
        connection.defineXML(f"<domain type='qemu'><name>vm-test-other</name>{kept}</domain>")
    assert call("vm_info", host, vms=[{"name": "vm-test-other"}]).values["vms"][0]["managed"] is False
    for wanted in ("running", "absent"):
        for check in (True, False):
            with pytest.raises(VirtfleetError) as refused:
                call("vm", host, check=check, name="vm-test-other", state=wanted, managed_only=True)
            assert refused.value.code == "refused"
    assert state(host, "vm-test-other") == "stopped"
    assert call("vm", host, name="vm-test-other", state="absent", managed_only=False).changed


def test_a_machine_that_does_not_obey_runs_on_unless_it_is_forced(host: str, image: str) -> None:
    """An empty disk boots nothing, so that nobody hears the power button."""
    call("vm", host, **machine(image, state="running", disks=[{"size": "1MiB"}]))
    for wanted, force in (("stopped", False), ("restarted", False), ("restarted", True), ("stopped", True)):
        options: dict[str, Any] = {"name": "vm-test", "state": wanted, "grace": 1.0, "force": force}
        if force:
            assert call("vm", host, **options).changed
            continue
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, **options)
        assert failed.value.code == "timeout"
        assert "runs on" in str(failed.value)
        assert failed.value.values["vm"]["changed"] is False
        assert state(host) == "running"
    assert state(host) == "stopped"


def test_a_start_that_is_waited_for_in_vain_says_that_it_was_made(host: str, image: str) -> None:
    call("vm", host, **machine(image, state="present", disks=[{"size": "1MiB"}]))
    with pytest.raises(VirtfleetError) as failed:
        call("vm", host, name="vm-test", state="running", wait_for="agent", timeout=3.0)
    assert failed.value.code == "timeout"
    assert "left running" in str(failed.value)
    assert failed.value.values["vm"]["changed"] is True
    assert state(host) == "running"


def test_a_machine_is_read_by_its_uuid_whatever_bears_its_name(host: str, image: str) -> None:
    call("vm", host, **machine(image))
    asked = [{"name": "nowhere"}, {"uuid": UUID.upper()}, {"name": "vm-test", "uuid": str(uuid.uuid4())}]
    read = call("vm_info", host, vms=asked).values
    assert read["positions"] == [1]
    assert [vm["name"] for vm in read["vms"]] == ["vm-test"]


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
    told = call("vm", host, **machine(image, networks=[{"network": "default", "mac": MAC}]))
    assert not told.changed
    assert [each["what"] for each in told.values["vm"]["differences"]] == ["networks"]


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
    deadline = time.monotonic() + 180
    while True:
        try:
            return opener.open(f"http://{address}/", timeout=3).read().decode().strip()
        except (OSError, URLError):
            assert time.monotonic() < deadline, f"{address} did not answer"
            time.sleep(0.3)
