"""What the API decides about clones, without any host: what is reserved, what a job gets, what its end writes."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from virtfleet import database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Job, JobLock, Snapshot, Vm

from tests.api.fleet_rows import GIB
from tests.api.test_migrations import client, post, running
from tests.api.test_snapshots import ended as snapshot_ended

__all__ = ["client"]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE me"


def stopped(name: str = "web1", **more: Any) -> str:
    vm_id = running(name, **more)
    change(vm_id, state="stopped")
    return vm_id


def change(vm_id: str, **values: Any) -> None:
    with database.write() as session:
        for key, value in values.items():
            setattr(session.get_one(Vm, vm_id), key, value)


def job_of(answer: dict[str, Any]) -> Job:
    with database.read() as session:
        job = session.get_one(Job, answer["job"]["id"])
        session.expunge(job)
        return job


def close(answer: dict[str, Any], state: str = "succeeded", *, began: bool = True, **item: Any) -> None:
    with database.write() as session:
        job = session.get_one(Job, answer["job"]["id"])
        job.state, job.attempt = "running", 1
        job.started_at = job.created_at if began else None
        vm = answer["vms"][0]
        found = {"name": vm["name"], "uuid": vm["uuid"], "state": "stopped", "disks": [], **item}
        error = None if state == "succeeded" else {"code": "pool_full", "message": "no room", "hint": ""}
        result = {"host1": {"vms": [found] if began else []}}
        lifecycle.close(session, job, Outcome(state, result=result, error=error))  # type: ignore[arg-type]


def test_a_clone_is_reserved_where_its_source_is_with_names_and_addresses_of_its_own(client: FlaskClient) -> None:
    source_id = stopped(ssh_keys=[KEY], vcpus=2, user_data="#cloud-config\n")
    source = client.get("/api/v1/vms/web1").get_json()
    status, answer = post(client, "/vms/web1/clone", {"name": "web2", "start": False})
    (vm,) = answer["vms"]
    assert (status, vm["state"], vm["host"], vm["vcpus"]) == (202, "building", "host1", 2)
    assert "web2 is made on host1, because the disks of web1 are there" in vm["explanation"]["text"]
    assert {vm["uuid"], vm["mac"], vm["address"]}.isdisjoint({source["uuid"], source["mac"], source["address"]})
    job = job_of(answer)
    wanted = job.variables["virtfleet_clone"]
    assert job.variables["virtfleet_vm"] == {"name": "web1", "uuid": source["uuid"]}
    assert (wanted["name"], wanted["uuid"], wanted["mode"], wanted["state"]) == ("web2", vm["uuid"], "full", "present")
    # What the user data did is on the disk already; the keys stay those of its owner.
    assert wanted["cloud_init"] == {"hostname": "web2", "ssh_keys": [KEY]}
    assert wanted["networks"][0]["address"].startswith(f"{vm['address']}/")
    assert (wanted["metadata"]["id"], wanted["metadata"]["attempt"]) == (vm["id"], {"$attempt": True})
    with database.read() as session:
        locks = session.scalars(select(JobLock.resource).where(JobLock.job_id == job.id, JobLock.mode == "exclusive"))
        assert set(locks) == {f"vm:{vm['id']}", f"vm:{source_id}"}
    close(answer)
    made = client.get("/api/v1/vms/web2").get_json()
    assert (made["state"], made["error"], made["image"]) == ("stopped", None, "tiny")
    assert client.get("/api/v1/vms/web1").get_json()["state"] == "stopped"


def test_a_full_clone_frees_the_image_and_a_linked_one_holds_it(client: FlaskClient) -> None:
    stopped()
    close(post(client, "/vms/web1/clone", {"name": "full"})[1])
    close(post(client, "/vms/web1/clone", {"name": "linked", "mode": "linked"})[1])
    refused = client.delete("/api/v1/images/tiny")
    assert (refused.status_code, refused.get_json()["vms"]) == (409, ["web1", "linked"])
    status, answer = post(client, "/vms/full/clone", {"name": "more", "mode": "linked"})
    assert (status, answer["code"]) == (422, "invalid")
    status, answer = post(client, "/vms/full/clone", {"name": "more", "mode": "fresh"})
    assert (status, answer["code"]) == (422, "invalid")


def test_the_source_goes_only_after_the_new_one_is_there(client: FlaskClient) -> None:
    stopped()
    answer = post(client, "/vms/web1/clone", {"name": "web2", "delete_source": True})[1]
    close(answer, "failed", failed=True, cleaned=True, msg="no room", error={"code": "pool_full"})
    assert client.get("/api/v1/vms/web2").status_code == 404
    assert client.get("/api/v1/vms/web1").get_json()["state"] == "stopped"
    answer = post(client, "/vms/web1/clone", {"name": "web2", "delete_source": True})[1]
    close(answer)
    assert client.get("/api/v1/vms/web2").get_json()["state"] == "stopped"
    going = client.get("/api/v1/vms/web1").get_json()
    assert going["state"] == "deleting"
    assert client.get(f"/api/v1/jobs/{going['job']}").get_json()["kind"] == "vm.delete"


def test_a_fresh_one_is_a_new_machine_with_the_same_parameters_placed_anywhere(client: FlaskClient) -> None:
    source_id = running(ssh_keys=[KEY], max_vcpus=4, user_data="#cloud-config\n")
    with database.write() as session:
        source = session.get_one(Vm, source_id)
        source.spec = {**source.spec, "io": {"iops": 100}}
    status, answer = post(client, "/vms/web1/clone", {"name": "web2", "mode": "fresh"})
    assert (status, answer["job"]["kind"]) == (202, "vm.create")
    (wanted,) = job_of(answer).variables["virtfleet_vms"]
    assert (wanted["io"], wanted["max_vcpus"], wanted["cloud_init"]["ssh_keys"]) == ({"iops": 100}, 4, [KEY])
    assert "$secret" in wanted["cloud_init"]["user_data_src"]
    assert wanted["disks"][0]["image"].startswith("base-")
    assert answer["vms"][0]["explanation"]["ranked"]


def test_one_that_failed_half_way_is_cleaned_up_and_one_that_never_began_is_forgotten(client: FlaskClient) -> None:
    stopped()
    answer = post(client, "/vms/web1/clone", {"name": "web2"})[1]
    close(answer, "failed", failed=True, cleaned=False, msg="no room", error={"code": "pool_full"})
    left = client.get("/api/v1/vms/web2").get_json()
    assert (left["state"], left["error"]["code"]) == ("deleting", "pool_full")
    answer = post(client, "/vms/web1/clone", {"name": "web3"})[1]
    close(answer, "cancelled", began=False)
    assert client.get("/api/v1/vms/web3").status_code == 404


def test_further_disks_are_the_clones_own_unless_they_are_shared(client: FlaskClient) -> None:
    vm_id = stopped()
    disk = {"bus": "virtio", "read_only": False, "shareable": False, "io": {}, "pool": "default", "size_bytes": GIB}
    attached = [
        {**disk, "serial": "data", "volume": "web1-data"},
        {**disk, "serial": "tools", "volume": "tools.iso", "read_only": True},
    ]
    change(vm_id, attached=attached)
    answer = post(client, "/vms/web1/clone", {"name": "web2"})[1]
    close(answer, disks=[{"serial": "root", "name": "web2-root"}, {"serial": "data", "name": "web2-disk1"}])
    found = client.get("/api/v1/vms/web2/disks").get_json()["items"]
    assert [(each["serial"], each["volume"]) for each in found[1:]] == [("data", "web2-disk1"), ("tools", "tools.iso")]
    status, refused = post(client, "/vms/web1/clone", {"name": "web3", "mode": "linked"})
    assert (status, "'data'" in refused["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "../x"}, 422, "invalid"),
        ({"name": "web1"}, 409, "already_exists"),
        ({"name": "web2", "mode": "half"}, 422, "invalid"),
        ({"name": "web2", "mode": "fresh", "snapshot": "s1"}, 422, "invalid"),
        ({"name": "web2", "snapshot": "s9"}, 404, "not_found"),
        ({"name": "web2", "address": "10.1.2.3"}, 422, "invalid"),
        ({"name": "web2", "ssh_keys": ["nonsense"]}, 422, "invalid"),
        ({}, 422, "invalid"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(client: FlaskClient, body: dict[str, Any], status: int, code: str) -> None:
    stopped()
    answer = post(client, "/vms/web1/clone", body)
    assert (answer[0], answer[1]["code"]) == (status, code), answer[1]
    assert [vm["name"] for vm in client.get("/api/v1/vms").get_json()["items"]] == ["web1"]


def test_a_running_machine_is_cloned_from_an_external_snapshot_only(client: FlaskClient) -> None:
    vm_id = running()
    status, answer = post(client, "/vms/web1/clone", {"name": "web2"})
    assert (status, answer["code"]) == (409, "conflict")
    for name, mode in (("i1", "internal"), ("e1", "external")):
        taken = post(client, "/vms/web1/snapshots", {"name": name})[1]
        snapshot_ended(taken["job"]["id"], vm_id, [name])
        with database.write() as session:
            session.scalars(select(Snapshot)).one().mode = mode
        status, _ = post(client, "/vms/web1/clone", {"name": "web2", "snapshot": name})
        assert status == (202 if mode == "external" else 409)


def test_what_the_host_has_no_room_for_is_refused_with_the_reasons(client: FlaskClient) -> None:
    stopped(memory_bytes=5 * GIB)
    status, answer = post(client, "/vms/web1/clone", {"name": "web2"})
    assert (status, answer["code"]) == (409, "no_capacity")
    assert any(each["host"] == "host1" and each["reasons"] for each in answer["hosts"])
