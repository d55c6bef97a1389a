"""Machines move through the whole fleet: under load, aborted, a host or the worker dying; one copy runs each time."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.jobs import survivors

from tests.lab.crossing import CRAWL, hurry, is_on_its_way
from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_live_migration import ask
from tests.lab.test_vm_module import answered

pytestmark = pytest.mark.lab

RUNNING = 1
EVERY_SECONDS = 0.1
BARE = "<os><type arch='x86_64'>hvm</type></os>"


class Load:
    """Asks a machine again and again, and counts what got no answer."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked = self.lost = 0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.asked += 1
            try:
                ask(self._address, timeout=5)
            except OSError:
                self.lost += 1

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def copies(fleet: Fleet, name: str) -> dict[str, int]:
    """Return host → state of a machine, as libvirt says; hosts that are off are left out."""
    found = {}
    for host in fleet.lab.hosts():
        with suppress(VirtfleetError):
            domains = fleet.domains(host.name)
            if name in domains:
                found[host.name] = domains[name][1]
    return found


def begun(fleet: Fleet, vm: dict[str, Any], **more: Any) -> tuple[dict[str, Any], str]:
    """Begin a migration that crawls and wait until it is under way; return its job and target."""
    answer = fleet.post(f"/vms/{vm['id']}/migrate", {"bandwidth": CRAWL, **more})
    uri = fleet.lab.host(answer["host"]).uri
    wait_until(lambda: is_on_its_way(uri, vm["name"]), 120, "the migration to begin")
    time.sleep(1)
    return answer["job"], answer["host"]


