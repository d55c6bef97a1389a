"""What the API decides about snapshots, without any host: what a job gets, what its end writes, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update
from virtfleet import database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Job, Snapshot, Token, Vm

from tests.api.test_migrations import client, post, running

__all__ = ["client"]

SEEN = {
    "mode": "internal",
    "memory": True,
    "state": "running",
    "created_at": "2026-01-31T12:00:00Z",
    "description": "",
    "parent": None,
    "children": [],
    "current": True,
    "disks": [{"target": "vda", "mode": "internal", "path": "/p/web1-root"}],
}


def ended(job_id: str, vm_id: str, names: list[str], **more: Any) -> None:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        uuid = session.get_one(Vm, vm_id).uuid
        seen = [{**SEEN, "name": name} for name in names]
        item = {"item": {"uuid": uuid}, "vm": {"state": "running"}, "snapshots": seen, **more}
        state = "failed" if more.get("failed") else "succeeded"
        error = {"code": "refused", "message": "no", "hint": ""} if more.get("failed") else None
        lifecycle.close(session, job, Outcome(state, result={"host1": {"vms": [item]}}, error=error))  # type: ignore[arg-type]


def variables(job_id: str) -> dict[str, Any]:
    with database.read() as session:
        return dict(session.get_one(Job, job_id).variables)


def made(client: FlaskClient, name: str) -> None:
    vm_id = client.get("/api/v1/vms/web1").get_json()["id"]
    _status, answer = post(client, "/vms/web1/snapshots", {"name": name})
    names = [each["name"] for each in client.get("/api/v1/vms/web1/snapshots").get_json()["items"]]
    ended(answer["job"]["id"], vm_id, [*names, name])


def test_a_snapshot_is_made_by_a_job_and_listed_once_it_was_seen(client: FlaskClient) -> None:
    vm_id = running()
    body = {"name": "s1", "description": "before the upgrade", "prefix": "s", "keep": 2}
    status, answer = post(client, "/vms/web1/snapshots", body)
    assert (status, answer["snapshot"]) == (202, "s1")
    wanted = variables(answer["job"]["id"])["virtfleet_snapshot"]
    assert wanted["retain"] == {"prefix": "s", "count": 2}
    assert wanted["description"] == "before the upgrade"
    assert client.get("/api/v1/vms/web1/snapshots").get_json()["items"] == []
    ended(answer["job"]["id"], vm_id, ["s1"])
    (listed,) = client.get("/api/v1/vms/web1/snapshots").get_json()["items"]
    assert (listed["name"], listed["created_at"]) == ("s1", "2026-01-31T12:00:00.000Z")
    assert listed["disks"][0]["path"] == "/p/web1-root"


def test_without_a_name_it_is_called_after_the_moment(client: FlaskClient) -> None:
    running()
    assert post(client, "/vms/web1/snapshots")[1]["snapshot"].startswith("snapshot-20")
    assert post(client, "/vms/web1/snapshots", {"prefix": "auto-", "keep": 3})[1]["snapshot"].startswith("auto-20")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../x"}, 422),
        ({"name": "x", "mode": "both"}, 422),
        ({"name": "x", "keep": 0, "prefix": "x"}, 422),
        ({"name": "x", "keep": 2}, 422),
        ({"name": "x", "keep": 2, "prefix": "y"}, 422),
        ({"name": "there"}, 409),
    ],
)
def test_what_cannot_be_is_refused(client: FlaskClient, body: dict[str, Any], status: int) -> None:
    running()
    made(client, "there")
    assert post(client, "/vms/web1/snapshots", body)[0] == status


def test_reverting_and_deleting_need_one_that_is_known(client: FlaskClient) -> None:
    running()
    made(client, "s1")
    assert post(client, "/vms/web1/snapshots/nope/revert")[0] == 404
    assert client.delete("/api/v1/vms/web1/snapshots/nope").status_code == 404
    status, answer = post(client, "/vms/web1/snapshots/s1/revert")
    assert (status, variables(answer["job"]["id"])["virtfleet_snapshot"]) == (202, {"name": "s1"})
    deletion = client.delete("/api/v1/vms/web1/snapshots/s1?children=delete")
    given = variables(deletion.get_json()["job"]["id"])
    assert (given["virtfleet_state"], given["virtfleet_snapshot"]) == ("absent", {"name": "s1", "children": "delete"})
    assert client.delete("/api/v1/vms/web1/snapshots/s1?children=maybe").status_code == 422


def test_an_export_says_where_it_will_lie_and_an_internal_one_needs_a_stopped_machine(client: FlaskClient) -> None:
    vm_id = running()
    made(client, "s1")
    status, answer = post(client, "/vms/web1/snapshots/s1/export")
    assert (status, answer["code"], "inside the disks" in answer["detail"]) == (409, "conflict", True)
    with database.write() as session:
        session.get_one(Vm, vm_id).state = "stopped"
        uuid = session.get_one(Vm, vm_id).uuid
    status, answer = post(client, "/vms/web1/snapshots/s1/export")
    assert (status, answer["job"]["kind"]) == (202, "vm.export")
    where = {"pool": "default", "name": f"web1-{uuid[:8]}-export-s1"}
    assert answer["export"] == where
    given = variables(answer["job"]["id"])
    assert (given["virtfleet_export_pool"], given["virtfleet_export_name"]) == (where["pool"], where["name"])
    ended(answer["job"]["id"], vm_id, ["s1"], vm={"state": "stopped"})
    assert post(client, "/vms/web1/snapshots/s1/export", {"name": "mine"})[1]["export"]["name"] == "mine"
    with database.write() as session:
        session.execute(update(Token).values(scopes=["vms:write"]))
    other = post(client, "/vms/web1/snapshots/s1/export", {"name": "mine"})[1]["export"]["name"]
    assert other == f"web1-{uuid[:8]}-export-mine"
    assert post(client, "/vms/web1/snapshots/nope/export")[0] == 404
    for body in ({"name": "../x"}, {"pool": "a/b"}, {"name": ""}, {"nonsense": 1}):
        assert post(client, "/vms/web1/snapshots/s1/export", body)[0] == 422


def test_a_failed_job_leaves_the_list_as_it_was_and_says_why(client: FlaskClient) -> None:
    vm_id = running()
    made(client, "s1")
    _status, answer = post(client, "/vms/web1/snapshots/s1/revert")
    ended(answer["job"]["id"], vm_id, [], failed=True, msg="no", error={"code": "refused"})
    assert client.get("/api/v1/vms/web1").get_json()["error"]["code"] == "refused"
    assert len(client.get("/api/v1/vms/web1/snapshots").get_json()["items"]) == 1


def test_snapshots_go_with_their_machine(client: FlaskClient, tmp_path: Path) -> None:
    vm_id = running()
    made(client, "s1")
    with database.write() as session:
        session.delete(session.get_one(Vm, vm_id))
    with database.read() as session:
        assert session.query(Snapshot).count() == 0
