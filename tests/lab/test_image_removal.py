"""Deleting an image takes its base volumes from the hosts' pools, and never one that a disk lies over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_storage_modules import call, remove_volumes, run_playbook, volumes_of

pytestmark = pytest.mark.lab


@pytest.fixture
def second(fleet: Fleet, tmp_path: Path) -> Iterator[str]:
    """The base volume's name of a second image, `second`, which exists as a copy on host1 and host2 only."""
    path = tmp_path / "second.qcow2"
    path.write_bytes(Path(fleet.lab.status()["image"]).read_bytes() + b"\0")
    image = fleet.post("/images", {"source": str(path), "name": "second"})
    base = f"base-{image['checksum'].removeprefix('sha256:')[:24]}"
    for host in ("host1", "host2"):
        vm = fleet.create(f"of-{host}", host=host, image="second", wait_for="none", start=False)
        fleet.ended(fleet.http.delete(f"/vms/{vm['id']}").json()["job"])
    yield base
    for each in fleet.lab.hosts():
        fleet.lab.undo(each.name)
        remove_volumes(each.uri, "default", base)
        remove_volumes(each.uri, "default", "by-hand")


def bases(fleet: Fleet, base: str) -> set[str]:
    """Return where there is anything of a base."""
    return {
        f"{host.name}/{name}"
        for host in fleet.lab.hosts()
        for name in volumes_of(host.uri, "default")
        if name.startswith(base)
    }


def removed(fleet: Fleet) -> dict[str, Any]:
    answer = fleet.http.delete("/images/second")
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"].endswith(answer.json()["job"]["id"])
    return fleet.ended(answer.json()["job"])


def test_with_the_image_its_base_volumes_go_and_never_before_the_machines(fleet: Fleet, second: str) -> None:
    assert {each.partition("/")[0] for each in bases(fleet, second)} == {"host1", "host2"}
    for name in ("web1", "web2"):
        fleet.create(name, host="host1", image="second", wait_for="none", start=False)
    told = fleet.http.delete("/images/second")
    assert (told.status_code, told.json()["code"], told.json()["vms"]) == (409, "in_use", ["web1", "web2"])
    assert "web1, web2" in told.json()["detail"]
    fleet.delete_all()
    job = removed(fleet)
    assert (job["state"], set(job["hosts"])) == ("succeeded", {"host1", "host2"})
    assert fleet.http.get("/images/second").status_code == 404
    assert bases(fleet, second) == set()


def test_a_base_that_an_equal_image_needs_stays(fleet: Fleet, second: str) -> None:
    source = fleet.get("/images/second")["source"]
    fleet.post("/images", {"source": source, "name": "equal"})
    fleet.create("web1", host="host1", image="equal", wait_for="none", start=False)
    assert removed(fleet)["hosts"] == ["host2"]
    assert {each.partition("/")[0] for each in bases(fleet, second)} == {"host1"}
    fleet.delete_all()
    assert fleet.ended(fleet.http.delete("/images/equal").json()["job"])["state"] == "succeeded"
    assert bases(fleet, second) == set()


def test_what_somebody_laid_over_it_by_hand_is_named_and_the_image_can_still_be_used(fleet: Fleet, second: str) -> None:
    host = fleet.lab.host("host1").uri
    call("volume", host, pool="default", name="by-hand", image=second, size="1GiB")
    job = removed(fleet)
    assert job["state"] == "failed"
    assert "by-hand" in job["error"]["message"]
    assert job["error"]["code"] == "refused"
    assert {each.partition("/")[0] for each in bases(fleet, second)} == {"host1"}
    assert fleet.create("web1", host="host2", image="second", wait_for="none", start=False)["state"] == "stopped"
    fleet.delete_all()
    remove_volumes(host, "default", "by-hand")
    assert removed(fleet)["state"] == "succeeded"
    assert bases(fleet, second) == set()


