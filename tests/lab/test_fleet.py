"""One request through every room: REST, job, playbook, module, libvirt, and back; and what goes wrong on the way."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_storage_modules import remove_volumes
from tests.lab.test_vm_module import answered

pytestmark = pytest.mark.lab

RUNNING = 1


def failed(fleet: Fleet, body: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
    """Ask for a machine that cannot be made; return the job's error once the machine is gone."""
    answer = fleet.post("/vms", body)
    job = fleet.ended(answer["job"], seconds)
    assert job["state"] == "failed"
    error: dict[str, Any] = job["error"]
    assert "Failed to " in error["message"], error
    assert error["hint"]
    return error


def test_a_machine_is_created_answers_obeys_and_is_gone(fleet: Fleet) -> None:
    vm = fleet.create("web1")
    assert (vm["state"], vm["address"] in vm["addresses"]) == ("running", True)
    assert fleet.domains(vm["host"])["web1"] == (vm["uuid"], RUNNING)
    assert answered(vm["address"]) == "web1"
    for action, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")):
        body = {"action": action} | ({"grace": 60} if action == "stop" else {})
        job = fleet.ended(fleet.post(f"/vms/{vm['id']}/actions", body)["job"])
        assert job["state"] == "succeeded", job["error"]
        assert fleet.get("/vms/web1")["state"] == state
    job = fleet.ended(fleet.http.delete("/vms/web1").json()["job"])
    assert job["state"] == "succeeded"
    assert fleet.get("/vms")["items"] == []


def test_events_come_as_a_stream_that_can_be_taken_up_again(fleet: Fleet) -> None:
    job = fleet.post("/vms", {"name": "web1", "paused": True})["job"]
    headers = {"Accept": "text/event-stream"}
    with fleet.http.stream("GET", f"/jobs/{job['id']}/events", headers=headers) as stream:
        lines = list(stream.iter_lines())
    numbers = [int(line[4:]) for line in lines if line.startswith("id: ")]
    assert numbers == sorted(numbers)
    assert [line for line in lines if line.startswith("event: ")][-1] == "event: end"
    with fleet.http.stream("GET", f"/jobs/{job['id']}/events", headers={**headers, "Last-Event-ID": "5"}) as stream:
        again = [int(line[4:]) for line in stream.iter_lines() if line.startswith("id: ")]
    assert again == [number for number in numbers if number > 5]


def test_several_machines_are_one_job_on_several_hosts(fleet: Fleet) -> None:
    answer = fleet.post("/vms", {"name": "n", "count": 3, "policy": "round_robin", "wait_for": "none", "paused": True})
    assert fleet.ended(answer["job"])["state"] == "succeeded"
    vms = fleet.get("/vms")["items"]
    assert {vm["state"] for vm in vms} == {"paused"}
    assert len({vm["host"] for vm in vms}) == 3
    assert len({vm["address"] for vm in vms}) == 3


def test_what_is_measured_of_a_host_is_what_its_libvirt_says(fleet: Fleet) -> None:
    vm = fleet.idle("web1")
    host = vm["host"]
    told = fleet.cli("host", "metrics", host, "-o", "json")
    found = {(each["name"], each["labels"].get("pool", "")): each["value"] for each in json.loads(told)}
    with opened_host(fleet.lab.host(host).uri, Deadline(60)) as connection:
        capacity = connection.storagePoolLookupByName("default").info()[1]
        processors = connection.getInfo()[2]
    assert found["virtfleet_host_up", ""] == 1
    assert found["virtfleet_pool_capacity_bytes", "default"] == capacity
    assert found["virtfleet_host_vcpus", ""] == processors
    assert found["virtfleet_host_vcpus_allocated", ""] == vm["vcpus"]
    assert f'virtfleet_pool_capacity_bytes{{host="{host}",pool="default"}}' in fleet.http.get("/metrics").text