def test_a_machine_moves_under_load_keeps_its_address_and_the_row_follows(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    with Load(vm["address"]) as load:
        answer = fleet.post("/vms/web1/migrate", {"from": vm["host"]})
        job = fleet.ended(answer["job"], 300)
        time.sleep(1)
    assert job["state"] == "succeeded", job["error"]
    there = fleet.get("/vms/web1")
    assert (there["host"], there["state"], there["address"]) == (answer["host"], "running", vm["address"])
    assert there["host"] != vm["host"]
    assert copies(fleet, "web1") == {there["host"]: RUNNING}
    took = job["result"][vm["host"]]["vms"][0]["migration"]
    print(f"{took}; {load.lost} of {load.asked} requests were lost")
    assert load.asked > 3
    assert load.lost < load.asked / 2, "none to one of a hundred when the machine is idle"
    assert took["bytes"] > 2**20 and 0 < took["downtime"] < took["duration"]
    told = [event["kind"] for event in fleet.get(f"/jobs/{job['id']}/events")["items"]]
    assert told[-1] == "end"
    wrong = fleet.http.post("/vms/web1/migrate", json={"from": vm["host"]})
    assert (wrong.status_code, wrong.json()["host"]) == (409, there["host"])
    same = fleet.http.post("/vms/web1/migrate", json={"host": there["host"]})
    assert (same.status_code, same.json()["code"]) == (409, "conflict")
    wait_until(lambda: fleet.get("/vms/web1")["observed_at"] > there["observed_at"], 180, "the observer to look")
    assert fleet.get("/vms/web1")["host"] == there["host"]
    replay = fleet.get(f"/jobs/{job['id']}/replay")
    assert replay["playbook"] == "vm/migrate.yml"


def test_the_cli_moves_a_machine_back_and_forth(fleet: Fleet) -> None:
    vm = fleet.create("web1", host="host1", wait_for="none")
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}

    def cli(*words: str, code: int = 0) -> str:
        program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
        done = subprocess.run(
            program, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    verdicts = {
        line.split()[0]: line.split()[1] for line in cli("vm", "preflight", "web1").splitlines() if "mirror" in line
    }
    assert verdicts == {"host2": "yes", "host3": "yes"}
    refused = cli("vm", "preflight", "web1", "--no-copy-storage")
    assert "may not be copied" in refused and " yes " not in refused
    said = cli("vm", "migrate", "web1", "--to", "host2", "--bandwidth", "16MiB")
    assert "web1: host1 → host2 in" in said
    assert "% of" in said, "how far it is"
    assert "not on host 'host1'" in cli("vm", "migrate", "web1", "--from", "host1", code=4)
    assert fleet.get("/vms/web1")["host"] == "host2"
    assert copies(fleet, "web1") == {"host2": RUNNING}
    said = cli("host", "evacuate", "host2")
    assert "web1: host2 → " in said
    assert fleet.get("/hosts/host2")["maintenance"]
    moved = fleet.get("/vms/web1")
    assert moved["host"] != "host2"
    assert copies(fleet, "web1") == {moved["host"]: RUNNING}
    assert fleet.http.post("/vms/web1/migrate", json={"host": "host2"}).status_code == 409
    cli("host", "set", "host2", "--no-maintenance")
    assert not fleet.get("/hosts/host2")["maintenance"]
    assert vm["address"] == moved["address"]


def test_an_evacuation_names_what_must_stay(fleet: Fleet) -> None:
    fleet.create("web1", host="host1", wait_for="none")
    for host in ("host2", "host3"):
        fleet.http.patch(f"/hosts/{host}", json={"maintenance": True})
    try:
        answer = fleet.post("/hosts/host1/evacuate")
        assert answer["job"] is None
        assert answer["left"][0]["vm"] == "web1"
        assert "maintenance" in answer["left"][0]["text"]
        assert copies(fleet, "web1") == {"host1": RUNNING}
    finally:
        for host in ("host1", "host2", "host3"):
            fleet.http.patch(f"/hosts/{host}", json={"maintenance": False})


def test_room_on_the_target_is_kept_while_a_machine_is_on_its_way(fleet: Fleet) -> None:
    vm = fleet.create("web1", host="host1", wait_for="agent")
    before = fleet.get("/hosts/host2")["memory"]["allocated_bytes"]
    job, _target = begun(fleet, vm, host="host2")
    assert fleet.get("/hosts/host2")["memory"]["allocated_bytes"] == before + vm["memory_bytes"]
    again = fleet.http.post("/vms/web1/migrate", json={})
    assert (again.status_code, again.json()["code"]) == (409, "not_ready")
    hurry(fleet.lab.host("host1").uri, "web1")
    assert fleet.ended(job, 300)["state"] == "succeeded"
    wait_until(
        lambda: fleet.get("/hosts/host2")["memory"]["allocated_bytes"] == before + vm["memory_bytes"], 60, "one share"
    )
    assert fleet.get("/vms/web1")["host"] == "host2"


def test_one_that_takes_too_long_stays_where_it_is(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    answer = fleet.post("/vms/web1/migrate", {"bandwidth": CRAWL, "timeout": 8})
    job = fleet.ended(answer["job"], 120)
    assert (job["state"], job["error"]["code"]) == ("failed", "timeout")
    assert "stays on the source" in job["error"]["hint"]
    assert copies(fleet, "web1") == {vm["host"]: RUNNING}
    row = fleet.get("/vms/web1")
    assert (row["host"], row["state"], row["error"]["code"]) == (vm["host"], "running", "timeout")
    assert answered(vm["address"]) == "web1"


def kill_run(fleet: Fleet, job: dict[str, Any]) -> None:
    """Kill all processes of a job's run, the one that watches over them first: none can say or do anything more."""
    (folder,) = (fleet.home / "runs" / job["id"]).iterdir()
    found = survivors.find(folder.name)
    assert found

    def rank(pid: int) -> bool:
        with suppress(OSError):
            return b"supervisor.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        return True

    for pid in sorted(found, key=rank):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def mended(fleet: Fleet, job: dict[str, Any]) -> dict[str, Any]:
    """Wait until the job that clears up after a migration has ended well; return the machine."""
    found = [each for each in fleet.get("/jobs", kind="vm.mend")["items"] if each["number"] > job["number"]]
    assert len(found) == 1, found
    ended = fleet.ended(found[0])
    assert ended["state"] == "succeeded", ended["error"]
    vm: dict[str, Any] = fleet.get("/vms/web1")
    return vm


def left_of(fleet: Fleet, name: str) -> dict[str, int]:
    """Return how many domains and volumes of a machine each host has."""
    hosts = {host: things for host, things in fleet.things().items() if host != "vms"}
    return {host: sum(f" {name}" in each or f"/{name}-" in each for each in things) for host, things in hosts.items()}


def test_a_cancelled_migration_is_ended_and_cleared_away_also_when_its_run_was_killed(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    before = left_of(fleet, "web1")
    job, _target = begun(fleet, vm)
    fleet.post(f"/jobs/{job['id']}/cancel")
    assert fleet.ended(job)["state"] == "cancelled"
    there = mended(fleet, job)
    assert (there["host"], there["state"], there["error"]) == (vm["host"], "running", None)
    assert copies(fleet, "web1") == {vm["host"]: RUNNING}
    assert left_of(fleet, "web1") == before
    job, target = begun(fleet, vm)
    kill_run(fleet, job)
    told = fleet.http.post(f"/jobs/{job['id']}/cancel")
    assert told.is_success or told.json()["detail"] == "The job has ended already: failed.", told.text
    assert fleet.ended(job)["state"] in ("cancelled", "failed")
    assert is_on_its_way(fleet.lab.host(target).uri, "web1"), "libvirt goes on with it"
    refused = fleet.http.post("/vms/web1/migrate", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_ready")
    there = mended(fleet, job)
    assert (there["host"], there["state"]) == (vm["host"], "running")
    assert copies(fleet, "web1") == {vm["host"]: RUNNING}
    assert left_of(fleet, "web1") == before
    assert answered(vm["address"]) == "web1"
    paused = fleet.ended(fleet.post("/vms/web1/actions", {"action": "pause"})["job"])
    assert paused["state"] == "succeeded", "the machine is free"


def test_a_target_that_loses_power_in_mid_way_leaves_the_machine_where_it_was(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    job, target = begun(fleet, vm)
    fleet.lab.fault("power-off", target)
    ended = fleet.ended(job, 240)
    assert ended["state"] == "failed", ended
    assert copies(fleet, "web1") == {vm["host"]: RUNNING}
    assert answered(vm["address"]) == "web1"
    fleet.lab.undo(target)
    wait_until(lambda: fleet.get(f"/hosts/{target}")["state"] == "up", 180, "the target to be back")
    assert mended(fleet, job)["host"] == vm["host"], "it was free before; now what was left on the target is gone"
    assert left_of(fleet, "web1")[target] == 0
    assert copies(fleet, "web1") == {vm["host"]: RUNNING}
    again = fleet.ended(fleet.post("/vms/web1/migrate", {"host": target})["job"], 240)
    assert again["state"] == "succeeded", again["error"]
    assert copies(fleet, "web1") == {target: RUNNING}


def test_a_migration_whose_worker_was_killed_is_taken_up(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    job, target = begun(fleet, vm)
    os.kill(fleet.pid_of("worker"), signal.SIGKILL)
    hurry(fleet.lab.host(vm["host"]).uri, "web1")
    ended = fleet.ended(job, 240)
    assert (ended["state"], ended["attempt"] > 1) == ("succeeded", True), ended
    assert copies(fleet, "web1") == {target: RUNNING}
    assert fleet.get("/vms/web1")["host"] == target
    assert answered(vm["address"]) == "web1"


def test_a_target_that_turns_out_to_be_unfit_is_replaced_by_another_host(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="none", start=False)
    answer = fleet.post("/vms/web1/migrate")
    namesake = f"<domain type='qemu'><name>web1</name><memory>1024</memory><uuid>{uuid.uuid4()}</uuid>{BARE}</domain>"
    with opened_host(fleet.lab.host(answer["host"]).uri, Deadline(20)) as connection:
        other = connection.defineXML(namesake)  # the run needs longer until it looks
        try:
            job = fleet.ended(answer["job"], 240)
        finally:
            other.undefine()
    assert (job["state"], job["attempt"]) == ("succeeded", 2), job["error"]
    there = fleet.get("/vms/web1")
    assert there["host"] not in (vm["host"], answer["host"])
    assert (
        f"{answer['host']} cannot take it: the target has another machine called web1" in there["explanation"]["text"]
    )
    assert list(copies(fleet, "web1")) == [there["host"]]


def test_a_machine_deleted_while_it_moves_is_gone_from_both_hosts(fleet: Fleet) -> None:
    vm = fleet.create("web1", wait_for="agent")
    job, _target = begun(fleet, vm)
    deletion = fleet.http.delete("/vms/web1").json()["job"]
    hurry(fleet.lab.host(vm["host"]).uri, "web1")
    fleet.ended(job, 240)
    assert fleet.ended(deletion, 240)["state"] == "succeeded"
    assert copies(fleet, "web1") == {}
    assert fleet.get("/vms")["items"] == []
