"""Settings, names and libvirt's document over the API, without any host: what a job gets, what its end writes."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update
from virtfleet import database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Job, Token, Vm

from tests.api.test_migrations import client, post, running

__all__ = ["client"]

ERROR = {"code": "refused", "message": "no", "hint": ""}


def patched(client: FlaskClient, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    answer = client.patch("/api/v1/vms/web1", json=body)
    return answer.status_code, dict(answer.get_json())


def variables(job_id: str) -> dict[str, Any]:
    with database.read() as session:
        return dict(session.get_one(Job, job_id).variables)


def ended(job_id: str, *, failed: bool = False) -> None:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        uuid = session.get_one(Vm, next(iter(job.context["vms"].values()))).uuid
        item = {"uuid": uuid, "state": "stopped", "failed": failed, "msg": "no", "error": ERROR}
        outcome = Outcome("failed" if failed else "succeeded", {"host1": {"vms": [item]}}, ERROR if failed else None)
        lifecycle.close(session, job, outcome)


def stopped() -> None:
    vm_id = running()
    with database.write() as session:
        session.execute(update(Vm).where(Vm.id == vm_id).values(state="stopped"))


def test_settings_reach_the_module_as_they_are_and_are_shown_until_they_were_refused(client: FlaskClient) -> None:
    running()
    body = {"boot": ["network", "hd"], "firmware": "uefi", "rng": False, "watchdog": "reset", "hugepages": "2MiB"}
    status, answer = patched(client, body)
    assert status == 202, answer
    assert variables(answer["job"]["id"])["virtfleet_settings"] == body
    assert answer["vm"]["settings"] == body
    ended(answer["job"]["id"], failed=True)
    assert client.get("/api/v1/vms/web1").get_json()["settings"] == {}


@pytest.mark.parametrize(
    "body",
    [
        {"boot": []},
        {"boot": ["floppy"]},
        {"firmware": "coreboot"},
        {"machine": "</type>"},
        {"cpu_model": "a b"},
        {"hugepages": "$(id)"},
        {"rng": "yes"},
        {"name": "../x"},
        {"name": ""},
        {"xml_patch": []},
        {"xml_patch": [{"path": "/etc/passwd", "value": "x"}]},
        {"xml_patch": [{"path": "devices/memballoon", "attribute": "model"}]},
        {"xml_patch": [{"path": "x", "value": "y", "other": "z"}]},
    ],
)
def test_what_cannot_be_is_refused(client: FlaskClient, body: dict[str, Any]) -> None:
    stopped()
    assert patched(client, body)[0] == 422


def test_a_new_name_needs_a_stopped_machine_and_is_nobody_elses(client: FlaskClient) -> None:
    vm_id = running()
    running("web2")
    assert patched(client, {"name": "web3"})[1]["code"] == "conflict"
    assert patched(client, {"name": "web2", "allow_power_cycle": True})[1]["code"] == "already_exists"
    status, answer = patched(client, {"name": "web3", "allow_power_cycle": True})
    assert (status, answer["vm"]["name"]) == (202, "web3")
    given = variables(answer["job"]["id"])
    assert given["virtfleet_vm"]["name"] == "web1"
    assert given["virtfleet_settings"] == {"new_name": "web3", "metadata": {"name": "web3"}}
    ended(answer["job"]["id"])
    assert client.get(f"/api/v1/vms/{vm_id}").get_json()["name"] == "web3"
    assert client.get("/api/v1/vms/web1").status_code == 404


def test_a_machine_that_was_not_renamed_is_called_as_before_unless_the_name_is_taken(client: FlaskClient) -> None:
    stopped()
    vm_id = client.get("/api/v1/vms/web1").get_json()["id"]
    first = patched(client, {"name": "web3"})[1]["job"]["id"]
    ended(first, failed=True)
    assert client.get(f"/api/v1/vms/{vm_id}").get_json()["name"] == "web1"
    second = patched(client, {"name": "web3"})[1]["job"]["id"]
    running("web1")
    ended(second, failed=True)
    assert client.get(f"/api/v1/vms/{vm_id}").get_json()["name"] == "web3"
    with database.read() as session:
        assert session.get_one(Vm, vm_id).libvirt_name == "web1"


def test_only_administrators_change_the_document(client: FlaskClient) -> None:
    stopped()
    steps = [{"path": "devices/memballoon", "attribute": "model", "value": "none"}]
    status, answer = patched(client, {"xml_patch": steps})
    assert status == 202, answer
    assert variables(answer["job"]["id"])["virtfleet_settings"] == {"xml_patch": [{**steps[0], "state": "present"}]}
    ended(answer["job"]["id"])
    with database.write() as session:
        session.execute(update(Token).values(scopes=["vms:write"]))
    assert patched(client, {"xml_patch": steps})[1]["code"] == "forbidden"
    assert patched(client, {"rng": False})[0] == 202


def test_a_reset_is_a_reboot_that_does_not_ask_and_saving_is_a_job_of_its_own(client: FlaskClient) -> None:
    running()
    for action, kind, more in (
        ("reset", "vm.reboot", {"virtfleet_force": True, "virtfleet_grace": 0.0}),
        ("save", "vm.save", {}),
    ):
        status, answer = post(client, "/vms/web1/actions", {"action": action})
        assert (status, answer["job"]["kind"]) == (202, kind)
        given = variables(answer["job"]["id"])
        assert {key: given[key] for key in given if key != "virtfleet_vms"} == more
    assert post(client, "/vms/web1/actions", {"action": "reset", "grace": 5})[0] == 422