def test_a_replayed_job_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    vm = fleet.idle("web1", user_data="#cloud-config\n{}\n")
    shown = fleet.cli("job", "replay", vm["job"], "--dir", str(tmp_path / "replay"))
    ran = subprocess.run(shlex.split(shown), check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{vm['host']}" in ran.stdout
    assert "changed=0" in ran.stdout
    assert "ok=0" not in ran.stdout


def test_a_secret_is_found_nowhere_after_the_job_nor_in_any_command_line(fleet: Fleet) -> None:
    marker = "MARKER-4711-MARKER"
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if marker.encode() in file.read_bytes():
                        seen.append(str(file))
                except OSError:
                    continue
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        vm = fleet.idle("web1", user_data=f"#cloud-config\n# {marker}\n")
    finally:
        done.set()
        watching.join()
    assert seen == []
    for path in fleet.home.rglob("*"):
        if path.is_file():
            assert marker.encode() not in path.read_bytes(), path
    for place in (f"/jobs/{vm['job']}", f"/jobs/{vm['job']}/events", "/vms/web1", "/changes"):
        assert marker not in fleet.http.get(place).text


def test_a_full_pool_is_told_and_leaves_nothing(fleet: Fleet) -> None:
    fleet.idle("first", host="host2")  # the base is there: only the machine itself finds no room
    before = fleet.things()
    fleet.lab.fault("fill-pool", "host2")
    error = failed(fleet, {"name": "web1", "host": "host2"})
    assert error["code"] == "no_capacity", error
    assert "pool default" in error["message"]
    fleet.lab.undo("host2")
    wait_until(lambda: fleet.things() == before, 180, "nothing to be left")


def test_a_machine_that_does_not_fit_where_it_was_to_go_is_placed_again(fleet: Fleet) -> None:
    wanted = fleet.post("/placements", {})["placements"][0]["host"]
    fleet.idle("first", host=wanted)
    fleet.lab.fault("fill-pool", wanted)
    answer = fleet.post("/vms", {"name": "web1", "policy": "bin_packing", "wait_for": "none", "paused": True})
    job = fleet.ended(answer["job"])
    assert job["state"] == "succeeded", job["error"]
    vm = fleet.get("/vms/web1")
    assert vm["host"] != wanted
    assert job["hosts"] == [vm["host"]]
    assert "web1" in fleet.domains(vm["host"])
    told = [event["text"] for event in fleet.get(f"/jobs/{job['id']}/events")["items"] if event["kind"] == "retried"]
    assert any("placed again" in text for text in told) or answer["vms"][0]["host"] != wanted


def test_a_base_that_vanished_is_copied_again(fleet: Fleet) -> None:
    vm = fleet.idle("first", host="host3")
    fleet.ended(fleet.http.delete(f"/vms/{vm['id']}").json()["job"])
    remove_volumes(fleet.lab.host("host3").uri, "default", "base-")
    made = fleet.idle("web1", host="host3")
    assert (made["state"], made["host"]) == ("paused", "host3")


def test_an_image_is_fetched_from_a_url_when_a_host_first_needs_it(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "served.qcow2").write_bytes(Path(fleet.lab.status()["image"]).read_bytes() + b"\0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/served.qcow2"
    try:
        checksum = f"sha256:{hashlib.sha256((tmp_path / 'served.qcow2').read_bytes()).hexdigest()}"
        image = fleet.post("/images", {"source": url, "checksum": checksum})
        assert image["name"] == "served"
        vm = fleet.idle("web1", image="served")
        assert vm["state"] == "paused"
        assert fleet.get("/images/served")["format"] == "qcow2"
        fleet.ended(fleet.http.delete(f"/vms/{vm['id']}").json()["job"])
        assert fleet.ended(fleet.http.delete("/images/served").json()["job"])["state"] == "succeeded"
    finally:
        server.shutdown()


@pytest.mark.parametrize(("fault", "code"), [("kill-libvirtd", "host_unreachable"), ("freeze-libvirtd", "host_frozen")])
def test_a_host_whose_libvirt_is_dead_or_frozen_is_told_and_others_go_on(fleet: Fleet, fault: str, code: str) -> None:
    fleet.idle("first", host="host1")
    fleet.lab.fault(fault, "host1")
    answer = fleet.http.post("/vms", json={"name": "web1", "host": "host1"})
    other = fleet.idle("web2", host="host2")
    assert other["state"] == "paused"
    if answer.status_code == 202:
        job = fleet.ended(answer.json()["job"], 120)
        assert job["state"] == "failed"
        assert "host1" in job["error"]["message"], job["error"]
    else:
        assert answer.json()["code"] == "no_capacity"  # the observer was quicker
    wait_until(lambda: fleet.get("/hosts/host1")["state"] == "down", 180, "the observer to notice")
    told = fleet.http.post("/vms", json={"name": "web3", "host": "host1"})
    assert (told.status_code, told.json()["code"]) == (409, "no_capacity")
    fleet.lab.undo("host1")
    wait_until(lambda: fleet.get("/hosts/host1")["state"] == "up", 180, "the host to be back")
    names = {"first", "web2"}
    wait_until(lambda: {vm["name"] for vm in fleet.get("/vms")["items"]} == names, 180, "the clean-up")
    assert code


def test_a_cancelled_creation_leaves_nothing(fleet: Fleet) -> None:
    before = fleet.things()
    answer = fleet.post("/vms", {"name": "web1", "wait_for": "agent"})
    wait_until(lambda: _made(fleet, "web1"), 180, "the domain to be there")
    fleet.post(f"/jobs/{answer['job']['id']}/cancel")
    assert fleet.ended(answer["job"])["state"] == "cancelled"
    wait_until(lambda: fleet.things() == before, 180, "nothing to be left")


def _made(fleet: Fleet, name: str) -> bool:
    return any(name in fleet.domains(host.name) for host in fleet.lab.hosts())


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_a_job_whose_worker_was_killed_runs_again_and_the_machine_exists_once(
    fleet: Fleet, kill: Callable[[int, int], None]
) -> None:
    answer = fleet.post("/vms", {"name": "web1", "wait_for": "agent"})
    wait_until(lambda: _made(fleet, "web1"), 180, "the domain to be there")
    kill(fleet.pid_of("worker"), signal.SIGKILL)
    job = fleet.ended(answer["job"], 150)
    assert (job["state"], job["attempt"] > 1) == ("succeeded", True), job
    found = [host.name for host in fleet.lab.hosts() if "web1" in fleet.domains(host.name)]
    assert len(found) == 1
    vm = fleet.get("/vms/web1")
    assert (vm["host"], vm["state"]) == (found[0], "running")


def test_what_happens_behind_our_back_is_seen(fleet: Fleet) -> None:
    vm = fleet.create("web1")
    subprocess.run(["virsh", "-c", fleet.lab.host(vm["host"]).uri, "destroy", "web1"], check=True, capture_output=True)
    wait_until(lambda: fleet.get("/vms/web1")["state"] == "stopped", 120, "the observer to see it")