def test_a_host_that_is_away_is_named_and_the_rest_is_done_when_it_is_back(fleet: Fleet, second: str) -> None:
    fleet.lab.fault("power-off", "host1")
    job = removed(fleet)
    assert job["state"] == "failed"
    assert "host1" in job["error"]["message"]
    assert fleet.get("/images/second")["name"] == "second"
    fleet.lab.undo("host1")
    wait_until(lambda: fleet.get("/hosts/host1")["state"] == "up", 180, "host1 to be back")
    again = removed(fleet)
    assert (again["state"], again["hosts"]) == ("succeeded", ["host1"])
    assert bases(fleet, second) == set()
    assert fleet.http.get("/images/second").status_code == 404


def test_the_playbook_by_hand_removes_from_a_shared_pool_what_no_host_needs(lab: Lab, tmp_path: Path) -> None:
    image = {"name": "t-base", "pool": "shared", "src": lab.status()["image"]}
    named = [{"name": "t-base", "pool": "shared"}, {"name": "t-base", "pool": "default", "hosts": ["host2"]}]
    first, last = lab.host("host1").uri, lab.host("host3").uri
    try:
        status, _results, output = run_playbook(lab, tmp_path, "image/import.yml", virtfleet_image=image)
        assert status == 0, output
        call("volume", last, pool="shared", name="t-over", image="t-base", size="1GiB")
        # host1 has not seen that overlay: another host has laid it over the base in the directory that they share.
        status, results, output = run_playbook(lab, tmp_path, "image/remove.yml", virtfleet_images=named[:1])
        assert status == 2, output
        assert "t-over" in output
        assert results["host1"] == {"removed": [], "kept": named[:1]}
        call("volume", last, pool="shared", name="t-over", state="absent")
        status, results, output = run_playbook(lab, tmp_path, "image/remove.yml", virtfleet_images=named)
        assert status == 0, output
        assert [len(results[host]["removed"]) for host in ("host1", "host2", "host3")] == [1, 2, 1]
        # Each host's libvirt may still list what another one has removed.
        for uri in (last, first):
            made = call("image", uri, **image)
            assert made.values["image"]["complete"]
        status, _results, output = run_playbook(lab, tmp_path, "image/remove.yml", virtfleet_images=named)
        assert status == 0, output
        assert not [path.name for path in lab.layout.shared.glob("t-*")]
    finally:
        for host in lab.hosts():
            remove_volumes(host.uri, "shared", "t-")


def test_hosts_that_share_a_pool_may_remove_an_image_at_one_moment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    host, shared = lab.host("host1").uri, lab.layout.shared
    image = {"name": "t-base", "pool": "shared", "src": lab.status()["image"]}
    refresh = pools.refresh
    try:
        for gone in (["t-base"], ["t-base", "t-base.ok"]):
            assert call("image", host, **image).changed
            others = iter([gone])

            def refresh_and_let_another_host_remove_it(pool: Any, deadline: Any, others: Any = others) -> None:
                refresh(pool, deadline)
                for name in next(others, []):
                    (shared / name).unlink()

            with monkeypatch.context() as patched:
                patched.setattr(pools, "refresh", refresh_and_let_another_host_remove_it)
                assert call("image", host, name="t-base", pool="shared", state="absent").values["image"] is None
            assert not list(shared.glob("t-*"))
    finally:
        remove_volumes(host, "shared", "t-")


def test_a_removal_killed_between_two_files_is_finished_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    host, shared = lab.host("host1").uri, lab.layout.shared
    image = {"name": "t-base", "pool": "shared", "src": lab.status()["image"]}
    delete = volumes.delete

    def delete_one(pool: Any, name: str) -> bool:
        delete(pool, name)
        raise KeyboardInterrupt

    try:
        call("image", host, **image)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(volumes, "delete", delete_one)
            call("image", host, name="t-base", pool="shared", state="absent")
        assert [path.name for path in shared.glob("t-*")] == ["t-base.ok"]
        assert call("image", host, name="t-base", pool="shared", state="absent").changed
        assert not list(shared.glob("t-*"))
    finally:
        remove_volumes(host, "shared", "t-")
