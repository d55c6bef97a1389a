"""What a machine is changed to is reserved at once, and given back when its job does not do it. On real rows."""

from typing import Any

import pytest
from virtfleet import database, settings
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Job, Vm
from virtfleet.services import auth, capacity, vms
from virtfleet.services.vms import NewVm, Resize

from tests.api.fleet_rows import GIB

pytestmark = pytest.mark.usefixtures("two_hosts")

ERROR = {"code": "task_failed", "message": "no", "hint": ""}


def create(**more: Any) -> None:
    with database.write() as session:
        _job, made = vms.create(session, auth.system(session), NewVm(name="web1", host="host1", **more))
        made[0].state = "running"


def resize(**more: Any) -> str:
    """Ask for a change and let its job be running; return the job's id."""
    with database.write() as session:
        vm = session.query(Vm).one()
        job = vms.resize(session, auth.system(session), vm, Resize(**more))
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        return job.id


def ended(job_id: str, state: str, **item: Any) -> None:
    with database.write() as session:
        job, vm = session.get_one(Job, job_id), session.query(Vm).one()
        disk = item.pop("disk", None)
        shown = {"name": vm.libvirt_name, "uuid": vm.uuid, "state": "running", **item}
        result = {"host1": {"vms": [shown], "disk": disk or {}}}
        error = None if state == "succeeded" else ERROR
        lifecycle.close_or_revise(session, job, Outcome(state, result=result, error=error))  # type: ignore[arg-type]


def row() -> dict[str, Any]:
    with database.read() as session:
        vm = session.query(Vm).one()
        names = ("vcpus", "max_vcpus", "memory_bytes", "max_memory_bytes", "disk_bytes", "generation", "error")
        return {**{name: getattr(vm, name) for name in names}, "spec": vm.spec}


def promised() -> int:
    with database.read() as session:
        host = next(host for host in capacity.state(session)["hosts"] if host["name"] == "host1")
        return int(host["memory"]["allocated_bytes"])


def test_what_is_asked_for_is_reserved_at_once_and_told_to_the_module() -> None:
    create()
    job_id = resize(vcpus=2, memory_bytes=2 * GIB, disk_bytes=3 * GIB, autostart=True, io={"iops": 100})
    assert (row()["vcpus"], row()["memory_bytes"], row()["disk_bytes"]) == (2, 2 * GIB, 3 * GIB)
    assert promised() == 2 * GIB
    with database.read() as session:
        variables = session.get_one(Job, job_id).variables
    assert variables["virtfleet_settings"] == {
        **{"vcpus": 2, "max_vcpus": 2, "memory": "2GiB", "max_memory": "2GiB"},
        **{"autostart": True, "io": {"iops": 100}},
    }
    assert variables["virtfleet_disk"] == {"serial": "root", "size": "3GiB"}
    assert variables["virtfleet_allow_power_cycle"] is False
    ended(job_id, "succeeded", disk={"changed": True})
    assert (row()["vcpus"], row()["memory_bytes"], row()["error"]) == (2, 2 * GIB, None)
    assert row()["spec"]["io"] == {"iops": 100}
    assert row()["spec"]["disks"][0]["size"] == "3GiB"


def test_the_most_it_can_have_is_what_is_promised() -> None:
    create(max_vcpus=4, max_memory_bytes=4 * GIB)
    assert promised() == 4 * GIB
    resize(memory_bytes=3 * GIB, vcpus=4)
    assert promised() == 4 * GIB
    resize(memory_bytes=5 * GIB)
    assert row()["max_memory_bytes"] == 5 * GIB
    resize(max_memory_bytes=GIB)
    assert (row()["memory_bytes"], promised()) == (GIB, GIB)


def test_what_does_not_fit_is_refused_with_the_hosts_reasons_and_changes_nothing() -> None:
    create()
    before = row()
    with pytest.raises(Problem) as refused:
        resize(memory_bytes=9 * GIB)
    assert (refused.value.status, refused.value.code) == (409, "no_capacity")
    reasons = {each["host"]: each["reasons"] for each in refused.value.extra["hosts"]}
    assert any("memory" in reason for reason in reasons["host1"]), reasons
    assert row() == before
    with pytest.raises(Problem) as refused:
        resize(disk_bytes=200 * GIB)
    assert refused.value.code == "no_capacity"


def test_a_machine_in_maintenance_grows_where_it_is_and_shrinks_even_where_it_does_not_fit() -> None:
    create()
    with database.write() as session:
        vm = session.query(Vm).one()
        vm.host.maintenance = True
    resize(memory_bytes=2 * GIB)
    with database.write() as session:
        vm = session.query(Vm).one()
        vm.host.reserved_memory_bytes = 100 * GIB
    resize(memory_bytes=GIB)
    assert row()["memory_bytes"] == GIB


def test_a_disk_never_shrinks() -> None:
    create()
    with pytest.raises(Problem) as refused:
        resize(disk_bytes=GIB // 2)
    assert (refused.value.status, "never shrinks" in refused.value.detail) == (422, True)


def test_a_disk_grows_at_once_by_no_more_than_the_fleet_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    create()
    monkeypatch.setenv("VIRTFLEET_DISK_GROWTH_LIMIT", "10GiB")
    settings.load.cache_clear()
    for more in ({"disk_bytes": 12 * GIB}, {"grow_disk_by_bytes": 11 * GIB}):
        with pytest.raises(Problem) as refused:
            resize(**more)
        assert (refused.value.status, "10GiB is the most" in refused.value.detail) == (422, True)
    resize(grow_disk_by_bytes=10 * GIB)
    assert row()["disk_bytes"] == 11 * GIB
    monkeypatch.setenv("VIRTFLEET_DISK_GROWTH_LIMIT", "10")
    settings.load.cache_clear()
    with pytest.raises(settings.SettingsError, match="with a unit"):
        settings.load()


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_a_job_did_not_do_is_given_back(state: str) -> None:
    create()
    before = row()
    job_id = resize(vcpus=2, memory_bytes=2 * GIB, disk_bytes=3 * GIB, autostart=True)
    ended(job_id, state, failed=True, msg="Failed to …", error=ERROR)
    after = row()
    for name in ("vcpus", "max_vcpus", "memory_bytes", "max_memory_bytes", "disk_bytes", "spec"):
        assert after[name] == before[name], name
    assert after["error"]["message"] == "Failed to …"
    assert promised() == GIB


def test_of_a_job_that_did_half_of_it_only_the_rest_is_given_back() -> None:
    create()
    job_id = resize(vcpus=2, disk_bytes=3 * GIB)
    ended(job_id, "failed", vcpus=2)
    assert (row()["vcpus"], row()["disk_bytes"]) == (2, GIB)
    assert row()["spec"]["disks"][0]["size"] == "1GiB"


def test_what_somebody_changed_meanwhile_is_not_undone() -> None:
    create()
    first = resize(vcpus=2)
    resize(vcpus=3)
    ended(first, "failed", failed=True, msg="no", error=ERROR)
    assert row()["vcpus"] == 3


def test_a_machine_that_is_not_there_is_not_changed() -> None:
    create()
    with database.write() as session:
        session.query(Vm).one().state = "building"
    with pytest.raises(Problem) as refused:
        resize(vcpus=2)
    assert refused.value.code == "not_ready"
