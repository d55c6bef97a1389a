"""Clones on a real host: what the disks held is in them, nobody shares what is written, the source stays as it is.

One machine of a fleet is the source of them all; the module is called on its host, and the API and the command.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_storage_modules import call, started
from tests.lab.test_vm_module import answered
from tests.lab.test_vm_snapshot_module import Guest

pytestmark = pytest.mark.lab

SOURCE = "web1"
UUID = "6c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c01"
BEFORE, AFTER = "this is what the disk held before", "that is what the disk held after"
CLONES = ("linked", "then", "fresh", "broken", "running")


@pytest.fixture(scope="module")
def source(whole_fleet: Fleet) -> Iterator[dict[str, Any]]:
    """A stopped machine whose disk holds AFTER, with a snapshot `s1` of when it held BEFORE."""
    fleet, before = whole_fleet, whole_fleet.things()["host1"]
    vm = fleet.create(SOURCE, host="host1", wait_for="agent")
    guest = Guest(uri_of(fleet), SOURCE)
    guest.write(BEFORE)
    assert fleet.ended(fleet.post(f"/vms/{SOURCE}/snapshots", {"name": "s1"})["job"])["state"] == "succeeded"
    guest.write(AFTER)
    refused_while_it_runs(fleet)
    stop = {"action": "stop", "force": True, "grace": 0}
    assert fleet.ended(fleet.post(f"/vms/{SOURCE}/actions", stop)["job"])["state"] == "succeeded"
    try:
        yield vm
    finally:
        for name in CLONES:
            call("vm", uri_of(fleet), name=name, state="absent", delete_made_volumes=True)
        fleet.delete_all()
        assert fleet.things()["host1"] <= before


def refused_while_it_runs(fleet: Fleet) -> None:
    for more in (dict[str, Any](), {"mode": "linked"}, {"snapshot": "s1"}):
        with pytest.raises(VirtfleetError) as refusal:
            clone(fleet, "then", **more)
        assert (refusal.value.code, refusal.value.values["cleaned"]) == ("refused", True)
        answer = fleet.http.post(f"/vms/{SOURCE}/clone", json={"name": "web2", **more})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert clone(fleet, "fresh", check=True, mode="fresh").changed


def uri_of(fleet: Fleet) -> str:
    return fleet.lab.host("host1").uri


def clone(fleet: Fleet, name: str, *, check: bool = False, **more: Any) -> Any:
    return call("vm_clone", uri_of(fleet), check=check, source=SOURCE, name=name, timeout=120.0, **more)


def drop(fleet: Fleet, name: str) -> None:
    assert call("vm", uri_of(fleet), name=name, state="absent", delete_made_volumes=True).changed


def volume_names(fleet: Fleet) -> set[str]:
    return {each.rpartition("/")[2] for each in fleet.things()["host1"] if each.startswith("volume")}


def described(fleet: Fleet, name: str) -> dict[str, Any]:
    with opened_host(uri_of(fleet), Deadline(20)) as connection:
        pool = connection.storagePoolLookupByName("default")
        pool.refresh(0)
        return volumes.describe(volumes.find(pool, name))


def content(fleet: Fleet, name: str) -> bytes:
    """The bytes of a volume's file."""
    parts: list[bytes] = []
    with opened_host(uri_of(fleet), Deadline(60)) as connection:
        stream = connection.newStream(0)
        connection.storagePoolLookupByName("default").storageVolLookupByName(name).download(stream, 0, 0, 0)
        stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
        stream.finish()
    return b"".join(parts)


def fingerprint(fleet: Fleet, source: dict[str, Any]) -> tuple[str, str, list[str]]:
    """What the source is and holds: its definition, the bytes of its disk, its snapshots."""
    with opened_host(uri_of(fleet), Deadline(20)) as connection:
        domain = connection.lookupByName(SOURCE)
        document = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        snapshots = domain.snapshotListNames(0)
    root = content(fleet, f"{SOURCE}-{source['uuid'][:8]}-root")
    return document, hashlib.sha256(root).hexdigest(), snapshots


