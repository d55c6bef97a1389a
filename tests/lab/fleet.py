"""A whole fleet on the lab: API, worker, observer and controller as processes, its hosts, network, image and flavor."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet import processes
from virtfleet.lab import Lab

ENDED = ("succeeded", "failed", "cancelled")
DELETE_SECONDS = 240.0
QUICK = {
    **{"VIRTFLEET_S1_ENABLED": "1", "VIRTFLEET_LEASE_SECONDS": "5", "VIRTFLEET_HOST_TIMEOUT": "5"},
    "VIRTFLEET_DISK_GROWTH_LIMIT": "10GiB",
}
"""A dead worker and a silent host are noticed soon, so that tests need not wait for it."""
TEST_RUN = "VIRTFLEET_TEST_RUN"
"""In the environment of a test's fleet: the process id of the test run."""


class Fleet:
    """A running fleet as its administrator sees it, and what libvirt says beside it."""

    def __init__(self, lab: Lab, home: Path, listen: str) -> None:
        self.lab = lab
        self.home = home
        self.url = f"http://{listen}"
        token = (home / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60, trust_env=False)

    def get(self, path: str, **params: Any) -> Any:
        """Return what is at a path."""
        answer = self.http.get(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for something; it must be taken."""
        answer = self.http.post(path, json=body or {})
        assert answer.is_success, answer.text
        return answer.json()

    def ended(self, job: dict[str, Any], seconds: float = 240) -> dict[str, Any]:
        """Wait for the end of a job, whatever it is."""
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = self.get(f"/jobs/{job['id']}")
            if found["state"] in ENDED:
                return found
            assert time.monotonic() < deadline, f"{found['kind']} did not end in {seconds} s: {found['progress']}"
            time.sleep(0.1)

    def create(self, name: str, **more: Any) -> dict[str, Any]:
        """Create a machine and return it."""
        answer = self.post("/vms", {"name": name, **more})
        job = self.ended(answer["job"])
        assert job["state"] == "succeeded", job["error"]
        vm: dict[str, Any] = self.get(f"/vms/{answer['vms'][0]['id']}")
        return vm

    def idle(self, name: str, **more: Any) -> dict[str, Any]:
        """Create a machine that is there and takes no processor time: for tests that need nothing of its guest."""
        return self.create(name, paused=True, wait_for="none", **more)

    def delete_all(self) -> None:
        """Delete every machine, and wait until none is left."""
        deadline = time.monotonic() + DELETE_SECONDS
        while vms := self.get("/vms")["items"]:
            assert time.monotonic() < deadline, [(vm["name"], vm["state"], vm["error"]) for vm in vms]
            for vm in vms:
                if vm["state"] != "deleting":
                    self.http.delete(f"/vms/{vm['id']}")
            time.sleep(0.3)

    def things(self) -> dict[str, set[str]]:
        """Return each host's domains and volumes, without images and lost+found, and the rows that must not be left."""
        found: dict[str, set[str]] = {"vms": {vm["name"] for vm in self.get("/vms")["items"]}}
        for host in self.lab.hosts():
            with opened_host(host.uri, Deadline(60)) as connection:
                names = {f"domain {domain.name()}" for domain in connection.listAllDomains(0)}
                for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                    pool.refresh(0)
                    own = (name for name in pool.listVolumes() if not name.startswith(("base-", "lost+found")))
                    names |= {f"volume {pool.name()}/{name}" for name in own}
                found[host.name] = names
        return found

    def cli(self, *words: str) -> str:
        """Run the command against this fleet, as its administrator; it must succeed. Return what it prints."""
        own = {"VIRTFLEET_URL": self.url, "VIRTFLEET_TOKEN": (self.home / "admin.token").read_text().strip()}
        program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
        done = subprocess.run(program, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def domains(self, host: str) -> dict[str, tuple[str, int]]:
        """Return name → (UUID, state) of a host's machines, as libvirt says."""
        with opened_host(self.lab.host(host).uri, Deadline(60)) as connection:
            return {each.name(): (each.UUIDString(), each.state()[0]) for each in connection.listAllDomains(0)}

    def pid_of(self, name: str) -> int:
        """Return the process id of one of the fleet's processes."""
        return pid_of(self.home, name)


def pid_of(home: Path, name: str) -> int:
    """Return the process id of a process of a home's fleet."""
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = stat.read_bytes().split(b"\0")
            environment = (stat.parent / "environ").read_bytes()
        except OSError:
            continue
        if f"virtfleet.{name}".encode() in words and f"VIRTFLEET_HOME={home}".encode() in environment:
            return int(stat.parent.name)
    raise LookupError(f"there is no process {name}")


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait until something holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(lab: Lab, home: Path, uris: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """Start a fleet on the lab's hosts, or on those named in `uris` by the URIs given there; end it afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTFLEET_HOME", str(home))
        listen = f"127.0.0.1:{free_port()}"
        end_fleets_of_dead_test_runs()
        processes.start(listen, {**QUICK, TEST_RUN: str(os.getpid())})
        try:
            fleet = Fleet(lab, home, listen)
            _furnish(fleet, uris or {host.name: host.uri for host in lab.hosts()})
            yield fleet
        finally:
            processes.stop()
    assert os.environ.get("VIRTFLEET_HOME") != str(home)


def end_fleets_of_dead_test_runs() -> None:
    """End the fleets of test runs that were killed before they could do it themselves."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            watcher = b"virtfleet.processes" in (folder / "cmdline").read_bytes().split(b"\0")
            found = re.search(rb"(?:^|\0)" + TEST_RUN.encode() + rb"=(\d+)", (folder / "environ").read_bytes())
        except OSError:
            continue
        if watcher and found and not Path(f"/proc/{found[1].decode()}").exists():
            os.kill(int(folder.name), signal.SIGTERM)


def _furnish(fleet: Fleet, uris: Mapping[str, str]) -> None:
    status = fleet.lab.status()
    guests = status["networks"]["guests"]
    addresses = {"cidr": guests["cidr"], "gateway": guests["gateway"], **guests["range"]}
    fleet.post("/networks", {"name": "guests", "source": guests["bridge"], **addresses})
    jobs = [fleet.post("/hosts", {"uri": uri, "name": name})["job"] for name, uri in uris.items()]
    fleet.post("/images", {"source": status["image"], "name": "tiny"})
    fleet.post("/flavors", {"name": "small", "vcpus": 1, "memory": "128MiB", "disk": "1GiB"})
    for job in jobs:
        assert fleet.ended(job)["state"] == "succeeded"
