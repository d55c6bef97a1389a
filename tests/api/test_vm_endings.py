"""What becomes of machines when their jobs end, without any host: the decisions, on real rows."""

from typing import Any

import pytest
from virtfleet import clock, database
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Address, ImageCopy, Job, JobLock, Vm
from virtfleet.services import auth, vms
from virtfleet.services.vms import NewVm

pytestmark = pytest.mark.usefixtures("two_hosts")

ERROR = {"code": "task_failed", "message": "no", "hint": ""}


def created(**more: Any) -> str:
    """Reserve a machine and let its job be running; return the job's id."""
    with database.write() as session:
        job, _made = vms.create(session, auth.system(session), NewVm(name="web1", **more))
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        return job.id


def ended(job_id: str, outcome: Outcome) -> Job:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        lifecycle.close_or_revise(session, job, outcome)
        return job


def failing(host: str, **item: Any) -> Outcome:
    made = {"name": "web1", "failed": True, "msg": "Failed to …", "cleaned": True} | item
    return Outcome("failed", result={host: {"vms": [made]}}, error=ERROR, failed=(host,))


def vm() -> Vm | None:
    with database.read() as session:
        found = session.query(Vm).first()
        session.expunge_all()
        return found


def open_jobs() -> list[tuple[str, str]]:
    with database.read() as session:
        return [(job.kind, job.state) for job in session.query(Job).order_by(Job.number)]


def test_a_machine_that_did_not_fit_is_placed_elsewhere_by_the_same_job() -> None:
    job = ended(created(), Outcome("failed", result={"host1": {"vms": [], "unplaced": ["web1"]}}, error=ERROR))
    assert job.state == "queued"
    found = vm()
    assert found is not None
    assert (found.state, found.host.name, found.explanation["chosen"]) == ("building", "host2", "host2")
    assert job.host_ids == [found.host_id]
    assert job.variables["virtfleet_vms"][0]["host"] == "host2"
    with database.read() as session:
        locks = {lock.resource for lock in session.query(JobLock).where(JobLock.job_id == job.id)}
    assert locks == {f"vm:{found.id}", f"host:{found.host_id}"}


def test_one_that_must_be_on_a_host_is_not_and_its_row_goes() -> None:
    job = ended(created(host="host1"), Outcome("failed", result={"host1": {"unplaced": ["web1"]}}, error=ERROR))
    assert (job.state, (job.error or {})["code"]) == ("failed", "no_capacity")
    assert vm() is None
    with database.read() as session:
        assert session.query(Address).count() == 0


def test_a_base_that_vanished_is_copied_again_by_the_same_job() -> None:
    job_id = created()
    with database.write() as session:
        for copy in session.query(ImageCopy):
            copy.job_id, copy.ready_at = None, clock.now()
    job = ended(job_id, failing("host1", error={"code": "image_missing"}))
    assert job.state == "queued"
    assert open_jobs()[-1] == ("image.import", "queued")


def test_what_cleaned_up_after_itself_is_forgotten() -> None:
    job = ended(created(), failing("host1", error={"code": "pool_full"}))
    assert job.state == "failed"
    assert vm() is None


def test_what_may_have_left_something_is_cleaned_up_by_a_job() -> None:
    ended(created(), failing("host1", cleaned=False))
    found = vm()
    assert found is not None
    assert found.state == "deleting"
    assert open_jobs()[-1] == ("vm.delete", "queued")


def test_a_run_that_told_nothing_is_cleaned_up_by_a_job_too() -> None:
    ended(created(), Outcome("failed", error=ERROR))
    assert open_jobs()[-1] == ("vm.delete", "queued")


def test_of_several_machines_the_made_ones_stay_unless_it_was_all_or_nothing() -> None:
    made = {"name": "web1-1", "state": "running", "addresses": ["10.9.0.2"]}
    broken = {"name": "web1-2", "failed": True, "cleaned": True, "msg": "no", "error": {"code": "pool_full"}}
    outcome = Outcome("failed", result={"host1": {"vms": [made, broken]}}, error=ERROR)
    ended(created(count=2), outcome)
    with database.read() as session:
        assert [(row.name, row.state) for row in session.query(Vm)] == [("web1-1", "running")]
    with database.write() as session:
        session.query(Address).delete()
        session.query(Vm).delete()
    ended(created(count=2, all_or_nothing=True), outcome)
    with database.read() as session:
        assert [(row.name, row.state) for row in session.query(Vm)] == [("web1-1", "deleting")]


def test_a_cancelled_run_is_undone() -> None:
    made = {"name": "web1", "state": "running"}
    ended(created(), Outcome("cancelled", result={"host1": {"vms": [made]}}, error=ERROR))
    assert open_jobs()[-1] == ("vm.delete", "queued")
