"""Networks, filters and secrets of hosts, checkpoints of machines: what a job gets, what its end writes, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import inspect
from virtfleet import clock, database, settings
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Address, Base, Host, Job, Network, Secret, Vm
from virtfleet.services import host_objects

from tests.api.test_migrations import client, post, running

__all__ = ["client"]

V1 = "/api/v1"
VALUE = "a-word-nobody-may-see"
INSIDE: dict[str, Any] = {
    "mode": "nat",
    "address": "192.168.100.1/24",
    "dhcp": {"start": "192.168.100.100", "end": "192.168.100.199", "hosts": []},
    "dns": [{"address": "192.168.100.10", "names": ["db1"]}],
}
SEEN = {**INSIDE, "name": "inside", "bridge": "virbr1", "domain": None, "active": True, "autostart": True}
LEASE = {"mac": "52:54:00:12:34:56", "address": "192.168.100.100", "name": None, "expires_at": 1790000000}
SECRET = {"usage": "ceph", "usage_id": "client.virtfleet"}
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c77"


def variables(job_id: str) -> dict[str, Any]:
    with database.read() as session:
        return dict(session.get_one(Job, job_id).variables)


def ended(answer: dict[str, Any], result: dict[str, Any] | None) -> None:
    """End the job of an answer: `result` is what the run says of host1; None for one that failed."""
    with database.write() as session:
        job = session.get_one(Job, answer["job"]["id"])
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        error = {"code": "refused", "message": "no", "hint": ""} if result is None else None
        state = "failed" if result is None else "succeeded"
        lifecycle.close(session, job, Outcome(state, result={"host1": result or {}}, error=error))  # type: ignore[arg-type]


def asked(client: FlaskClient, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    answer = client.open(f"{V1}{path}", method=method, json=body if method != "delete" else None)
    return answer.status_code, answer.get_json()


def listed(client: FlaskClient, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get(f"{V1}{path}").get_json()["items"]
    return items


def test_a_network_is_defined_by_a_job_and_told_from_its_end_on(client: FlaskClient) -> None:
    status, answer = asked(client, "put", "/hosts/host1/networks/inside", INSIDE)
    assert status == 202
    wanted = variables(answer["job"]["id"])["virtfleet_network"]
    assert wanted.items() >= {"name": "inside", "state": "present", "mode": "nat", "restart": False}.items()
    assert "autostart" not in wanted
    assert listed(client, "/hosts/host1/networks") == []
    ended(answer, {"network": SEEN, "leases": [LEASE], "changed": True})
    (found,) = listed(client, "/hosts/host1/networks")
    assert (found["mode"], found["dns"]) == ("nat", INSIDE["dns"])
    assert found["leases"][0]["expires_at"].startswith("2026-09-")
    assert client.get(f"{V1}/hosts/host1/networks/inside").get_json() == found
    assert client.get(f"{V1}/hosts/host1/networks/other").status_code == 404
    assert client.get(f"{V1}/hosts/host1").get_json()["networks"] == [
        {"name": "inside", "active": True, "bridge": "virbr1", "forward": None}
    ]
    status, failed = asked(client, "delete", "/hosts/host1/networks/inside")
    ended(failed, None)
    assert len(listed(client, "/hosts/host1/networks")) == 1
    status, gone = asked(client, "delete", "/hosts/host1/networks/inside?force=true")
    assert (status, variables(gone["job"]["id"])["virtfleet_network"]) == (202, {"name": "inside", "force": True})
    ended(gone, {"network": None, "leases": [LEASE], "changed": True})
    assert listed(client, "/hosts/host1/networks") == []


def test_what_a_job_has_told_is_not_undone_by_an_older_reading(client: FlaskClient) -> None:
    before = clock.now().timestamp()
    ended(asked(client, "put", "/hosts/host1/networks/inside", INSIDE)[1], {"network": SEEN})
    with database.read() as session:
        info = session.query(Host).filter_by(name="host1").one().info
    assert host_objects.newer(info, before)["networks"][0]["name"] == "inside"
    assert host_objects.newer(info, clock.after(1).timestamp()) == {}
    assert host_objects.newer({"networks": []}, before) == {}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("inside", {"address": "192.168.100.1/24"}),
        ("inside", {"mode": "nat"}),
        ("inside", {"mode": "nat", "address": "10.0.0.0/24"}),
        ("inside", {**INSIDE, "dns": [{"address": "x", "names": ["db1"]}]}),
        ("inside", {**INSIDE, "dhcp": {"hosts": [{"mac": "x", "address": "192.168.100.9"}]}}),
        ("inside", {"mode": "bridge", "bridge": "../br0"}),
        ("in side", INSIDE),
    ],
)
def test_a_network_that_cannot_be_is_refused_at_once(client: FlaskClient, name: str, body: dict[str, Any]) -> None:
    status, answer = asked(client, "put", f"/hosts/host1/networks/{name}", body)
    assert (status, answer["code"]) == (422, "invalid")


def test_a_network_is_not_taken_from_machines_unless_that_is_forced(client: FlaskClient) -> None:
    vm_id = running()
    with database.write() as session:
        vm = session.get_one(Vm, vm_id)
        session.add(Network(id="net_x", name="inside", zone_id=vm.zone_id, kind="nat", source="inside", dns=[]))
        session.flush()
        session.query(Address).filter_by(vm_id=vm_id).update({"network_id": "net_x", "address": None})
        host = vm.host.name
    status, answer = asked(client, "delete", f"/hosts/{host}/networks/inside")
    assert (status, answer["code"]) == (409, "in_use")
    assert asked(client, "delete", f"/hosts/{host}/networks/inside?force=true")[0] == 202
    other = "host1" if host == "host2" else "host2"
    assert asked(client, "delete", f"/hosts/{other}/networks/inside")[0] == 202


def test_a_filter_is_defined_changed_told_and_removed(client: FlaskClient) -> None:
    rule = {"action": "accept", "direction": "in", "protocol": "tcp", "match": {"dstportstart": 443}}
    more = {"filter": "clean-traffic", "parameters": {"IP": ["10.0.0.1"]}}
    status, answer = asked(client, "put", "/hosts/host1/nwfilters/web", {"rules": [rule, more]})
    assert status == 202, answer
    given = variables(answer["job"]["id"])["virtfleet_nwfilter"]
    assert [each.get("protocol") for each in given["rules"]] == ["tcp", None]
    ended(answer, {"nwfilter": {"name": "web", "rules": []}})
    assert listed(client, "/hosts/host1/nwfilters") == [{"name": "web"}]
    status, answer = asked(client, "put", "/hosts/host1/nwfilters/web", {})
    assert variables(answer["job"]["id"])["virtfleet_nwfilter"] == {"name": "web"}
    status, answer = asked(client, "delete", "/hosts/host1/nwfilters/web")
    ended(answer, {"nwfilter": None})
    assert listed(client, "/hosts/host1/nwfilters") == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("9x", {"rules": []}),
        ("web", {"rules": [{"action": "drop"}]}),
        ("web", {"rules": [{"action": "drop", "direction": "in", "protocol": "nonsense"}]}),
        ("web", {"rules": [{"action": "drop", "direction": "in", "match": {"dstportstart": 1}}]}),
        ("web", {"rules": [{"filter": "clean-traffic", "action": "drop"}]}),
        ("web", {"priority": 1001}),
    ],
)
def test_a_filter_that_cannot_be_is_refused_at_once(client: FlaskClient, name: str, body: dict[str, Any]) -> None:
    assert asked(client, "put", f"/hosts/host1/nwfilters/{name}", body)[0] == 422


def test_a_filter_guards_a_card_from_when_it_is_asked_for(client: FlaskClient) -> None:
    status, answer = post(client, "/vms", {"name": "web1", "filter": "web"})
    assert status == 202
    assert variables(answer["job"]["id"])["virtfleet_vms"][0]["networks"][0]["filter"] == "web"
    with database.write() as session:
        session.query(Vm).one().state = "running"
        session.query(Job).update({"state": "succeeded"})
    (card,) = listed(client, "/vms/web1/nics")
    assert card["filter"] == "web"
    status, answer = asked(client, "patch", f"/vms/web1/nics/{card['mac']}", {"filter": "none"})
    assert variables(answer["job"]["id"])["virtfleet_nics"] == [{"mac": card["mac"], "filter": "none"}]
    ended_on = client.get(f"{V1}/vms/web1").get_json()["host"]
    with database.write() as session:
        job = session.get_one(Job, answer["job"]["id"])
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        nics = [{"item": {"mac": card["mac"]}}]
        lifecycle.close(session, job, Outcome("succeeded", result={ended_on: {"nics": nics}}))
    (card,) = listed(client, "/vms/web1/nics")
    assert (card["filter"], card["link"]) == ("none", "up")
    status, answer = post(client, "/vms/web1/nics", {"filter": "web"})
    assert (status, answer["nic"]["filter"]) == (202, "web")
    assert variables(answer["job"]["id"])["virtfleet_nics"][0]["filter"] == "web"
    assert asked(client, "patch", f"/vms/web1/nics/{card['mac']}", {})[0] == 422
    assert asked(client, "patch", f"/vms/web1/nics/{card['mac']}", {"filter": "../x"})[0] == 422
    assert post(client, "/vms", {"name": "web2", "filter": "web", "network": "none"})[0] == 422


def everything_written() -> Iterator[str]:
    """Yield what all tables hold, and the files of the fleet's home."""
    with database.read() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(table.select()):
                yield f"{table.name}: {tuple(row)!r}"
        assert inspect(session.get_bind()).get_table_names()
    for file in settings.load().home.rglob("*"):
        if file.is_file():
            yield f"{file}: {file.read_bytes()!r}"


