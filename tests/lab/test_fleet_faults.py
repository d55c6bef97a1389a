"""A host that goes away before or in the middle of a creation: told in time, nothing else waits, nothing is left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.lab.fleet import Fleet, wait_until
from tests.lab.traces import rows, traces

pytestmark = pytest.mark.lab

FAULTS = ["power-off", "cut-link", "freeze-libvirtd"]
FAILS_SECONDS = 90.0
"""What is bounded ends in this time: (3 + 1) x 3 s of keepalive or 10 s of connecting, on a machine that is busy."""
BACK_SECONDS = 180.0
"""The observer's longest pause (30 s), the rest of a failed clean-up (30 s), the clean-up itself, and much room."""


@contextmanager
def answering(fleet: Fleet) -> Iterator[None]:
    """The API answers whatever it is asked meanwhile, every time."""
    wrong: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(1.0):
            for path in ("/healthz", "/vms", "/hosts", "/jobs?state=open", "/capacity"):
                try:
                    answer = fleet.http.get(path, timeout=30)
                except httpx.HTTPError as error:
                    wrong.append(f"{path}: {error!r}")
                    return
                if answer.status_code != 200:
                    wrong.append(f"{path}: {answer.status_code} {answer.text}")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert wrong == []


@pytest.fixture(scope="module")
def warm(whole_fleet: Fleet) -> None:
    """The image's base is on every host already: it stays when machines go."""
    for host in whole_fleet.lab.hosts():
        whole_fleet.create(f"warm-{host.name}", host=host.name, wait_for="none", start=False)
    whole_fleet.delete_all()


@pytest.fixture
def before(warm: None, fleet: Fleet) -> dict[str, set[str]]:
    """What there is before."""
    return traces(fleet)


def under_way(fleet: Fleet, name: str, host: str) -> dict[str, Any]:
    """Ask for a machine and return its job once its domain is there; it goes on until the machine's agent answers."""
    answer = fleet.post("/vms", {"name": name, "host": host, "wait_for": "agent", "user_data": "#cloud-config\n{}\n"})
    wait_until(lambda: name in fleet.domains(host), 180, "the domain to be there")
    return dict(answer["job"])


def told(job: dict[str, Any], host: str) -> str:
    """The job has failed with a sentence that names the host, and says what to do."""
    error = job["error"]
    assert job["state"] == "failed", job
    assert host in error["message"], error
    assert "Failed to " in error["message"], error
    assert error["hint"], error
    return str(error["code"])


def back(fleet: Fleet, host: str) -> None:
    fleet.lab.undo(host)
    wait_until(lambda: fleet.get(f"/hosts/{host}")["state"] == "up", BACK_SECONDS, f"{host} to be back")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_that_goes_away_in_the_middle_is_told_and_cleaned_when_it_is_back(
    fleet: Fleet, before: dict[str, set[str]], fault: str
) -> None:
    with answering(fleet):
        job = under_way(fleet, "web1", "host1")
        fleet.lab.fault(fault, "host1")
        others = [fleet.idle(f"other-{host}", host=host) for host in ("host2", "host3")]
        assert {vm["state"] for vm in others} == {"paused"}
        assert told(fleet.ended(job, FAILS_SECONDS), "host1") in ("host_unreachable", "host_frozen")
        # What may be left is not forgotten: the machine is being deleted, for as long as that takes.
        vm = fleet.get("/vms/web1")
        assert (vm["state"], bool(vm["error"])) == ("deleting", True)
        wait_until(lambda: fleet.get("/hosts/host1")["state"] == "down", 180, "the observer to notice")
        refused = fleet.http.post("/vms", json={"name": "web2", "host": "host1"})
        assert (refused.status_code, refused.json()["code"]) == (409, "no_capacity")
        assert any("host1" in each["host"] for each in refused.json()["hosts"])
        # The clean-up fails as long as the host is away, and is not given up.
        cleaning = fleet.get("/jobs", kind="vm.delete", vm=vm["id"])["items"]
        assert fleet.ended(cleaning[-1], FAILS_SECONDS)["state"] == "failed"
        for other in others:
            fleet.ended(fleet.http.delete(f"/vms/{other['id']}").json()["job"])
        back(fleet, "host1")
        wait_until(lambda: fleet.http.get("/vms/web1").status_code == 404, BACK_SECONDS, "the clean-up")
    assert traces(fleet) == before
    again = fleet.idle("web1", host="host1")
    assert again["state"] == "paused"


@pytest.mark.parametrize("fault", ["power-off", "cut-link"])
def test_a_host_that_is_away_already_is_told_and_others_take_what_may_go_elsewhere(
    fleet: Fleet, before: dict[str, set[str]], fault: str
) -> None:
    wanted = fleet.post("/placements", {})["placements"][0]["host"]
    with answering(fleet):
        fleet.lab.fault(fault, wanted)
        pinned = fleet.http.post("/vms", json={"name": "web1", "host": wanted})
        free = fleet.http.post("/vms", json={"name": "web2", "wait_for": "none", "paused": True})
        assert free.status_code == 202, free.text
        job = fleet.ended(free.json()["job"], 2 * FAILS_SECONDS)
        assert job["state"] == "succeeded", job["error"]
        assert fleet.get("/vms/web2")["host"] != wanted
        if pinned.status_code == 202:
            told(fleet.ended(pinned.json()["job"], FAILS_SECONDS), wanted)
        else:
            assert (pinned.status_code, pinned.json()["hosts"][0]["host"]) == (409, wanted)
        back(fleet, wanted)
        fleet.ended(fleet.http.delete("/vms/web2").json()["job"])
        wait_until(lambda: fleet.get("/vms")["items"] == [], BACK_SECONDS, "the clean-up")
    assert traces(fleet) == before


def test_a_frozen_host_cannot_take_all_workers(fleet: Fleet, before: dict[str, set[str]]) -> None:
    """More creations than there are workers hang on one host; one on another host need not wait for them."""
    fleet.lab.fault("freeze-libvirtd", "host1")
    hanging = [
        fleet.http.post("/vms", json={"name": f"web{number}", "host": "host1", "memory": "16MiB"})
        for number in range(6)
    ]
    asked = [answer.json()["job"] for answer in hanging if answer.status_code == 202]
    assert asked, "the observer cannot have been quicker than six requests"
    other = fleet.idle("other", host="host2")
    assert other["state"] == "paused"
    still = [job for job in asked if fleet.get(f"/jobs/{job['id']}")["state"] in ("queued", "running")]
    assert still, "all jobs of the frozen host had ended before: this run proves nothing"
    for job in asked:
        told(fleet.ended(job, 3 * FAILS_SECONDS), "host1")
    fleet.ended(fleet.http.delete(f"/vms/{other['id']}").json()["job"])
    back(fleet, "host1")
    wait_until(lambda: fleet.get("/vms")["items"] == [], BACK_SECONDS, "the clean-up")
    assert traces(fleet) == before


def test_a_deletion_on_a_host_that_is_away_can_be_asked_for_again(fleet: Fleet, before: dict[str, set[str]]) -> None:
    vm = fleet.idle("web1", host="host1")
    fleet.lab.fault("power-off", "host1")
    told(fleet.ended(fleet.http.delete("/vms/web1").json()["job"], FAILS_SECONDS), "host1")
    assert fleet.get("/vms/web1")["uuid"] == vm["uuid"]
    assert any("web1" in row for row in rows(fleet))
    back(fleet, "host1")
    assert fleet.ended(fleet.http.delete("/vms/web1").json()["job"])["state"] == "succeeded"
    assert traces(fleet) == before
