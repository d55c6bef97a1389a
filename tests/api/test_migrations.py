"""What the API decides about moving machines, without any host: the room, the refusals, the rows at the end."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from virtfleet import database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job, JobLock, Move, Vm
from virtfleet.services import auth, vms
from virtfleet.services.vms import NewVm

from tests.api.application import application
from tests.api.fleet_rows import GIB, add_host, furnish


@pytest.fixture
def client(fleet_home: Path, tmp_path: Path) -> FlaskClient:
    auth.first_start()
    for number in (1, 2, 3):
        add_host(number)
    furnish(tmp_path / "tiny.img")
    app = application()
    made = app.test_client()
    token = (fleet_home / "admin.token").read_text().strip()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return made


def running(name: str = "web1", **more: Any) -> str:
    """Make a machine's row as if it ran; return its id."""
    with database.write() as session:
        job, made = vms.create(session, auth.system(session), NewVm(name=name, host="host1", **more))
        made[0].state = "running"
        job.state = "succeeded"
        session.query(JobLock).filter(JobLock.job_id == job.id).delete()
        return made[0].id


def post(client: FlaskClient, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    answer = client.post(f"/api/v1{path}", json=body or {})
    return answer.status_code, answer.get_json()


def ended(job_id: str, state: str, items: list[dict[str, Any]]) -> None:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        error = None if state == "succeeded" else {"code": "timeout", "message": "late", "hint": ""}
        lifecycle.close(session, job, Outcome(state, result={"host1": {"vms": items}}, error=error))  # type: ignore[arg-type]


def row(vm_id: str) -> tuple[str, str, str | None]:
    with database.read() as session:
        vm = session.get_one(Vm, vm_id)
        return vm.host.name, vm.state, (vm.error or {}).get("code")


def moves() -> int:
    with database.read() as session:
        return session.query(Move).count()


def item(vm_id: str, to: str, **more: Any) -> dict[str, Any]:
    with database.read() as session:
        return {"item": {"uuid": session.get_one(Vm, vm_id).uuid, "to": to}, **more}


def test_a_migration_reserves_the_target_locks_both_hosts_and_its_end_moves_the_row(client: FlaskClient) -> None:
    vm_id = running()
    status, answer = post(client, "/vms/web1/migrate", {"host": "host2", "bandwidth": "10MiB", "from": "host1"})
    assert (status, answer["host"], answer["from"]) == (202, "host2", "host1")
    assert memory_promised(client) == {"host1": GIB, "host2": GIB, "host3": 0}
    with database.read() as session:
        job = session.get_one(Job, answer["job"]["id"])
        hosts = {session.get_one(Host, each).name for each in job.host_ids}
        locks = {lock.resource.partition(":")[0] for lock in session.query(JobLock).filter(JobLock.job_id == job.id)}
        assert job.variables["virtfleet_bandwidth"] == "10MiB"
        assert job.variables["virtfleet_vms"][0]["to"] == "host2"
    assert (hosts, locks) == ({"host1", "host2"}, {"vm", "host"})
    again = post(client, "/vms/web1/migrate")
    assert (again[0], again[1]["code"]) == (409, "not_ready")
    ended(answer["job"]["id"], "succeeded", [item(vm_id, "host2", vm={"state": "running"}, migration={})])
    assert (row(vm_id), moves()) == (("host2", "running", None), 0)


def memory_promised(client: FlaskClient) -> dict[str, int]:
    hosts = client.get("/api/v1/hosts").get_json()["items"]
    return {host["name"]: host["memory"]["allocated_bytes"] for host in hosts}


def test_what_a_machine_may_come_to_use_is_kept_for_it_on_the_target(client: FlaskClient) -> None:
    running(memory_bytes=2 * GIB, max_memory_bytes=5 * GIB)
    running("other", memory_bytes=GIB, max_memory_bytes=2 * GIB)
    post(client, "/vms/web1/migrate", {"host": "host2"})
    assert memory_promised(client) == {"host1": 7 * GIB, "host2": 5 * GIB, "host3": 0}
    with database.write() as session:
        vms.create(session, auth.system(session), NewVm(name="big", host="host3", memory_bytes=7 * GIB))
    status, told = post(client, "/vms/other/migrate", {"host": "host3"})
    assert (status, told["code"]) == (409, "no_capacity"), "1 GiB would fit, its 2 GiB do not"
    left = post(client, "/hosts/host1/evacuate")[1]
    assert [each["to"] for each in left["moves"]] == ["host2"]
    assert memory_promised(client)["host2"] == 7 * GIB


@pytest.mark.parametrize(
    "more",
    [
        {"on": "source"},
        {"on": "source", "cleaned": True},
        {"error": {"code": "host_unreachable", "message": "host2 does not answer", "hint": ""}},
    ],
)
def test_a_migration_that_failed_and_left_nothing_gives_the_room_back(
    client: FlaskClient, more: dict[str, Any]
) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate", {"host": "host2"})
    ended(answer["job"]["id"], "failed", [item(vm_id, "host2", failed=True, msg="late", **more)])
    assert row(vm_id)[0] == "host1"
    assert row(vm_id)[2] is not None
    assert moves() == 0


def refused(client: FlaskClient, job_id: str, vm_id: str, to: str) -> None:
    """Have the run of a migration end because its target cannot take the machine."""
    verdict = {"ok": False, "reasons": [{"code": "name_taken", "text": f"{to} has another machine of that name"}]}
    error = {"code": "refused", "message": "no", "hint": ""}
    result = item(vm_id, to, failed=True, msg="no", on="source", verdict=verdict, error=error)
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt = "running", job.attempt + 1
        outcome = Outcome("failed", result={"host1": {"vms": [result]}}, error=error)
        lifecycle.close_or_revise(session, job, outcome)


def test_a_target_that_is_refused_is_replaced_by_the_next_best_one(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate")
    first, job_id = answer["host"], answer["job"]["id"]
    second = ({"host2", "host3"} - {first}).pop()
    refused(client, job_id, vm_id, first)
    again = client.get(f"/api/v1/jobs/{job_id}").get_json()
    assert (again["state"], set(again["hosts"])) == ("queued", {"host1", second})
    assert memory_promised(client) == {"host1": GIB, first: 0, second: GIB}
    told = client.get(f"/api/v1/jobs/{job_id}/events").get_json()["items"][-1]
    assert told["kind"] == "retried"
    assert f"{first} has another machine" in told["text"] and second in told["text"]
    ended(job_id, "succeeded", [item(vm_id, second, vm={"state": "running"}, migration={})])
    shown = client.get("/api/v1/vms/web1").get_json()
    assert (shown["host"], moves()) == (second, 0)
    assert f"{first} has another machine" in shown["explanation"]["text"]
    why = {each["host"]: each["reasons"][0]["code"] for each in shown["explanation"]["rejected"]}
    assert why[first] == "name_taken"


def test_when_every_target_is_refused_the_machine_stays_with_the_last_reason(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate")
    job_id = answer["job"]["id"]
    for host in (answer["host"], ({"host2", "host3"} - {answer["host"]}).pop()):
        refused(client, job_id, vm_id, host)
    assert client.get(f"/api/v1/jobs/{job_id}").get_json()["state"] == "failed"
    assert (row(vm_id), moves()) == (("host1", "running", "refused"), 0)


def test_a_target_that_somebody_named_is_not_replaced(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate", {"host": "host2"})
    refused(client, answer["job"]["id"], vm_id, "host2")
    assert client.get(f"/api/v1/jobs/{answer['job']['id']}").get_json()["state"] == "failed"
    assert (row(vm_id), moves()) == (("host1", "running", "refused"), 0)


def test_a_cancelled_migration_that_never_began_gives_the_room_back(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate")
    assert post(client, f"/jobs/{answer['job']['id']}/cancel")[0] in (200, 202)
    assert (row(vm_id)[0], moves()) == ("host1", 0)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"from": "host2"}, 409, "conflict"),
        ({"from": "nowhere"}, 404, "not_found"),
        ({"host": "host1"}, 409, "conflict"),
        ({"host": "nowhere"}, 404, "not_found"),
        ({"bandwidth": "0B"}, 422, "invalid"),
        ({"bandwidth": 5}, 422, "invalid"),
        ({"timeout": 0}, 422, "invalid"),
        ({"max_downtime": -1}, 422, "invalid"),
        ({"unsafe": True}, 422, "invalid"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    client: FlaskClient, body: dict[str, Any], status: int, code: str
) -> None:
    running()
    told = post(client, "/vms/web1/migrate", body)
    assert (told[0], told[1]["code"]) == (status, code)
    assert told[1]["detail"]
    assert moves() == 0


def test_a_wrong_source_is_told_the_true_one(client: FlaskClient) -> None:
    running()
    told = post(client, "/vms/web1/migrate", {"from": "host3"})[1]
    assert told["host"] == "host1"
    assert "'host1'" in told["detail"]


def test_without_room_anywhere_every_host_says_why(client: FlaskClient) -> None:
    running(memory_bytes=6 * GIB)
    for name, host in (("big2", "host2"), ("big3", "host3")):
        with database.write() as session:
            wish = NewVm(name=name, host=host, memory_bytes=6 * GIB)
            vms.create(session, auth.system(session), wish)
    status, told = post(client, "/vms/web1/migrate")
    assert (status, told["code"]) == (409, "no_capacity")
    assert {each["host"] for each in told["hosts"]} == {"host1", "host2", "host3"}
    assert moves() == 0


def test_an_evacuation_is_one_job_and_the_host_takes_no_machines_meanwhile(client: FlaskClient) -> None:
    ids = [running(name) for name in ("a", "b", "c")]
    status, answer = post(client, "/hosts/host1/evacuate")
    assert status == 202
    assert {each["vm"] for each in answer["moves"]} == {"a", "b", "c"}
    assert {each["to"] for each in answer["moves"]} <= {"host2", "host3"}
    assert client.get("/api/v1/hosts/host1").get_json()["maintenance"]
    assert moves() == 3
    done = [item(vm_id, "host2", vm={"state": "running"}, migration={}) for vm_id in ids[:2]]
    failed = item(ids[2], "host2", failed=True, msg="no", on="source", error={"code": "refused"})
    ended(answer["job"]["id"], "failed", [*done, failed])
    assert [row(vm_id)[0] != "host1" for vm_id in ids] == [True, True, False]
    assert row(ids[2])[2] == "refused"
    assert moves() == 0


def test_an_evacuation_names_what_must_stay_and_needs_no_job_when_nothing_can_move(client: FlaskClient) -> None:
    running("a")
    with database.write() as session:
        vms.create(session, auth.system(session), NewVm(name="b", host="host1"))
    for host in ("host2", "host3"):
        client.patch(f"/api/v1/hosts/{host}", json={"maintenance": True})
    status, answer = post(client, "/hosts/host1/evacuate")
    assert (status, answer["job"]) == (200, None)
    told = {each["vm"]: each["text"] for each in answer["left"]}
    assert "building" in told["b"]
    assert "a fits on none" in told["a"]


def test_a_machine_on_its_way_is_acted_upon_on_both_hosts(client: FlaskClient) -> None:
    running()
    post(client, "/vms/web1/migrate", {"host": "host2"})
    _status, answer = post(client, "/vms/web1/actions", {"action": "stop"})
    assert set(answer["job"]["hosts"]) == {"host1", "host2"}


def test_a_preflight_asks_every_host_of_the_zone_and_reserves_nothing(client: FlaskClient) -> None:
    running()
    status, answer = post(client, "/vms/web1/preflight", {"copy_storage": False})
    assert (status, set(answer["job"]["hosts"])) == (202, {"host1", "host2", "host3"})
    assert moves() == 0
