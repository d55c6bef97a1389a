"""Programs inside machines over REST: who may have them run, in which machines, and what is kept of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from virtfleet import database
from virtfleet.app import PREFIX
from virtfleet.jobs import attempts
from virtfleet.models import Job, JobEvent, JobLock, Project, Secret, User, Vm
from virtfleet.services import auth

from tests.api.application import application
from tests.api.fleet_rows import add_host, furnish

SECRET = "a-word-nobody-may-see"


class Fleet:
    """The API with one machine in it."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self.token = auth.token_file().read_text().strip()
        answer = self.post("/vms", {"name": "web1"})
        assert answer[0] == 202, answer
        self.set_state("running")

    def post(self, path: str, body: dict[str, Any], token: str | None = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        response = self._client.post(PREFIX + path, json=body, headers=headers)
        return response.status_code, json.loads(response.data)

    def set_state(self, state: str) -> None:
        with database.write() as session:
            session.query(Vm).one().state = state

    def token_for(self, *scopes: str) -> str:
        with database.write() as session:
            who = auth.system(session)
            user, project = session.get_one(User, who.user_id), session.get_one(Project, who.project_id)
            return auth.issue(session, user, project, "some", list(scopes))


@pytest.fixture
def fleet(fleet_home: Path, tmp_path: Path) -> Iterator[Fleet]:
    auth.first_start()
    add_host(1)
    furnish(tmp_path / "tiny.img")
    yield Fleet(application().test_client())


def test_only_a_token_with_the_scope_itself_may_run_programs(fleet: Fleet) -> None:
    for scopes in (["vms:read"], ["vms:write"], ["vms:write", "jobs:write", "secrets:read"]):
        status, told = fleet.post("/vms/web1/exec", {"argv": ["id"]}, fleet.token_for(*scopes))
        assert (status, told["code"]) == (403, "forbidden")
    assert fleet.post("/vms/web1/exec", {"argv": ["id"]}, fleet.token_for("vms:exec"))[0] == 202
    assert fleet.post("/vms/web1/guest-info", {}, fleet.token_for("vms:read"))[0] == 403
    assert fleet.post("/vms/web1/guest-info", {}, fleet.token_for("vms:write"))[0] == 202


def test_what_a_program_reads_is_a_secret_and_the_rest_is_text(fleet: Fleet) -> None:
    argv = ["sh", "-c", "{{ lookup('pipe', 'touch /tmp/owned') }}"]
    status, told = fleet.post("/vms/web1/exec", {"argv": argv, "stdin": SECRET, "timeout": 100.0, "creates": "/x"})
    assert status == 202
    assert SECRET not in json.dumps(told)
    with database.read() as session:
        job = session.query(Job).filter_by(kind="vm.exec").one()
        assert job.variables["virtfleet_argv"] == argv
        assert job.variables["virtfleet_creates"] == "/x"
        assert job.timeout > 100
        assert job.max_attempts == 1
        assert SECRET not in json.dumps([job.variables, job.context])
        assert attempts.secret_ids(job.variables)
        assert SECRET.encode() not in session.query(Secret).one().ciphertext
        assert not [event for event in session.query(JobEvent) if SECRET in event.text]


def test_programs_of_one_machine_run_beside_each_other_and_deletion_waits_for_them(fleet: Fleet) -> None:
    for _each in range(2):
        assert fleet.post("/vms/web1/exec", {"argv": ["sleep", "1"]})[0] == 202
    with database.read() as session:
        vm = session.query(Vm).one()
        modes = {lock.mode for lock in session.query(JobLock).filter_by(resource=f"vm:{vm.id}")}
        making = session.get_one(Job, vm.job_id)
        assert making.kind == "vm.create"
    assert modes == {"exclusive", "shared"}


@pytest.mark.parametrize("state", ["building", "deleting", "missing", "stopped", "paused", "crashed"])
def test_nothing_runs_in_a_machine_that_does_not_run(fleet: Fleet, state: str) -> None:
    fleet.set_state(state)
    for path, body in (("exec", {"argv": ["id"]}), ("guest-info", {})):
        status, told = fleet.post(f"/vms/web1/{path}", body)
        assert status == 409
        assert state in told["detail"]
        assert told["hint"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"argv": []},
        {"argv": "id"},
        {"argv": ["a\0b"]},
        {"argv": ["id"] * 257},
        {"argv": ["id"], "stdin": "x" * (2**16 + 1)},
        {"argv": ["id"], "timeout": 0.0},
        {"argv": ["id"], "timeout": 1e9},
        {"argv": ["id"], "shell": True},
    ],
    ids=lambda body: repr(body)[:40],
)
def test_what_cannot_be_is_refused(fleet: Fleet, body: dict[str, Any]) -> None:
    status, told = fleet.post("/vms/web1/exec", body)
    assert (status, told["code"]) == (422, "invalid")


def test_what_is_put_inside_is_kept_as_secrets(fleet: Fleet) -> None:
    file = {"path": "/etc/motd", "content": SECRET}
    body: dict[str, Any] = {"file": file, "user": "root", "password": SECRET, "ssh_keys": ["ssh-ed25519 AAAA x"]}
    assert fleet.post("/vms/web1/guest", body, fleet.token_for("vms:write"))[0] == 403
    status, told = fleet.post("/vms/web1/guest", body)
    assert status == 202
    assert SECRET not in json.dumps(told)
    with database.read() as session:
        job = session.query(Job).filter_by(kind="vm.guest").one()
        assert SECRET not in json.dumps(job.variables)
        assert len(attempts.secret_ids(job.variables)) == 2
        assert job.variables["virtfleet_ssh_keys"] == ["ssh-ed25519 AAAA x"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"password": "x"},
        {"ssh_keys": ["x"]},
        {"user": "root", "password": "two\nlines"},
        {"file": {"path": "relative", "content": ""}},
        {"frozen": "yes"},
    ],
    ids=lambda body: repr(body)[:40],
)
def test_what_cannot_be_inside_is_refused(fleet: Fleet, body: dict[str, Any]) -> None:
    status, told = fleet.post("/vms/web1/guest", body)
    assert (status, told["code"]) == (422, "invalid")
