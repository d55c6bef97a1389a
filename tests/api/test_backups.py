"""What the API decides about backups, without any host: what a job gets, what its end writes, what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session
from virtfleet import database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Job, JobLock, Vm

from tests.api.test_migrations import client, post, running

__all__ = ["client"]


def ended(job_id: str, item: dict[str, Any] | None) -> None:
    """Close a job with what its run says of the one machine that it was about."""
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        failed = item is None or item.get("failed")
        error = {"code": "refused", "message": "no", "hint": ""} if failed else None
        told = {"host1": {"vms": [{"item": job.variables["virtfleet_vms"][0], **(item or {})}]}}
        result = {} if item is None else told
        lifecycle.close(session, job, Outcome("failed" if failed else "succeeded", result=result, error=error))


def _locks(session: Session, job_id: str) -> list[JobLock]:
    return list(session.scalars(select(JobLock).where(JobLock.job_id == job_id)))


def variables(job_id: str) -> dict[str, Any]:
    with database.read() as session:
        return dict(session.get_one(Job, job_id).variables)


def listed(client: FlaskClient, query: str = "") -> list[dict[str, Any]]:
    found = client.get(f"/api/v1/backups{query}").get_json()["items"]
    assert isinstance(found, list)
    return found


def made(
    client: FlaskClient,
    name: str,
    second: int = 0,
    parent: str | None = None,
    disks: Sequence[str] = ("vda",),
    **more: Any,
) -> str:
    """Make a backup of web1 as if a host had done it; return its id."""
    status, answer = post(client, "/vms/web1/backups", {"name": name, **more})
    assert status == 202, answer
    uuid = client.get("/api/v1/vms/web1").get_json()["uuid"]
    disk = {"volume": "x", "size_bytes": 5, "sha256": "0" * 64}
    backup = {
        "name": name,
        "uuid": uuid,
        "kind": "full" if parent is None else "incremental",
        "parent": parent,
        "quiesced": False,
        "size_bytes": 5,
        "created_at": f"2026-01-31T12:00:{second:02}.000Z",
        "disks": [
            {**disk, "target": target, "capacity_bytes": 2 ** (24 if number else 30)}
            for number, target in enumerate(disks)
        ],
    }
    ended(answer["job"]["id"], {"backup": backup, "reason": None, "deleted": []})
    return next(str(each["id"]) for each in listed(client) if each["name"] == name)


def test_a_backup_is_made_by_a_job_and_listed_when_it_is_there(client: FlaskClient) -> None:
    running()
    body = {"name": "n1", "kind": "incremental", "quiesce": True, "prefix": "n", "keep": 3}
    status, answer = post(client, "/vms/web1/backups", body)
    assert (status, answer["backup"]) == (202, "n1")
    given = variables(answer["job"]["id"])
    retain = {"prefix": "n", "count": 3}
    assert given["virtfleet_backup"] == {"name": "n1", "kind": "incremental", "quiesce": True, "retain": retain}
    assert listed(client) == []
    with database.read() as session:
        locks = {lock.resource.partition(":")[0] for lock in _locks(session, answer["job"]["id"])}
    assert locks == {"vm", "host", "backups"}
    ended(answer["job"]["id"], {"failed": True, "msg": "no", "error": {"code": "pool_full"}})
    assert client.get("/api/v1/vms/web1").get_json()["error"]["code"] == "pool_full"
    made(client, "n2")
    (found,) = listed(client, "?vm=web1")
    assert (found["vm"], found["host"], found["created_at"]) == ("web1", "host1", "2026-01-31T12:00:00.000Z")
    assert listed(client, "?vm=web2") == []
    assert post(client, "/vms/web1/backups")[1]["backup"].startswith("backup-20")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../x"}, 422),
        ({"kind": "half"}, 422),
        ({"keep": 0}, 422),
        ({"prefix": "x"}, 422),
        ({"name": "x", "keep": 2, "prefix": "y"}, 422),
        ({"name": "there"}, 409),
    ],
)
def test_what_cannot_be_is_refused(client: FlaskClient, body: dict[str, Any], status: int) -> None:
    running()
    made(client, "there")
    assert post(client, "/vms/web1/backups", body)[0] == status


def test_one_that_an_increment_lies_over_stays_and_a_deleted_one_is_forgotten(client: FlaskClient) -> None:
    running()
    below, above = made(client, "b1"), made(client, "b2", 1, parent="b1")
    refused = client.delete(f"/api/v1/backups/{below}")
    assert (refused.status_code, refused.get_json()["code"]) == (409, "in_use")
    answer = client.delete(f"/api/v1/backups/{above}").get_json()
    assert variables(answer["job"]["id"])["virtfleet_state"] == "absent"
    ended(answer["job"]["id"], {"backup": None, "deleted": ["b2"]})
    assert [each["name"] for each in listed(client)] == ["b1"]
    assert client.delete("/api/v1/backups/bak_nope").status_code == 404


def test_in_place_it_goes_to_the_machine_where_the_backup_is(client: FlaskClient) -> None:
    vm_id, backup = running(), made(client, "b1")
    status, answer = post(client, f"/backups/{backup}/restore", {"stop": True})
    assert status == 202
    assert variables(answer["job"]["id"])["virtfleet_restore"] == {"backup": "b1", "stop": True}
    with database.write() as session:
        vm = session.get_one(Vm, vm_id)
        vm.attached = [{"serial": "data", "volume": "web1-data", "read_only": False}]
        vm.spec = {**vm.spec, "disks": [{"name": "web1-root", "pool": "default"}]}
    disks = [{"serial": None, "source": "/pool/web1-root.r1"}, {"serial": "data", "source": "/pool/web1-data.r1"}]
    ended(answer["job"]["id"], {"vm": {"state": "stopped", "disks": disks}})
    assert client.get("/api/v1/vms/web1").get_json()["state"] == "stopped"
    with database.read() as session:
        vm = session.get_one(Vm, vm_id)
        assert (vm.spec["disks"][0]["name"], vm.attached[0]["volume"]) == ("web1-root.r1", "web1-data.r1")
    assert post(client, f"/backups/{backup}/restore", {"name": "x", "stop": True})[0] == 422
    with database.write() as session:
        vm = session.get_one(Vm, vm_id)
        vm.host_id = next(each.id for each in session.query(type(vm.host)) if each.name == "host2")
    assert post(client, f"/backups/{backup}/restore")[1]["code"] == "conflict"


def test_backups_outlive_their_machine_and_become_a_new_one_with_room_reserved(client: FlaskClient) -> None:
    vm_id, backup = running(), made(client, "b1", disks=("vda", "sda"))
    with database.write() as session:
        session.delete(session.get_one(Vm, vm_id))
    assert [each["name"] for each in listed(client, "?vm=web1")] == ["b1"]
    assert post(client, f"/backups/{backup}/restore")[0] == 404
    status, answer = post(client, f"/backups/{backup}/restore", {"name": "web9", "start": True})
    assert (status, answer["vm"]) == (202, "web9")
    row = client.get("/api/v1/vms/web9").get_json()
    assert (row["state"], row["host"]) == ("building", "host1")
    given = variables(answer["job"]["id"])["virtfleet_restore"]
    assert (given["new_name"], given["new_uuid"], given["start"]) == ("web9", row["uuid"], True)
    assert row["address"] == given["networks"][0]["address"].partition("/")[0]
    assert row["mac"] == given["networks"][0]["mac"]
    assert given["cloud_init"] == {"hostname": "web9", "ssh_keys": []}
    disks = [
        {"target": "vda", "bus": "virtio", "serial": "root", "source": "/pool/web9-root"},
        {"target": "vdb", "bus": "virtio", "serial": "seed", "source": "/pool/web9-seed.iso"},
        {"target": "sda", "bus": "scsi", "serial": "data", "source": "/pool/web9-disk1"},
    ]
    ended(answer["job"]["id"], {"vm": {"state": "running", "disks": disks}})
    assert client.get("/api/v1/vms/web9").get_json()["state"] == "running"
    root, data = client.get("/api/v1/vms/web9/disks").get_json()["items"]
    assert (root["size"], root["volume"]) == ("1GiB", f"web9-{row['uuid'][:8]}-root")
    assert (data["serial"], data["volume"], data["size"], data["bus"]) == ("data", "web9-disk1", "16MiB", "scsi")
    assert post(client, f"/backups/{backup}/restore", {"name": "web7", "address": row["address"]})[0] == 409
    assert post(client, f"/backups/{backup}/restore", {"address": row["address"]})[0] == 422
    assert post(client, f"/backups/{backup}/restore", {"name": "web9"})[0] == 409
    _status, answer = post(client, f"/backups/{backup}/restore", {"name": "web8"})
    ended(answer["job"]["id"], {"failed": True, "msg": "no", "error": {"code": "refused"}})
    assert client.get("/api/v1/vms/web8").get_json()["state"] == "deleting"
