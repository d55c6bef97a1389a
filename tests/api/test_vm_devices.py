"""Disks and cards of machines on real rows: what may be attached, and what is known of it when the job has ended."""

from typing import Any

import pytest
from virtfleet import database
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Address, Job, Vm
from virtfleet.services import auth, vms
from virtfleet.services.auth import Principal
from virtfleet.services.vms import NewVm, disks, nics

from tests.api.fleet_rows import GIB

ERROR = {"code": "task_failed", "message": "no", "hint": ""}


@pytest.fixture(autouse=True)
def machine(two_hosts: None) -> None:
    """A machine that runs on host1."""
    with database.write() as session:
        _job, made = vms.create(session, auth.system(session), NewVm(name="web1", host="host1"))
        made[0].state = "running"


def asked(what: Any, *words: Any, **more: Any) -> str:
    """Ask for something and let its job be running; return the job's id."""
    with database.write() as session:
        answer = what(session, auth.system(session), session.query(Vm).one(), *words, **more)
        job = answer[0] if isinstance(answer, tuple) else answer
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        return str(job.id)


def ended(job_id: str, kind: str, item: dict[str, Any] | None, **more: Any) -> None:
    with database.write() as session:
        results = [] if item is None else [{"item": item, **more}]
        failed = item is None or more.get("failed")
        outcome = Outcome("failed" if failed else "succeeded", {"host1": {kind: results}}, ERROR if failed else None)
        lifecycle.close_or_revise(session, session.get_one(Job, job_id), outcome)


def known() -> list[tuple[Any, ...]]:
    with database.read() as session:
        return [(each["serial"], each["size_bytes"]) for each in disks.of(session.query(Vm).one())][1:]


NEW = disks.NewDisk("data", size_bytes=GIB)


def test_a_disk_is_known_from_when_it_is_asked_for_to_when_it_is_detached() -> None:
    job_id = asked(disks.attach, NEW)
    assert known() == [("data", GIB)]
    with database.read() as session:
        wanted = session.get_one(Job, job_id).variables["virtfleet_disks"][0]
    assert (wanted["size"], wanted["volume"].endswith("-data-data")) == ("1GiB", True)
    ended(job_id, "disks", {"serial": "data"}, disk={"size_bytes": GIB})
    grown = asked(disks.change, "data", size_bytes=None, grow_by_bytes=GIB, io=None)
    assert known() == [("data", 2 * GIB)]
    ended(grown, "disks", {"serial": "data"}, failed=True)
    assert known() == [("data", GIB)]
    refused = asked(disks.detach, "data")
    ended(refused, "disks", {"serial": "data"}, failed=True)
    assert known() == [("data", GIB)]
    ended(asked(disks.detach, "data"), "disks", {"serial": "data"})
    assert known() == []


@pytest.mark.parametrize("item", [None, {"serial": "data"}])
def test_a_disk_that_was_not_attached_is_not_known(item: dict[str, Any] | None) -> None:
    job_id = asked(disks.attach, NEW)
    ended(job_id, "disks", item, failed=True)
    assert known() == []


def test_the_first_disk_grows_as_a_resize_does_and_stays() -> None:
    asked(disks.change, "root", size_bytes=2 * GIB, grow_by_bytes=None, io=None)
    with database.read() as session:
        assert session.query(Vm).one().disk_bytes == 2 * GIB
    for serial, size, code in (("root", GIB, "invalid"), ("nowhere", GIB, "not_found")):
        with pytest.raises(Problem) as refused:
            asked(disks.change, serial, size_bytes=size, grow_by_bytes=None, io=None)
        assert refused.value.code == code
    with pytest.raises(Problem) as refused:
        asked(disks.detach, "root")
    assert refused.value.code == "conflict"


@pytest.mark.parametrize(
    ("disk", "code"),
    [
        (disks.NewDisk("root", size_bytes=GIB), "already_exists"),
        (disks.NewDisk("seed", size_bytes=GIB), "already_exists"),
        (disks.NewDisk("data", size_bytes=1000 * GIB), "no_capacity"),
        (disks.NewDisk("data", size_bytes=GIB, pool="nowhere"), "no_capacity"),
        (disks.NewDisk("data", size_bytes=GIB, pool="../x"), "invalid"),
        (disks.NewDisk("data", volume="../x"), "invalid"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(disk: disks.NewDisk, code: str) -> None:
    with pytest.raises(Problem) as refused:
        asked(disks.attach, disk)
    assert refused.value.code == code
    assert known() == []


def test_people_attach_what_was_made_for_a_machine_of_their_project_and_nothing_else() -> None:
    with database.write() as session:
        vm = session.query(Vm).one()
        person = Principal(vm.owner_id, "somebody", vm.project_id, "default", frozenset({"vms:write"}))
        for volume in ("base-debian", f"web1-{vm.uuid[:8]}-root", "other-12345678-data-x"):
            with pytest.raises(Problem) as refused:
                disks.attach(session, person, vm, disks.NewDisk("data", volume=volume))
            assert refused.value.code == "forbidden", volume
        disks.attach(session, person, vm, disks.NewDisk("data", volume=f"web1-{vm.uuid[:8]}-data-old"))


def cards() -> list[tuple[Any, ...]]:
    with database.read() as session:
        return [(each["network"], each["link"]) for each in nics.of(session.query(Vm).one())]


def test_a_card_has_its_address_from_when_it_is_asked_for_and_gives_it_back() -> None:
    job_id = asked(nics.attach, network=None, address="10.9.0.77")
    with database.read() as session:
        mac = session.query(Address).where(Address.address == "10.9.0.77").one().mac
        assert session.get_one(Job, job_id).variables["virtfleet_nics"] == [{"mac": mac, "bridge": "br0"}]
    ended(job_id, "nics", {"mac": mac})
    cut = asked(nics.change, mac, link="down")
    ended(cut, "nics", {"mac": mac})
    assert cards() == [("guests", "up"), ("guests", "down")]
    ended(asked(nics.detach, mac), "nics", {"mac": mac}, failed=True)
    assert len(cards()) == 2
    ended(asked(nics.detach, mac), "nics", {"mac": mac})
    assert cards() == [("guests", "up")]
    failed = asked(nics.attach, network=None, address="10.9.0.77")
    ended(failed, "nics", None)
    assert cards() == [("guests", "up")]