def cli(fleet: Fleet, *words: str) -> str:
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}
    program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", "vm", *words]
    done = subprocess.run(
        program, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_full_clone_holds_the_same_answers_at_an_address_of_its_own_and_needs_nobody(
    whole_fleet: Fleet, source: dict[str, Any]
) -> None:
    fleet, was = whole_fleet, fingerprint(whole_fleet, source)
    told = cli(fleet, "clone", SOURCE, "web2", "--wait-for", "agent")
    assert "web2 is made on host1, because the disks of web1 are there" in told
    vm = fleet.get("/vms/web2")
    assert (vm["state"], vm["host"], vm["vcpus"], vm["memory"]) == ("running", "host1", 1, "128MiB")
    assert vm["uuid"] != source["uuid"]
    assert vm["mac"] != source["mac"]
    assert vm["address"] != source["address"]
    assert answered(vm["address"]) == "web2"
    assert Guest(uri_of(fleet), "web2").read() == AFTER
    root = described(fleet, f"web2-{vm['uuid'][:8]}-root")
    assert (root["image"], root["format"]) == (None, "qcow2")
    found = call("vm_info", uri_of(fleet), vms=[{"name": "web2"}]).values["vms"][0]
    assert (found["metadata"]["id"], found["metadata"]["cloned_from"]) == (vm["id"], source["uuid"])
    job = fleet.get(f"/jobs/{vm['job']}")
    assert (job["kind"], fleet.get(f"/jobs/{job['id']}/replay")["playbook"]) == ("vm.clone", "vm/clone.yml")
    answer = fleet.http.post(f"/vms/{SOURCE}/clone", json={"name": "web2"})
    assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    cli(fleet, "delete", "web2")
    assert fingerprint(fleet, source) == was
    assert not any(name.startswith("web2") for name in volume_names(fleet))


def test_a_linked_clone_takes_its_sources_place_and_shares_the_image_only(
    whole_fleet: Fleet, source: dict[str, Any]
) -> None:
    """S2.7: `deleteclone` deletes the original and makes the new one; `default` copies it."""
    fleet, was = whole_fleet, fingerprint(whole_fleet, source)
    asked = {"name": "web3", "mode": "linked", "snapshot": "s1", "start": False}
    job = fleet.ended(fleet.post(f"/vms/{SOURCE}/clone", asked)["job"], 300)
    assert job["state"] == "succeeded", job["error"]
    first = fleet.get("/vms/web3")
    assert (first["state"], first["image"]) == ("stopped", "tiny")
    root = described(fleet, f"web3-{first['uuid'][:8]}-root")
    assert root["image"].rpartition("/")[2].startswith("base-")
    assert call("vm_snapshot_info", uri_of(fleet), vm="web3").values["snapshots"] == []
    job = fleet.ended(
        fleet.post("/vms/web3/clone", {"name": "web4", "mode": "linked", "delete_source": True, "wait_for": "agent"})[
            "job"
        ],
        300,
    )
    assert job["state"] == "succeeded", job["error"]
    wait_until(lambda: fleet.http.get("/vms/web3").status_code == 404, 90, "the end of web3")
    assert Guest(uri_of(fleet), "web4").read() == BEFORE
    refusal = fleet.http.delete("/images/tiny")
    assert (refusal.status_code, refusal.json()["vms"]) == (409, [SOURCE, "web4"])
    cli(fleet, "delete", "web4")
    assert fingerprint(fleet, source) == was


def test_a_fresh_one_is_like_it_without_its_disk_and_goes_where_there_is_room(
    whole_fleet: Fleet, source: dict[str, Any]
) -> None:
    """S2.51: with the configuration of an existing machine."""
    fleet = whole_fleet
    answer = fleet.post(f"/vms/{SOURCE}/clone", {"name": "web5", "mode": "fresh", "start": False})
    job = fleet.ended(answer["job"])
    assert job["state"] == "succeeded", job["error"]
    vm = fleet.get("/vms/web5")
    same = ("vcpus", "memory", "disk", "image", "flavor")
    assert [vm[key] for key in same] == [source[key] for key in same]
    assert vm["explanation"]["chosen"] == vm["host"]
    cli(fleet, "delete", "web5")


def test_a_machine_can_be_made_from_an_image_that_is_deleted_then(whole_fleet: Fleet, source: dict[str, Any]) -> None:
    """S2.7: `create` makes a machine from an image and deletes that."""
    fleet = whole_fleet
    fleet.post("/images", {"source": fleet.lab.status()["image"], "name": "once"})
    fleet.create("tmp", host="host1", image="once", start=False)
    job = fleet.ended(fleet.post("/vms/tmp/clone", {"name": "web6", "delete_source": True, "start": False})["job"], 300)
    assert job["state"] == "succeeded", job["error"]
    wait_until(lambda: fleet.http.get("/vms/tmp").status_code == 404, 90, "the end of tmp")
    assert fleet.http.delete("/images/once").is_success
    wait_until(lambda: fleet.http.get("/images/once").status_code == 404, 90, "the end of the image")
    vm = fleet.get("/vms/web6")
    root = described(fleet, f"web6-{vm['uuid'][:8]}-root")
    assert (root["image"], root["allocation_bytes"] > 2**20) == (None, True)
    cli(fleet, "delete", "web6")


def test_a_full_clone_from_a_snapshot_is_predicted_and_independent(whole_fleet: Fleet, source: dict[str, Any]) -> None:
    fleet, was, before = whole_fleet, fingerprint(whole_fleet, source), volume_names(whole_fleet)
    predicted = clone(fleet, "then", check=True, snapshot="s1", uuid=UUID)
    assert volume_names(fleet) == before
    made = clone(fleet, "then", snapshot="s1", uuid=UUID)
    assert (made.changed, made.before, made.after) == (predicted.changed, predicted.before, predicted.after)
    assert made.values["disks"] == predicted.values["disks"]
    assert (made.values["vm"]["uuid"], made.values["vm"]["state"]) == (UUID, "stopped")
    assert volume_names(fleet) - before == {f"then-{UUID[:8]}-root", f"then-{UUID[:8]}-seed.iso"}
    held = content(fleet, f"then-{UUID[:8]}-root")
    assert (BEFORE.encode() in held, AFTER.encode() in held) == (True, False)
    assert described(fleet, f"then-{UUID[:8]}-root")["image"] is None
    for check in (True, False):
        assert not clone(fleet, "then", check=check, snapshot="s1", uuid=UUID).changed
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", uri_of(fleet), source="then", name=SOURCE)
    assert refusal.value.code == "already_exists"
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", uri_of(fleet), source="then", name="linked", mode="linked")
    assert "image" in refusal.value.obstacle
    drop(fleet, "then")
    assert fingerprint(fleet, source) == was


def test_a_fresh_one_made_by_the_module_lies_over_the_same_image(whole_fleet: Fleet, source: dict[str, Any]) -> None:
    fleet = whole_fleet
    made = clone(fleet, "fresh", mode="fresh", uuid=UUID, cloud_init={"hostname": "other"})
    disk = described(fleet, f"fresh-{UUID[:8]}-root")
    assert disk["image"] == described(fleet, f"{SOURCE}-{source['uuid'][:8]}-root")["image"]
    assert (disk["capacity_bytes"], disk["allocation_bytes"] < 2**20) == (2**30, True)
    assert made.values["vm"]["memory_bytes"] == 128 * 2**20
    drop(fleet, "fresh")


def test_what_cannot_be_is_refused_before_anything_is_made(
    whole_fleet: Fleet, source: dict[str, Any], tmp_path: Path
) -> None:
    before = volume_names(whole_fleet)
    for code, options in (
        ("not_found", {"snapshot": "s9"}),
        ("invalid", {"snapshot": "s1", "mode": "fresh"}),
        ("invalid", {"name": "../x"}),
        ("already_exists", {"uuid": source["uuid"]}),
        ("not_found", {"cloud_init": {"user_data_src": str(tmp_path / "none")}}),
        ("invalid", {"networks": [{"bridge": "vmbr0", "network": "x"}]}),
    ):
        with pytest.raises(VirtfleetError) as refusal:
            clone(whole_fleet, **{"name": "broken", "check": True, **options})
        assert refusal.value.code == code, options
    assert volume_names(whole_fleet) == before


def test_a_run_that_follows_a_killed_one_finishes_and_one_that_fails_leaves_nothing(
    whole_fleet: Fleet, source: dict[str, Any]
) -> None:
    fleet, before = whole_fleet, volume_names(whole_fleet)
    with pytest.raises(VirtfleetError) as refusal:
        clone(fleet, "broken", uuid=UUID, networks=[{"bridge": "no-such", "mac": "not a mac"}])
    assert (refusal.value.values["cleaned"], volume_names(fleet)) == (True, before)
    options = {
        "source": SOURCE,
        "name": "broken",
        "uuid": UUID,
        "mode": "linked",
        "metadata": {"attempt": 2},
        "timeout": 120.0,
    }
    killed = started("vm_clone", uri_of(fleet), **options)
    with opened_host(uri_of(fleet), Deadline(60)) as connection:
        pool = connection.storagePoolLookupByName("default")
        wait_until(lambda: f"broken-{UUID[:8]}-root" in pool.listVolumes(), 60, "the copy to begin")
    killed.kill()
    killed.wait(60)
    with pytest.raises(VirtfleetError) as refusal:  # a straggler, while a later attempt has it in hand
        clone(fleet, "broken", uuid=UUID, mode="linked", metadata={"attempt": 1})
    assert "attempt 2 has it already" in refusal.value.obstacle
    wanted: dict[str, Any] = {"uuid": UUID, "mode": "linked", "metadata": {"attempt": 3}}
    assert clone(fleet, "broken", **wanted).values["vm"]["state"] == "stopped"
    assert volume_names(fleet) - before == {f"broken-{UUID[:8]}-root", f"broken-{UUID[:8]}-seed.iso"}
    drop(fleet, "broken")
    assert volume_names(fleet) == before


def test_a_machine_that_runs_is_cloned_from_an_external_snapshot(whole_fleet: Fleet, source: dict[str, Any]) -> None:
    fleet, before = whole_fleet, volume_names(whole_fleet)
    base = str(described(fleet, f"{SOURCE}-{source['uuid'][:8]}-root")["image"]).rpartition("/")[2]
    disks = [{"image": base, "size": "1GiB"}]
    machine: dict[str, Any] = {"name": "running", "vcpus": 1, "memory": "128MiB", "disks": disks}
    call("vm", uri_of(fleet), **machine, state="paused", metadata={"id": "x"}, timeout=120.0)
    call("vm_snapshot", uri_of(fleet), vm="running", name="e1", mode="external", timeout=120.0)
    for mode, below in (("full", None), ("linked", base)):
        made = call("vm_clone", uri_of(fleet), source="running", name="then", mode=mode, snapshot="e1", timeout=120.0)
        (disk,) = made.values["disks"]
        image = described(fleet, disk["name"])["image"]
        assert (image and image.rpartition("/")[2]) == below
        drop(fleet, "then")
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", uri_of(fleet), source="running", name="then")
    assert refusal.value.code == "refused"
    drop(fleet, "running")
    assert volume_names(fleet) == before
