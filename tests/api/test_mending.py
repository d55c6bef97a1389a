"""What becomes of machines whose migration was broken off: kept for the job that clears up, then free, the row true."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from virtfleet import clock, database
from virtfleet.jobs import claim, lifecycle
from virtfleet.jobs.kinds import Outcome, failure
from virtfleet.models import Host, Job, JobDependency, Vm

from tests.api.test_migrations import client, ended, item, moves, post, row, running

__all__ = ["client"]
UNREACHABLE = {"code": "host_unreachable", "message": "host2 does not answer", "hint": ""}


def broken_off(client: FlaskClient, state: str = "cancelled", **more: Any) -> tuple[str, str]:
    """Have a migration to host2 end in doubt; return the machine's id and its job's."""
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate", {"host": "host2"})
    job_id = answer["job"]["id"]
    ended(job_id, state, [item(vm_id, "host2", failed=True, msg="cut", **more)] if more else [])
    return vm_id, job_id


def mending(vm_id: str) -> Job | None:
    """Return the unfinished job that clears up after a machine's migration."""
    with database.read() as session:
        jobs = session.query(Job).filter(Job.kind == "vm.mend", Job.state == "queued").all()
        found = next((job for job in jobs if vm_id in job.context["vms"].values()), None)
        session.expunge_all()
        return found


def begun(job_id: str | None) -> Job | None:
    """Have a worker take the job, its rest over; None when it may not run."""
    with database.write() as session:
        if job_id is not None:
            session.get_one(Job, job_id).not_before = None
        return claim.claim(session, job_id, "worker", 60)


def tried(job_id: str, *items: dict[str, Any], error: dict[str, str] | None = None) -> None:
    """Have a worker run the job, and its run end so: well, or with an error."""
    assert begun(job_id) is not None
    with database.write() as session:
        job = session.get_one(Job, job_id)
        outcome = Outcome("failed" if error else "succeeded", result={"host1": {"vms": list(items)}}, error=error)
        lifecycle.close_or_revise(session, job, outcome)


def job(job_id: str) -> Job:
    with database.read() as session:
        found = session.get_one(Job, job_id)
        session.expunge(found)
        return found


@pytest.mark.parametrize("on", ["source", "target"])
def test_a_machine_whose_migration_was_cancelled_is_kept_until_a_job_has_seen_where_it_is(
    client: FlaskClient, on: str
) -> None:
    vm_id, job_id = broken_off(client)
    mend = mending(vm_id)
    assert mend is not None
    assert job(job_id).state == "cancelled"
    assert mend.variables["virtfleet_vms"][0].items() >= {"from": "host1", "to": "host2"}.items()
    shown = client.get("/api/v1/vms/web1").get_json()
    assert (shown["job"], shown["error"]["code"], shown["host"]) == (mend.id, "mending", "host1")
    assert mend.id in shown["error"]["message"]
    again = post(client, "/vms/web1/migrate")
    assert (again[0], again[1]["code"]) == (409, "not_ready")
    assert mend.id in again[1]["detail"]
    stop = post(client, "/vms/web1/actions", {"action": "stop"})[1]["job"]
    assert begun(stop["id"]) is None, "it waits"
    tried(mend.id, item(vm_id, "host2", on=on, vm={"state": "running"}, mended=["…"]))
    assert job(mend.id).state == "succeeded"
    assert (row(vm_id), moves()) == (("host1" if on == "source" else "host2", "running", None), 0)
    assert begun(stop["id"]) is not None


@pytest.mark.parametrize(
    ("state", "more"),
    [
        ("failed", {}),
        ("failed", {"on": "unknown"}),
        ("failed", {"on": "target"}),
        ("failed", {"on": "source", "cleaned": False}),
        ("cancelled", {"on": "source", "cleaned": False}),
    ],
)
def test_a_run_that_was_killed_or_could_not_clear_up_is_mended_and_its_error_stays(
    client: FlaskClient, state: str, more: dict[str, Any]
) -> None:
    vm_id, _job_id = broken_off(client, state, **more)
    mend = mending(vm_id)
    assert mend is not None
    tried(mend.id, item(vm_id, "host2", on="source", vm={"state": "running"}))
    assert row(vm_id)[:2] == ("host1", "running")
    assert (row(vm_id)[2] is None) == (state == "cancelled")


