"""Snapshots through the whole fleet: over REST and the command, what the disk held comes back, and the list follows."""

import os
import subprocess
import sys

import pytest

from tests.lab.fleet import Fleet
from tests.lab.test_clones import content
from tests.lab.test_storage_modules import remove_volumes
from tests.lab.test_vm_module import answered
from tests.lab.test_vm_snapshot_module import Guest

pytestmark = pytest.mark.lab


def test_a_machine_is_brought_back_and_its_snapshots_are_listed_and_deleted(fleet: Fleet) -> None:
    vm = fleet.create("web1", host="host1", wait_for="agent")
    guest = Guest(fleet.lab.host("host1").uri, "web1")
    guest.write("mark-before-4711")
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}

    def cli(*words: str, code: int = 0) -> str:
        program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", "vm", "snapshot", *words]
        done = subprocess.run(
            program, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "snapshot s1 made" in cli("create", "web1", "s1", "--description", "it was fine")
    listed = fleet.get("/vms/web1/snapshots")["items"]
    assert [(each["name"], each["mode"], each["memory"]) for each in listed] == [("s1", "internal", True)]
    assert listed[0]["disks"][0]["path"].endswith("-root")
    assert "it was fine" in cli("list", "web1")
    guest.write("mark-after-4711")
    job = fleet.ended(fleet.post("/vms/web1/snapshots/s1/revert")["job"])
    assert job["state"] == "succeeded", job["error"]
    assert guest.read() == "mark-before-4711"
    assert answered(vm["address"]) == "web1"
    assert fleet.get("/vms/web1")["state"] == "running"
    guest.write("mark-now-4711")
    for _number in range(3):
        body = {"prefix": "auto-", "keep": 1, "name": f"auto-{_number}"}
        assert fleet.ended(fleet.post("/vms/web1/snapshots", body)["job"])["state"] == "succeeded"
    assert [each["name"] for each in fleet.get("/vms/web1/snapshots")["items"]] == ["s1", "auto-2"]
    refused = fleet.ended(fleet.post("/vms/web1/migrate")["job"], 240)
    assert "snapshots" in refused["error"]["message"]
    assert fleet.get("/vms/web1")["host"] == "host1"
    running = fleet.http.post("/vms/web1/snapshots/s1/export", json={})
    assert (running.status_code, running.json()["code"]) == (409, "conflict")
    stop = {"action": "stop", "force": True, "grace": 0}
    assert fleet.ended(fleet.post("/vms/web1/actions", stop)["job"])["state"] == "succeeded"
    volume = f"web1-{vm['uuid'][:8]}-export-s1"
    try:
        assert f"default/{volume}-vda.qcow2" in cli("export", "web1", "s1")
        held = content(fleet, f"{volume}-vda.qcow2")
        assert b"mark-before-4711" in held
        assert not any(later in held for later in (b"mark-after-4711", b"mark-now-4711"))
        assert [each["name"] for each in fleet.get("/vms/web1/snapshots")["items"]] == ["s1", "auto-2"]
    finally:
        remove_volumes(fleet.lab.host("host1").uri, "default", volume)
    cli("delete", "web1", "auto-2")
    assert "deleted" in cli("delete", "web1", "s1")
    assert fleet.get("/vms/web1/snapshots")["items"] == []
    assert fleet.get(f"/jobs/{job['id']}/replay")["playbook"] == "vm/revert.yml"
