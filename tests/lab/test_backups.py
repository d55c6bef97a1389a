"""Backups on a real host: what a machine's disks held comes back, from whole ones and from chains of increments."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_storage_modules import call, remove_volumes
from tests.lab.test_vm_module import answered
from tests.lab.test_vm_snapshot_module import Guest

pytestmark = pytest.mark.lab

NAME, COPY = "backed", "backed-copy"
OTHER = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c78"
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c77"
BASE, POOL = "backed-base", "backups-test"
FOLDER = "/var/lib/libvirt/backups-test"


class Backed(Guest):
    """A machine that is backed up."""

    def backup(self, name: str, *, check: bool = False, **more: Any) -> Any:
        return call("vm_backup", self.uri, check=check, vm=NAME, name=name, pool=POOL, timeout=120.0, **more)

    def restore(self, name: str, *, check: bool = False, **more: Any) -> Any:
        options = {"vm_uuid": UUID, "backup": name, "pool": POOL, "timeout": 120.0}
        return call("vm_restore", self.uri, check=check, **options, **more)

    def listed(self, **more: Any) -> list[dict[str, Any]]:
        found = call("vm_backup_info", self.uri, pool=POOL, timeout=120.0, **more).values["backups"]
        assert isinstance(found, list)
        return found

    def power(self, state: str, name: str = NAME) -> None:
        call("vm", self.uri, name=name, state=state, force=True, grace=0.0, timeout=120.0)

    def remove_copy(self) -> None:
        call("vm", self.uri, name=COPY, state="absent", delete_made_volumes=True, timeout=120.0)

    def volumes(self, pool: str = POOL) -> set[str]:
        with opened_host(self.uri, Deadline(10)) as connection:
            found = connection.storagePoolLookupByName(pool)
            found.refresh(0)
            return set(found.listVolumes())


def frozen(machine: Backed) -> bool:
    """Tell whether the file systems inside the machine are frozen."""
    return bool(call("vm_guest_info", machine.uri, vms=[{"name": NAME}]).values["vms"][0]["guest"]["frozen"])


def kill_qemu(uri: str) -> None:
    """End the machine's QEMU as a crash does: it cannot store its marks any more."""
    [pid] = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"guest={NAME},".encode() in readable(path)
    ]
    os.kill(pid, signal.SIGKILL)
    with opened_host(uri, Deadline(20)) as connection:
        wait_until(lambda: not connection.lookupByName(NAME).isActive(), 60, "the end of the machine")