def test_a_secret_is_kept_by_a_job_that_has_only_a_reference_to_its_value(client: FlaskClient) -> None:
    status, answer = post(client, "/hosts/host1/secrets", {**SECRET, "value": VALUE, "private": True})
    assert status == 202
    assert VALUE not in json.dumps(answer)
    given = variables(answer["job"]["id"])["virtfleet_secret"]
    assert given == {**SECRET, "private": True, "value_src": {"$secret": given["value_src"]["$secret"]}}
    assert all(VALUE not in each for each in everything_written())
    replay = client.get(f"{V1}/jobs/{answer['job']['id']}/replay").get_json()
    assert VALUE not in json.dumps(replay["files"])
    assert VALUE in replay["secrets"].values()
    ended(answer, {"secret": {**SECRET, "uuid": UUID, "private": True}})
    assert listed(client, "/hosts/host1/secrets") == [{"uuid": UUID, **SECRET}]
    status, again = post(client, "/hosts/host1/secrets", {**SECRET, "description": "x"})
    ended(again, {"secret": {**SECRET, "uuid": UUID}})
    assert len(listed(client, "/hosts/host1/secrets")) == 1
    status, answer = asked(client, "delete", f"/hosts/host1/secrets/{UUID}")
    assert (status, variables(answer["job"]["id"])["virtfleet_secret"]) == (202, SECRET)
    ended(answer, {"secret": None})
    assert listed(client, "/hosts/host1/secrets") == []
    with database.read() as session:
        assert session.query(Secret).count() == 0
    assert asked(client, "delete", f"/hosts/host1/secrets/{UUID}")[0] == 404


