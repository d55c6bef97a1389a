"""What becomes of images that are to be removed, without any host: the decisions, on real rows."""

import pytest
from virtfleet import clock, database
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Image, ImageCopy, Job, JobLock, Vm
from virtfleet.services import auth, image_removal, vms
from virtfleet.services.images import Facts, NewImage, register
from virtfleet.services.vms import NewVm

pytestmark = pytest.mark.usefixtures("two_hosts")

ERROR = {"code": "host_unreachable", "message": "Failed to …", "hint": ""}


def copied(*hosts: str) -> None:
    """Let the image be on these hosts."""
    with database.write() as session:
        image = session.query(Image).one()
        for host in session.query(Host).where(Host.name.in_(hosts)):
            row = {"id": new_id("cpy"), "image_id": image.id, "place": host.id, "pool": "default"}
            session.add(ImageCopy(**row, ready_at=clock.now()))


def remove() -> Job | None:
    with database.write() as session:
        image = session.query(Image).where(Image.name == "tiny").one()
        job = image_removal.remove(session, auth.system(session), image)
        session.flush()
        session.expunge_all()
        return job


def ended(job: Job | None, outcome: Outcome) -> None:
    assert job is not None
    with database.write() as session:
        row = session.get_one(Job, job.id)
        row.state, row.attempt, row.started_at = "running", 1, row.created_at
        lifecycle.close_or_revise(session, row, outcome)


def images() -> dict[str, list[str]]:
    """Return image → the hosts that have a copy that can be used."""
    with database.read() as session:
        names = {host.id: host.name for host in session.query(Host)}
        copies = session.query(ImageCopy).where(ImageCopy.ready_at.is_not(None))
        return {
            image.name: sorted(names.get(copy.place, copy.place) for copy in copies if copy.image_id == image.id)
            for image in session.query(Image)
        }


def create() -> Job:
    with database.write() as session:
        job, _made = vms.create(session, auth.system(session), NewVm(name="web1"))
        return job


def gone(*hosts: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    return {host: {"removed": [{"name": "base-0", "pool": "default"}], "kept": []} for host in hosts}


def test_an_image_that_no_pool_has_is_gone_at_once() -> None:
    assert remove() is None
    assert images() == {}


def test_the_image_goes_with_its_last_base() -> None:
    copied("host1", "host2")
    job = remove()
    assert job is not None
    assert job.variables["virtfleet_images"] == [
        {"name": "base-" + "0" * 24, "pool": "default", "hosts": ["host1", "host2"]}
    ]
    assert images() == {"tiny": []}
    ended(job, Outcome("failed", result=gone("host1"), error=ERROR))
    assert images() == {"tiny": ["host2"]}
    ended(remove(), Outcome("succeeded", result=gone("host2")))
    assert images() == {}


def test_a_removal_that_was_cancelled_leaves_all_as_it_was() -> None:
    copied("host1")
    ended(remove(), Outcome("cancelled", error=ERROR))
    assert images() == {"tiny": ["host1"]}
    assert create().kind == "vm.create"


def test_meanwhile_nobody_gets_a_machine_of_it_and_asking_again_is_the_same_job() -> None:
    copied("host1")
    first, second = remove(), remove()
    assert first is not None
    assert second is not None
    assert first.id == second.id
    with pytest.raises(Problem) as refused:
        create()
    assert refused.value.code == "not_ready"
    with database.write() as session, pytest.raises(Problem) as named:
        vms.create(session, auth.system(session), NewVm(name="web1", image="tiny"))
    assert first.id in named.value.hint


def test_machines_of_it_are_named_whatever_their_state() -> None:
    create()
    with database.write() as session:
        session.query(Vm).one().state = "deleting"
    with pytest.raises(Problem) as refused:
        remove()
    assert (refused.value.code, refused.value.extra["vms"]) == ("in_use", ["web1"])


def test_an_image_that_is_being_copied_stays() -> None:
    job = create()
    with database.write() as session:
        session.query(Vm).one().image_id = None
        session.get_one(Job, job.id).state = "cancelled"
    with pytest.raises(Problem, match="being copied"):
        remove()


def test_a_copy_on_a_host_that_was_removed_from_the_fleet_is_forgotten_with_the_image() -> None:
    copied("host1")
    with database.write() as session:
        session.delete(session.query(Host).where(Host.name == "host1").one())
    assert remove() is None
    assert images() == {}


def test_a_base_in_a_shared_pool_is_removed_by_one_host_that_answers() -> None:
    with database.write() as session:
        image = session.query(Image).one()
        hosts = session.query(Host).order_by(Host.number).all()
        for host in hosts:
            host.info = {**host.info, "pools": [{"name": "nfs", "shared": True}]}
        hosts[0].state = "down"
        row = {"id": new_id("cpy"), "image_id": image.id, "place": hosts[0].zone_id, "pool": "nfs"}
        session.add(ImageCopy(**row, ready_at=clock.now()))
    job = remove()
    assert job is not None
    assert job.variables["virtfleet_images"][0]["hosts"] == ["host2"]


def test_a_removal_and_a_copy_of_an_equal_image_come_one_after_the_other() -> None:
    copied("host1")
    job = remove()
    assert job is not None
    with database.write() as session:
        who = auth.system(session)
        facts = Facts("sha256:" + "0" * 64, "raw", 512, 512)
        register(session, who, NewImage("/x.img", "equal"), facts)
        vms.create(session, who, NewVm(name="web1", image="equal", host="host1"))
    with database.read() as session:
        locks = session.query(JobLock).where(JobLock.resource.startswith("base:")).all()
        kinds = {session.get_one(Job, lock.job_id).kind for lock in locks}
        assert (kinds, len({lock.resource for lock in locks})) == ({"image.remove", "image.import"}, 1)