def test_a_job_that_waited_for_the_machine_already_lets_the_mending_go_first(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate", {"host": "host2"})
    deletion = client.delete("/api/v1/vms/web1").get_json()["job"]
    ended(answer["job"]["id"], "cancelled", [])
    mend = mending(vm_id)
    assert mend is not None
    assert begun(deletion["id"]) is None
    with database.read() as session:
        assert session.get(JobDependency, (deletion["id"], mend.id)) is not None
    tried(mend.id, item(vm_id, "host2", on="target", vm={"state": "running"}))
    assert row(vm_id)[:2] == ("host2", "deleting"), "it goes on being deleted"
    assert begun(deletion["id"]) is not None
    assert set(deletion["hosts"]) == {"host1", "host2"}


def test_a_source_that_does_not_answer_keeps_the_machine_until_it_does(client: FlaskClient) -> None:
    vm_id, _job_id = broken_off(client)
    mend = mending(vm_id)
    assert mend is not None
    stop = post(client, "/vms/web1/actions", {"action": "stop"})[1]["job"]
    for _try in range(3):
        tried(mend.id, item(vm_id, "host2", failed=True, msg="host1 is silent", on="unknown"), error=UNREACHABLE)
        again = job(mend.id)
        assert again.state == "queued"
        assert again.not_before is not None and again.not_before > clock.now()
        assert begun(stop["id"]) is None
    with database.read() as session:
        told = session.get_one(Vm, vm_id).error
    assert told is not None
    assert told["message"].count("host1 is silent") == 1
    assert moves() == 1
    tried(mend.id, item(vm_id, "host2", on="target", vm={"state": "running"}))
    assert (row(vm_id), moves()) == (("host2", "running", None), 0)


def test_a_target_that_does_not_answer_keeps_no_machine_that_is_certainly_on_the_source(client: FlaskClient) -> None:
    vm_id, _job_id = broken_off(client)
    mend = mending(vm_id)
    assert mend is not None
    stop = post(client, "/vms/web1/actions", {"action": "stop"})[1]["job"]
    silent = item(vm_id, "host2", failed=True, msg="host2 is silent", on="source", cleaned=False)
    tried(mend.id, silent, error=UNREACHABLE)
    assert (row(vm_id), moves()) == (("host1", "running", None), 0)
    assert job(mend.id).state == "queued", "what is left on the target is removed when it is back"
    assert begun(stop["id"]) is not None
    assert begun(mend.id) is None, "one at a time"
    with database.write() as session:
        lifecycle.close(session, session.get_one(Job, stop["id"]), Outcome("succeeded"))
        host3 = session.query(Host).filter(Host.name == "host3").one()
        session.get_one(Vm, vm_id).host_id = host3.id  # moved on meanwhile
    tried(mend.id, silent, error=UNREACHABLE)
    assert job(mend.id).variables["virtfleet_vms"][0]["from"] == "host3"
    tried(mend.id, item(vm_id, "host2", on="source", vm={"state": "running"}))
    assert job(mend.id).state == "succeeded"
    assert row(vm_id)[:2] == ("host3", "running")


def test_who_gives_the_mending_up_has_the_machine_as_its_row_says(client: FlaskClient) -> None:
    vm_id, _job_id = broken_off(client)
    mend = mending(vm_id)
    assert mend is not None
    assert post(client, f"/jobs/{mend.id}/cancel")[0] in (200, 202)
    assert (row(vm_id), moves()) == (("host1", "running", "cancelled"), 0)
    assert mending(vm_id) is None
    assert post(client, "/vms/web1/migrate", {"host": "host2"})[0] == 202


def test_a_machine_that_neither_host_has_is_not_looked_for_for_ever(client: FlaskClient) -> None:
    vm_id, _job_id = broken_off(client)
    mend = mending(vm_id)
    assert mend is not None
    gone = item(vm_id, "host2", failed=True, msg="neither host has it", on="nowhere", error={"code": "not_found"})
    tried(mend.id, gone, error={"code": "not_found", "message": "neither host has it", "hint": ""})
    assert job(mend.id).state == "failed"
    assert (row(vm_id), moves()) == (("host1", "running", "not_found"), 0)


def test_an_evacuation_that_was_cancelled_is_mended_machine_by_machine(client: FlaskClient) -> None:
    ids = [running(name) for name in ("a", "b")]
    _status, answer = post(client, "/hosts/host1/evacuate")
    ended(answer["job"]["id"], "cancelled", [item(ids[0], "host2", vm={"state": "running"}, migration={})])
    assert mending(ids[0]) is None
    assert mending(ids[1]) is not None
    assert moves() == 1


def test_one_whose_worker_was_lost_for_good_is_mended(client: FlaskClient) -> None:
    vm_id = running()
    _status, answer = post(client, "/vms/web1/migrate", {"host": "host2"})
    with database.write() as session:
        lost = session.get_one(Job, answer["job"]["id"])
        lost.state, lost.attempt = "running", 3
        lifecycle.close(session, lost, failure("worker_lost", "The worker was lost."))
    assert mending(vm_id) is not None