def test_values_go_with_their_host(client: FlaskClient) -> None:
    _status, answer = post(client, "/hosts/host1/secrets", {**SECRET, "value": VALUE})
    ended(answer, None)
    assert client.delete(f"{V1}/hosts/host1").status_code == 204
    with database.read() as session:
        assert session.query(Secret).count() == 0


@pytest.mark.parametrize(
    "body",
    [
        {"usage": "volume", "usage_id": "relative"},
        {"usage": "volume", "usage_id": "/a/../b"},
        {"usage": "ceph", "usage_id": "a/b"},
        {"usage": "ceph", "usage_id": "a\nb"},
        {**SECRET, "value": ""},
        {**SECRET, "uuid": "x"},
        {"usage": "nonsense", "usage_id": "x"},
    ],
)
def test_a_secret_that_cannot_be_is_refused_at_once(client: FlaskClient, body: dict[str, Any]) -> None:
    assert post(client, "/hosts/host1/secrets", body)[0] == 422


def checkpoints_ended(client: FlaskClient, job_id: str, names: list[str]) -> None:
    vm = client.get(f"{V1}/vms/web1").get_json()
    seen = [
        {"name": name, "description": "", "created_at": "2026-01-31T12:00:00Z", "parent": None, "disks": ["vda"]}
        for name in names
    ]
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        item = {"item": {"uuid": vm["uuid"]}, "checkpoints": seen, "snapshots": [], "vm": {"state": "running"}}
        lifecycle.close(session, job, Outcome("succeeded", result={vm["host"]: {"vms": [item]}}))


def test_a_checkpoint_is_made_by_a_job_and_listed_once_it_was_seen(client: FlaskClient, tmp_path: Path) -> None:
    vm_id = running()
    status, answer = post(client, "/vms/web1/checkpoints", {"name": "monday", "description": "for others"})
    assert (status, answer["checkpoint"]) == (202, "monday")
    given = variables(answer["job"]["id"])
    assert (given["virtfleet_checkpoint"], given["virtfleet_state"]) == (
        {"name": "monday", "description": "for others"},
        "present",
    )
    assert listed(client, "/vms/web1/checkpoints") == []
    checkpoints_ended(client, answer["job"]["id"], ["monday"])
    (found,) = listed(client, "/vms/web1/checkpoints")
    assert (found["name"], found["disks"], found["created_at"]) == ("monday", ["vda"], "2026-01-31T12:00:00.000Z")
    assert post(client, "/vms/web1/checkpoints", {"name": "monday"})[0] == 409
    assert post(client, "/vms/web1/checkpoints", {"name": "../x"})[0] == 422
    assert post(client, "/vms/web1/checkpoints")[1]["checkpoint"].startswith("checkpoint-20")
    assert asked(client, "delete", "/vms/web1/checkpoints/other")[0] == 404
    status, answer = asked(client, "delete", "/vms/web1/checkpoints/monday")
    assert variables(answer["job"]["id"])["virtfleet_state"] == "absent"
    checkpoints_ended(client, answer["job"]["id"], [])
    assert listed(client, "/vms/web1/checkpoints") == []
    with database.write() as session:
        session.get_one(Vm, vm_id).state = "stopped"
    assert post(client, "/vms/web1/checkpoints", {"name": "tuesday"})[0] == 409
