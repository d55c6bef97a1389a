"""Volumes and pools through REST on real rows: what may be made, attached and deleted, and by whom."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from virtfleet import clock, database
from virtfleet.ids import new_id
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job, JobLock, Project, User, Vm, Volume
from virtfleet.services import auth, vms, volumes
from virtfleet.services.vms import backups, cloning
from werkzeug.test import TestResponse

from tests.api.application import application
from tests.api.fleet_rows import GIB, add_host, add_vm
from tests.api.test_rest import Caller, problem

ERROR = {"code": "refused", "message": "no", "hint": ""}


@pytest.fixture
def api(two_hosts: None) -> Iterator[Caller]:
    """A fleet of two hosts with a machine that runs on each."""
    add_vm("web1", "host1")
    add_vm("web2", "host2")
    yield Caller(application().test_client(), auth.token_file().read_text().strip())
    assert {each["state"] for each in known()} <= {"ready", "creating", "deleting"}


def known() -> list[dict[str, Any]]:
    with database.read() as session:
        return [{"name": row.name, "state": row.state} for row in session.scalars(select(Volume))]


def told(answer: TestResponse) -> Any:
    """Return what an answer holds."""
    return json.loads(answer.data)


def ended(answer: TestResponse, *, size_bytes: int | None = None, failed: bool = False, started: bool = True) -> str:
    """Let the job of an answer end as its run would have it; return what it was made to run with."""
    assert answer.status_code == 202, told(answer)
    with database.write() as session:
        job = session.get_one(Job, told(answer)["job"]["id"])
        job.state, job.attempt = "running", 1
        job.started_at = clock.now() if started else None
        if job.kind == "vm.disk":
            (disk,) = job.variables["virtfleet_disks"]
            result = {"disks": [{"item": disk, "failed": failed, "disk": {"size_bytes": size_bytes}}]}
        else:
            result = {"volumes": [{"failed": failed, "volume": {"capacity_bytes": size_bytes}}]}
        lifecycle.close(
            session, job, Outcome("failed" if failed else "succeeded", {"host1": result}, ERROR if failed else None)
        )
        return str(job.kind)


def made(api: Caller, name: str = "data", **more: Any) -> dict[str, Any]:
    """Make a volume, and let its job have succeeded."""
    ended(api("POST", "/volumes", {"name": name, "size": "1GiB", "host": "host1", **more}))
    found: dict[str, Any] = told(api("GET", f"/volumes/{name}"))
    return found


def attached(api: Caller, vm: str, volume: str, **more: Any) -> None:
    ended(api("POST", f"/vms/{vm}/disks", {"volume": volume, **more}))


def other_project(*scopes: str) -> str:
    """Return the token of somebody who sees another project."""
    with database.write() as session:
        project = Project(id=new_id("prj"), name="other")
        session.add(project)
        session.flush()
        user = User(id=new_id("usr"), name="somebody", project_id=project.id)
        session.add(user)
        session.flush()
        return auth.issue(session, user, project, "theirs", list(scopes))


def test_a_volume_is_made_on_a_host_and_named_by_its_id(api: Caller) -> None:
    answer = api("POST", "/volumes", {"size": "3GiB", "host": "host1"}, Idempotency_Key="once")
    again = api("POST", "/volumes", {"size": "3GiB", "host": "host1"}, Idempotency_Key="once")
    assert (told(again), again.headers["Idempotent-Replayed"]) == (told(answer), "true")
    volume = told(answer)["volume"]
    assert (volume["state"], volume["host"], volume["pool"], volume["format"]) == (
        "creating",
        "host1",
        "default",
        "qcow2",
    )
    assert volume["id"] == volume["name"] == volume["volume"]
    assert len(volume["serial"]) == 20
    assert "100GiB" in volume["explanation"]["text"]
    with database.read() as session:
        job = session.get_one(Job, told(answer)["job"]["id"])
        wanted = {"name": volume["id"], "pool": "default", "size": "3GiB", "format": "qcow2"}
        assert job.variables == {"virtfleet_volumes": [wanted]}
    (pool,) = [each for each in told(api("GET", "/pools"))["items"] if each["host"] == "host1"]
    assert pool["capacity_bytes"] - pool["free_bytes"] == 3 * GIB + GIB  # and web1's disk
    assert ended(answer, size_bytes=3 * GIB) == "volume.create"
    assert told(api("GET", f"/volumes/{volume['id']}"))["state"] == "ready"
    replay = told(api("GET", f"/jobs/{told(answer)['job']['id']}/replay"))
    assert replay["playbook"].endswith("volume/create.yml")


def test_a_volume_lies_where_the_machine_is_that_is_to_have_it(api: Caller) -> None:
    answer = api("POST", "/volumes", {"name": "data", "size": "1GiB", "vm": "web2"})
    assert (told(answer)["volume"]["host"], told(answer)["volume"]["explanation"]["chosen"]) == ("host2", "host2")
    assert [each["name"] for each in told(api("GET", "/volumes?host=host2"))["items"]] == ["data"]
    assert told(api("GET", "/volumes?host=host1"))["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid"),
        ({"size": "1GiB"}, 422, "invalid"),
        ({"host": "host1"}, 422, "invalid"),
        ({"size": "1GiB", "host": "host1", "pool": "nowhere"}, 422, "invalid"),
        ({"size": "1GiB", "host": "host1", "pool": "../x"}, 422, "invalid"),
        ({"size": "1GiB", "host": "host1", "name": "a/b"}, 422, "invalid"),
        ({"size": "101GiB", "host": "host1"}, 409, "no_capacity"),
        ({"size": "1GiB", "host": "nowhere"}, 404, "not_found"),
        ({"size": "1GiB", "vm": "nobody"}, 404, "not_found"),
        ({"size": "1GiB", "vm": "web1", "host": "host2"}, 409, "conflict"),
        ({"size": "1GiB", "host": "host1", "shareable": True, "format": "qcow2"}, 422, "invalid"),
        ({"source": "nothing"}, 404, "not_found"),
    ],
)
def test_a_volume_that_cannot_be_is_refused(api: Caller, body: dict[str, Any], status: int, code: str) -> None:
    problem(api("POST", "/volumes", body), status, code)
    assert known() == []


def test_a_volume_is_attached_moves_to_another_machine_and_keeps_its_data(api: Caller) -> None:
    add_vm("web3", "host1")
    volume = made(api)
    answer = api("POST", "/vms/web1/disks", {"volume": "data"})
    assert told(answer)["disk"]["volume_id"] == volume["id"]
    assert (told(answer)["disk"]["serial"], told(answer)["disk"]["size"]) == (volume["serial"], "1GiB")
    # Reserved from the moment it is asked for.
    problem(api("DELETE", "/volumes/data"), 409, "in_use")
    ended(answer, size_bytes=GIB)
    assert told(api("GET", "/volumes/data"))["vms"] == ["web1"]
    assert [each["name"] for each in told(api("GET", "/volumes?vm=web1"))["items"]] == ["data"]
    refused = problem(api("POST", "/vms/web3/disks", {"volume": "data"}), 409, "in_use")
    assert refused["vms"] == ["web1"]
    problem(api("POST", "/vms/web1/disks", {"volume": "data"}), 409, "already_exists")
    assert problem(api("DELETE", "/volumes/data"), 409, "in_use")["vms"] == ["web1"]
    problem(api("POST", "/volumes/data/wipe"), 409, "in_use")
    # A run that failed leaves it where it is.
    ended(api("DELETE", f"/vms/web1/disks/{volume['serial']}"), failed=True)
    assert told(api("GET", "/volumes/data"))["vms"] == ["web1"]
    ended(api("DELETE", f"/vms/web1/disks/{volume['serial']}"))
    ended(api("POST", "/vms/web3/disks", {"volume": volume["id"]}), failed=True)
    assert told(api("GET", "/volumes/data"))["vms"] == []
    attached(api, "web3", volume["id"])
    assert told(api("GET", "/volumes/data"))["vms"] == ["web3"]
    # It outlives the machine, whose deletion does not name it.
    with database.write() as session:
        vm = session.scalars(select(Vm).where(Vm.name == "web3")).one()
        job, _more = vms.delete(session, auth.system(session), vm)
        assert volume["id"] not in str(job.variables)
        lifecycle.close(session, job, Outcome("succeeded"))
    assert told(api("GET", "/volumes/data"))["vms"] == []
    assert ended(api("DELETE", "/volumes/data")) == "volume.delete"
    assert known() == []


def test_a_volume_is_not_attached_where_its_pool_is_not(api: Caller) -> None:
    made(api)
    refused = problem(api("POST", "/vms/web2/disks", {"volume": "data"}), 409, "conflict")
    assert "host1" in refused["hint"]
    for body in ({"volume": "data", "pool": "default"}, {"volume": "data", "shareable": True}):
        problem(api("POST", "/vms/web1/disks", body), 422, "invalid")
    raw = {"serial": "x", "volume": told(api("GET", "/volumes/data"))["volume"]}
    problem(api("POST", "/vms/web1/disks", raw), 409, "conflict")
    problem(api("POST", "/vms/web1/disks", {"size": "1GiB"}), 422, "invalid")
    with database.write() as session:
        for host in session.scalars(select(Host)):
            host.info = {**host.info, "pools": [{**pool, "shared": True} for pool in host.info["pools"]]}
    attached(api, "web2", "data")


def test_a_machine_stays_on_its_host_with_a_volume_that_only_that_host_has(api: Caller) -> None:
    made(api)
    attached(api, "web1", "data")
    assert "'data'" in problem(api("POST", "/vms/web1/migrate", {"host": "host2"}), 409, "not_ready")["detail"]
    problem(api("DELETE", "/hosts/host1"), 409, "in_use")


def test_a_shareable_volume_is_raw_and_had_by_several_machines(api: Caller) -> None:
    add_vm("web3", "host1")
    volume = made(api, shareable=True)
    assert volume["format"] == "raw"
    attached(api, "web1", "data")
    attached(api, "web3", "data")
    assert sorted(told(api("GET", "/volumes/data"))["vms"]) == ["web1", "web3"]
    assert told(api("GET", "/vms/web3/disks"))["items"][-1]["shareable"] is True
    problem(api("PATCH", "/volumes/data", {"size": "2GiB"}), 409, "in_use")


def test_a_volume_grows_where_it_is_and_never_shrinks(api: Caller) -> None:
    volume = made(api)
    problem(api("PATCH", "/volumes/data", {"size": "512MiB"}), 422, "invalid")
    problem(api("PATCH", "/volumes/data", {"grow_by": "100GiB"}), 409, "no_capacity")
    problem(api("PATCH", "/volumes/data", {}), 422, "invalid")
    problem(api("PATCH", "/volumes/data", {"size": "2GiB"}, If_Match='"99"'), 412, "changed_meanwhile")
    assert ended(api("PATCH", "/volumes/data", {"size": "2GiB"}), size_bytes=2 * GIB) == "volume.resize"
    assert told(api("GET", "/volumes/data"))["size"] == "2GiB"
    ended(api("PATCH", "/volumes/data", {"size": "3GiB"}), failed=True)
    now = told(api("GET", "/volumes/data"))
    assert (now["size"], now["error"]["code"]) == ("2GiB", "refused")
    attached(api, "web1", "data")
    assert ended(api("PATCH", "/volumes/data", {"grow_by": "1GiB"}), size_bytes=3 * GIB) == "vm.disk"
    assert told(api("GET", "/volumes/data"))["size"] == "3GiB"
    assert ended(api("PATCH", f"/vms/web1/disks/{volume['serial']}", {"size": "4GiB"}), size_bytes=4 * GIB) == "vm.disk"
    assert told(api("GET", "/volumes/data"))["size"] == "4GiB"


def test_a_volume_is_copied_unless_a_machine_may_write_to_it(api: Caller) -> None:
    made(api)
    answer = api("POST", "/volumes", {"name": "copy", "source": "data"})
    assert ended(answer, size_bytes=GIB) == "volume.clone"
    assert told(api("GET", "/volumes/copy"))["size"] == "1GiB"
    problem(api("POST", "/volumes", {"name": "copy", "source": "data"}), 409, "already_exists")
    problem(api("POST", "/volumes", {"name": "small", "source": "data", "size": "512MiB"}), 422, "invalid")
    attached(api, "web1", "data")
    refused = problem(api("POST", "/volumes", {"name": "third", "source": "data"}), 409, "conflict")
    assert refused["vms"] == ["web1"]
    with database.write() as session:
        session.scalars(select(Vm).where(Vm.name == "web1")).one().state = "stopped"
    assert api("POST", "/volumes", {"name": "third", "source": "data"}).status_code == 202


def test_a_copy_for_another_host_is_a_run_there_that_knows_where_its_original_lies(api: Caller) -> None:
    made(api)
    answer = api("POST", "/volumes", {"name": "there", "source": "data", "host": "host2"})
    with database.read() as session:
        job = session.get_one(Job, told(answer)["job"]["id"])
        variables = job.variables
        names = [session.get_one(Host, each).name for each in job.host_ids]
        locks = session.scalars(select(JobLock.resource).where(JobLock.job_id == job.id)).all()
        assert {f"host:{each}" for each in job.host_ids} <= set(locks)
    assert names == ["host2", "host1"]
    assert variables["virtfleet_targets"] == "host2"
    assert (variables["virtfleet_volume"]["host"], variables["virtfleet_volume"]["pool"]) == ("host1", "default")
    assert ended(answer, size_bytes=GIB) == "volume.clone"
    assert told(api("GET", "/volumes/there"))["host"] == "host2"
    by_vm = api("POST", "/volumes", {"name": "by-vm", "source": "data", "vm": "web2"})
    assert told(api("GET", f"/volumes/{told(by_vm)['volume']['id']}"))["host"] == "host2"
    wrong = {"name": "other", "source": "data", "host": "host2", "format": "raw"}
    assert problem(api("POST", "/volumes", wrong), 422, "invalid")["errors"] == [
        {"field": "format", "message": "must be qcow2"}
    ]
    with database.write() as session:
        session.scalars(select(Host).where(Host.name == "host1")).one().state = "down"
    away = api("POST", "/volumes", {"name": "other", "source": "data", "host": "host2"})
    assert "host1" in problem(away, 409, "not_ready")["detail"]


def test_what_could_not_be_made_is_removed_again_and_what_had_not_begun_is_forgotten(api: Caller) -> None:
    ended(api("POST", "/volumes", {"name": "a", "size": "1GiB", "host": "host1"}), failed=True, started=False)
    assert known() == []
    ended(api("POST", "/volumes", {"name": "b", "size": "1GiB", "host": "host1"}), failed=True)
    assert known() == [{"name": "b", "state": "deleting"}]
    problem(api("PATCH", "/volumes/b", {"size": "2GiB"}), 409, "not_ready")
    with database.write() as session:
        job = session.scalars(select(Job).where(Job.kind == "volume.delete")).one()
        lifecycle.close(session, job, Outcome("failed", {}, ERROR))
        job.ended_at = clock.after(-3600)
    assert known() == [{"name": "b", "state": "deleting"}]
    assert volumes.retry_cleanups() == 1
    assert volumes.retry_cleanups() == 0
    made(api, "c")
    ended(api("DELETE", "/volumes/c"), failed=True)
    assert told(api("GET", "/volumes/c"))["state"] == "ready"


def test_a_volume_of_another_project_is_not_seen(api: Caller) -> None:
    volume = made(api)
    token = other_project("volumes:write", "vms:write", "hosts:read")
    theirs = Caller(api._client, token)
    assert told(theirs("GET", "/volumes"))["items"] == []
    for ref in ("data", volume["id"]):
        for method, path, body in (
            ("GET", f"/volumes/{ref}", None),
            ("PATCH", f"/volumes/{ref}", {"size": "2GiB"}),
            ("POST", f"/volumes/{ref}/wipe", None),
            ("DELETE", f"/volumes/{ref}", None),
            ("POST", "/volumes", {"name": "mine", "source": ref}),
        ):
            problem(theirs(method, path, body), 404, "not_found")
    # The same name is another volume there; a machine of ours cannot have theirs.
    ended(theirs("POST", "/volumes", {"name": "data", "size": "1GiB", "host": "host1"}))
    (own,) = told(theirs("GET", "/volumes"))["items"]
    assert own["id"] != volume["id"]
    problem(api("POST", "/vms/web1/disks", {"volume": own["id"]}), 409, "conflict")
    problem(theirs("GET", "/volumes?vm=web1"), 404, "not_found")


def test_a_scope_of_its_own_is_needed(api: Caller) -> None:
    reader = Caller(api._client, other_project("volumes:read"))
    assert reader("GET", "/pools").status_code == reader("GET", "/volumes").status_code == 200
    problem(reader("POST", "/volumes", {"size": "1GiB", "host": "host1"}), 403, "forbidden")


def test_pools_are_listed_by_host_and_zone(api: Caller) -> None:
    add_host(3, zone_name="east")
    assert [each["host"] for each in told(api("GET", "/pools"))["items"]] == ["host1", "host2", "host3"]
    assert [each["host"] for each in told(api("GET", "/pools?zone=east"))["items"]] == ["host3"]
    assert [each["host"] for each in told(api("GET", "/pools?host=host2"))["items"]] == ["host2"]
    first = told(api("GET", "/pools?limit=1"))
    assert [each["host"] for each in told(api("GET", f"/pools?cursor={first['next']}"))["items"]] == ["host2", "host3"]
    problem(api("GET", "/pools?host=nowhere"), 404, "not_found")


def test_a_clone_of_a_machine_has_copies_of_its_volumes_and_shares_what_is_shareable(api: Caller) -> None:
    own, shared = made(api, "own"), made(api, "shared", shareable=True)
    for name in ("own", "shared"):
        attached(api, "web1", name)
    add_vm("copy", "host1")
    with database.write() as session:
        source, copy = (session.scalars(select(Vm).where(Vm.name == name)).one() for name in ("web1", "copy"))
        cloning.settle(session, copy, source, [{"serial": own["serial"], "name": "copy-12345678-x"}])
    disks = told(api("GET", "/vms/copy/disks"))["items"][1:]
    assert [(disk["volume"], disk["volume_id"]) for disk in disks] == [
        ("copy-12345678-x", None),
        (shared["volume"], shared["id"]),
    ]
    assert (told(api("GET", "/volumes/own"))["vms"], len(told(api("GET", "/volumes/shared"))["vms"])) == (["web1"], 2)


def test_a_volume_that_came_back_from_a_backup_is_known_by_its_new_name(api: Caller) -> None:
    volume = made(api)
    attached(api, "web1", "data")
    with database.write() as session:
        vm = session.scalars(select(Vm).where(Vm.name == "web1")).one()
        backups.settle(session, vm, [{"serial": volume["serial"], "source": "/pool/again-1"}])
    assert told(api("GET", "/volumes/data"))["volume"] == "again-1"