def readable(path: Path) -> bytes:
    """Return what a file of /proc holds; nothing when its process has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Backed]:
    uri = lab.host("host1").uri
    call("image", uri, name=BASE, pool="default", src=lab.status()["image"], timeout=120.0)
    call("pool", uri, name=POOL, path=FOLDER, timeout=60.0)
    guest = Backed(uri, NAME)
    guest.make(
        name=NAME,
        uuid=UUID,
        disks=[{"image": BASE, "size": "1GiB"}, {"size": "64MiB"}],
        networks=[{"bridge": "vmbr0", "mac": "52:54:00:aa:dd:77"}],
        cloud_init={"hostname": NAME},
    )
    before = guest.volumes("default")
    yield guest
    for name in (NAME, COPY):
        call("vm", uri, name=name, state="absent", delete_made_volumes=True, timeout=120.0)
    # Images stay with the lab: those of this file and of the fleet's.
    left = {name for name in guest.volumes("default") - before if not name.startswith(("snapped", "base-"))}
    call("pool", uri, name=POOL, state="absent", delete_content=True, timeout=60.0)
    call("image", uri, name=BASE, pool="default", state="absent")
    assert left == set()


def test_a_chain_of_increments_brings_back_each_moment(machine: Backed) -> None:
    machine.write("one")
    predicted = machine.backup("b1", check=True, quiesce=True)
    made = machine.backup("b1", quiesce=True)
    assert (predicted.changed, made.changed) == (True, True)
    assert (predicted.before, predicted.after) == (made.before, made.after)
    first = made.values["backup"]
    assert (first["kind"], first["quiesced"], first["state"], first["parent"]) == ("full", True, "running", None)
    assert [disk["target"] for disk in first["disks"]] == ["vda", "vdb"]
    assert not frozen(machine)
    for check in (True, False):
        again = machine.backup("b1", check=check)
        assert (again.changed, again.values["backup"]) == (False, first)

    machine.write("two")
    assert machine.backup("b2", check=True, kind="incremental").values["backup"]["kind"] == "incremental"
    second = machine.backup("b2", kind="incremental").values
    assert (second["backup"]["kind"], second["backup"]["parent"], second["reason"]) == ("incremental", "b1", None)
    assert second["backup"]["size_bytes"] < first["size_bytes"] / 4
    machine.write("three")

    with pytest.raises(VirtfleetError) as refusal:
        machine.backup("b1", state="absent")
    assert (refusal.value.code, "b2" in str(refusal.value)) == ("refused", True)

    assert machine.restore("b2", check=True, new_name=COPY, start=True).changed
    found = machine.restore("b2", new_name=COPY, start=True).values["vm"]
    assert found["uuid"] != UUID
    assert {card["mac"] for card in found["networks"]}.isdisjoint({"52:54:00:aa:dd:77"})
    for check in (True, False):
        assert not machine.restore("b2", check=check, new_name=COPY, start=True).changed
    assert Guest(machine.uri, COPY).read() == "two"
    machine.remove_copy()
    assert machine.read() == "three"


def test_in_place_the_old_disks_go_and_the_old_content_is_back(machine: Backed) -> None:
    with pytest.raises(VirtfleetError) as refusal:
        machine.restore("b1")
    assert (refusal.value.code, "running" in str(refusal.value)) == ("refused", True)
    before = machine.volumes("default")
    assert machine.restore("b1", check=True, stop=True).values["vm"]["state"] == "running"
    assert machine.volumes("default") == before
    back = machine.restore("b1", stop=True).values["vm"]
    assert back["state"] == "running"
    assert {each["name"] for each in back["made_volumes"]} <= machine.volumes("default")
    assert len(machine.volumes("default")) == len(before)
    assert machine.read() == "one"
    made = machine.backup("b3", kind="incremental").values
    assert (made["backup"]["kind"], "checkpoint" in made["reason"]) == ("full", True)


def test_what_fails_or_dies_half_way_leaves_neither_files_nor_a_frozen_machine(
    machine: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.volumes()

    def fail(*_arguments: Any) -> None:
        raise VirtfleetError("read a file", "it cannot be read")

    with monkeypatch.context() as patch, pytest.raises(VirtfleetError):
        patch.setattr(backups, "digest", fail)
        machine.backup("b4", kind="incremental", quiesce=True)
    assert machine.volumes() == before
    assert not frozen(machine)

    # A run that was killed has left its note and a file, and the machine frozen.
    with opened_host(machine.uri, Deadline(20)) as connection:
        pool = connection.storagePoolLookupByName(POOL)
        volumes.write_text(pool, backups.part_of(UUID, "died"), '{"quiesce": true, "checkpoint": "died-1"}')
        volumes.make_empty(pool, backups.file_of(UUID, "died", "vda"), 2**20)
        # One that was killed a moment later has written its manifest: that backup is whole, and stays.
        volumes.write_text(pool, backups.part_of(UUID, "b1"), "{}")
    call("vm_guest", machine.uri, name=NAME, frozen=True, timeout=60.0)
    assert machine.backup("b4", kind="incremental").values["backup"]["kind"] == "incremental"
    assert not frozen(machine)
    assert {name.split(".")[1] for name in machine.volumes() - before} == {"b4"}
    assert before <= machine.volumes()


def test_a_broken_mark_or_a_stopped_machine_makes_it_a_whole_one_and_the_rule_keeps_what_is_needed(
    machine: Backed,
) -> None:
    kill_qemu(machine.uri)
    machine.power("paused")
    retain = {"prefix": "r", "count": 2}
    made = machine.backup("r1", kind="incremental", retain=retain).values
    assert (made["backup"]["kind"], made["deleted"]) == ("full", [])
    assert "broken" in made["reason"]
    assert machine.backup("r2", kind="incremental", retain=retain).values["backup"]["parent"] == "r1"
    # Two stay, and the one below them: it goes only when nothing lies over it.
    assert machine.backup("r3", kind="incremental", retain=retain).values["deleted"] == []
    for state in ("present", "absent"):
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            options = {"vm": NAME, "name": "mine", "state": state}
            assert call("vm_checkpoint", machine.uri, check=check, **options).changed == changed
    machine.power("stopped")
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_checkpoint", machine.uri, vm=NAME, name="mine")
    assert (refusal.value.code, "stopped" in str(refusal.value)) == ("refused", True)
    stopped = machine.backup("r4", kind="incremental", retain={"prefix": "r", "count": 1}, check=True).values
    assert stopped["deleted"] == ["r3", "r2", "r1"]
    stopped = machine.backup("r4", kind="incremental", retain={"prefix": "r", "count": 1}).values
    assert (stopped["deleted"], stopped["backup"]["kind"]) == (["r3", "r2", "r1"], "full")
    assert (stopped["reason"], stopped["backup"]["checkpoint"]) == ("the machine is stopped", None)
    assert not machine.backup("r4", retain={"prefix": "r", "count": 1}).changed


def test_a_damaged_file_is_noticed_and_what_is_gone_can_be_made_again(machine: Backed) -> None:
    call("vm", machine.uri, name=NAME, state="absent", delete_made_volumes=True, timeout=120.0)
    with opened_host(machine.uri, Deadline(20)) as connection:
        pool = connection.storagePoolLookupByName(POOL)
        file = pool.storageVolLookupByName(backups.file_of(UUID, "b1", "vdb"))
        stream = connection.newStream(0)
        file.upload(stream, 4096, 4, 0)
        stream.send(b"evil")
        stream.finish()
    told = {each["name"]: each["intact"] for each in machine.listed(verify=True)}
    assert told == {"b1": False, "b2": False, "b3": True, "b4": True, "r4": True}
    with pytest.raises(VirtfleetError) as refusal:
        machine.restore("b2", new_name=COPY)
    assert (refusal.value.code, "SHA-256" in str(refusal.value)) == ("refused", True)
    with pytest.raises(VirtfleetError) as refusal:
        machine.restore("b3")
    assert refusal.value.code == "not_found"
    made = machine.restore("r4", new_name=COPY, new_uuid=OTHER).values["vm"]
    assert (made["state"], made["uuid"], len(made["disks"])) == ("stopped", OTHER, 2)
    machine.remove_copy()
    for check in (True, False):
        assert machine.backup("r4", check=check, state="absent").values["deleted"] == ["r4"]
    for check in (True, False):
        assert not machine.backup("r4", check=check, state="absent").changed


def test_over_the_command_a_machine_is_backed_up_made_again_and_its_backups_outlive_it(fleet: Fleet) -> None:
    uri = fleet.lab.host("host1").uri
    old = fleet.create("web1", host="host1", wait_for="none")
    disk = fleet.ended(fleet.post("/vms/web1/disks", {"serial": "data", "size": "16MiB", "bus": "scsi"})["job"])
    assert disk["state"] == "succeeded", disk["error"]
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}

    def cli(*words: str, code: int = 0) -> str:
        program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", "vm", *words]
        done = subprocess.run(
            program, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if done.stdout.strip() else done.stderr

    try:
        assert "backup b1 made" in cli("backup", "web1", "b1")
        assert "backup b2 made" in cli("backup", "web1", "b2", "--incremental")
        told = json.loads(cli("backups", "web1", "-o", "json"))
        assert [(each["name"], each["kind"], each["parent"]) for each in told] == [
            *(("b1", "full", None), ("b2", "incremental", "b1")),
        ]
        assert "restored" in cli("restore", "web1", "b1", "--stop", "--no-start")
        assert fleet.get("/vms/web1")["state"] == "stopped"
        cli("delete", "web1")
        assert "restored from backup b2" in cli("restore", "web1", "b2", "--as", "web2", "--start")
        again = fleet.get("/vms/web2")
        assert (again["state"], again["host"], again["disk"]) == ("running", "host1", "1GiB")
        assert again["mac"] not in (None, old["mac"])
        root, data = fleet.get("/vms/web2/disks")["items"]
        assert (root["size"], data["serial"], data["size"], data["bus"]) == ("1GiB", "data", "16MiB", "scsi")
        assert answered(again["address"]) == "web2"
        job = next(each for each in fleet.get("/jobs")["items"] if each["kind"] == "vm.restore")
        assert fleet.get(f"/jobs/{job['id']}/replay")["playbook"] == "vm/restore.yml"
        cli("delete", "web2")
        assert "deleted" in cli("delete-backup", "web1", "b2")
        assert "deleted" in cli("delete-backup", "web1", "b1")
        assert json.loads(cli("backups", "-o", "json")) == []
    finally:
        call("pool", uri, name="backups", state="absent", delete_content=True, timeout=60.0)
        remove_volumes(uri, "default", f"web1-{old['uuid'][:8]}-data")  # what was attached outlives its machine
