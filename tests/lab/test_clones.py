"""Clones on a real host: what the disks held is in them, nobody shares what is written, the source stays as it is."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call, remove_volumes, started
from tests.lab.test_vm_snapshot_module import BASE, NAME, UUID, Guest

pytestmark = pytest.mark.lab

CLONE_UUID = "6c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c01"
CLONES = ("copied", "linked", "then", "fresh", "broken")


@pytest.fixture(scope="module")
def source(lab: Lab) -> Iterator[Guest]:
    """A stopped machine that holds "after", with a snapshot `s1` of when it held "before"."""
    uri = lab.host("host1").uri
    call("image", uri, name=BASE, pool="default", src=lab.status()["image"], timeout=120.0)
    guest = Guest(uri)
    guest.make(metadata={"id": "vm_1", "attempt": 3})
    guest.write("before")
    guest.snapshot("s1")
    guest.write("after")
    try:
        refused_while_it_runs(guest)
        call("vm", uri, name=NAME, state="stopped", force=True, grace=0.0, timeout=120.0)
        yield guest
    finally:
        for name in (*CLONES, NAME):
            call("vm", uri, name=name, state="absent", delete_made_volumes=True)
        left = [name for name in volume_names(uri) if not name.startswith(BASE)]
        remove_volumes(uri, "default", NAME)
        assert left == []


def refused_while_it_runs(guest: Guest) -> None:
    for more in ({}, {"mode": "linked"}, {"snapshot": "s1"}):
        with pytest.raises(VirtfleetError) as refusal:
            clone(guest, "copied", **more)
        assert (refusal.value.code, refusal.value.values["cleaned"]) == ("refused", True)
    assert clone(guest, "fresh", check=True, mode="fresh").changed


def clone(guest: Guest, name: str, *, check: bool = False, **more: Any) -> Any:
    return call("vm_clone", guest.uri, check=check, source=NAME, name=name, timeout=120.0, **more)


def volume_names(uri: str) -> list[str]:
    with opened_host(uri, Deadline(20)) as connection:
        pool = connection.storagePoolLookupByName("default")
        pool.refresh(0)
        return sorted(pool.listVolumes())


def described(uri: str, name: str) -> dict[str, Any]:
    with opened_host(uri, Deadline(20)) as connection:
        pool = connection.storagePoolLookupByName("default")
        pool.refresh(0)
        return volumes.describe(volumes.find(pool, name))


def fingerprint(uri: str) -> tuple[str, str]:
    """What the source is and holds: its definition, and the bytes of its disk."""
    with opened_host(uri, Deadline(20)) as connection:
        domain = connection.lookupByName(NAME)
        volume = connection.storagePoolLookupByName("default").storageVolLookupByName(f"{NAME}-{UUID[:8]}-root")
        stream, digest = connection.newStream(0), hashlib.sha256()
        volume.download(stream, 0, 0, 0)
        stream.recvAll(lambda _stream, data, _opaque: digest.update(data), None)
        stream.finish()
        return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), digest.hexdigest()


def test_a_full_clone_holds_the_same_with_an_identity_of_its_own_and_needs_nobody(source: Guest) -> None:
    was, before = fingerprint(source.uri), volume_names(source.uri)
    wanted: dict[str, Any] = {"uuid": CLONE_UUID, "state": "running", "wait_for": "agent", "metadata": {"id": "vm_2"}}
    predicted = clone(source, "copied", check=True, **wanted)
    assert volume_names(source.uri) == before
    made = clone(source, "copied", **wanted)
    assert (made.changed, made.before, made.after) == (predicted.changed, predicted.before, predicted.after)
    assert made.values["disks"] == predicted.values["disks"]
    vm = made.values["vm"]
    assert (vm["uuid"], vm["state"], vm["metadata"]) == (CLONE_UUID, "running", {"id": "vm_2", "cloned_from": UUID})
    assert vm["networks"][0]["mac"] != "52:54:00:aa:dd:01"
    assert {disk["source"].rpartition("/")[2] for disk in vm["disks"]} == {
        f"copied-{CLONE_UUID[:8]}-root",
        f"copied-{CLONE_UUID[:8]}-seed.iso",
    }
    copied = Guest(source.uri, "copied")
    assert (copied.read(), copied.run("hostname").strip()) == ("after", "copied")
    assert described(source.uri, f"copied-{CLONE_UUID[:8]}-root")["image"] is None
    for check in (True, False):
        assert not clone(source, "copied", check=check, **wanted).changed
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", source.uri, source="copied", name=NAME)
    assert refusal.value.code == "already_exists"
    assert fingerprint(source.uri) == was
    gone = call("vm", source.uri, name="copied", state="absent", delete_made_volumes=True)
    assert gone.changed
    assert (fingerprint(source.uri), volume_names(source.uri)) == (was, before)


def test_a_linked_clone_shares_the_image_only_and_has_no_snapshots_in_it(source: Guest) -> None:
    was = fingerprint(source.uri)
    predicted = clone(source, "linked", check=True, mode="linked", snapshot="s1")
    made = clone(source, "linked", mode="linked", snapshot="s1", uuid=CLONE_UUID)
    assert [disk["image"] for disk in predicted.values["disks"]] == [BASE]
    root = f"linked-{CLONE_UUID[:8]}-root"
    assert [disk["name"] for disk in made.values["disks"]] == [root]
    assert described(source.uri, root)["image"].endswith(f"/{BASE}")
    assert call("vm_snapshot_info", source.uri, vm="linked").values["snapshots"] == []
    assert fingerprint(source.uri) == was
    call("vm", source.uri, name="linked", state="running")
    assert Guest(source.uri, "linked").read() == "before"
    with pytest.raises(VirtfleetError) as refusal:
        call("image", source.uri, name=BASE, pool="default", state="absent")
    assert refusal.value.code == "refused"
    call("vm", source.uri, name="linked", state="absent", delete_made_volumes=True)
    assert fingerprint(source.uri) == was


def test_a_full_clone_from_a_snapshot_is_independent_too(source: Guest) -> None:
    was, before = fingerprint(source.uri), volume_names(source.uri)
    clone(source, "then", snapshot="s1", uuid=CLONE_UUID)
    assert set(volume_names(source.uri)) - set(before) == {
        f"then-{CLONE_UUID[:8]}-root",
        f"then-{CLONE_UUID[:8]}-seed.iso",
    }
    assert described(source.uri, f"then-{CLONE_UUID[:8]}-root")["image"] is None
    call("vm", source.uri, name="then", state="running")
    assert Guest(source.uri, "then").read() == "before"
    call("vm", source.uri, name="then", state="absent", delete_made_volumes=True)
    assert fingerprint(source.uri) == was


def test_a_fresh_one_is_of_the_same_shape_without_what_the_disk_held(source: Guest) -> None:
    made = clone(source, "fresh", mode="fresh", uuid=CLONE_UUID)
    disk = described(source.uri, f"fresh-{CLONE_UUID[:8]}-root")
    assert (disk["image"].rpartition("/")[2], disk["capacity_bytes"]) == (BASE, 2**30)
    assert disk["allocation_bytes"] < 2**20
    assert made.values["vm"]["memory_bytes"] == 128 * 2**20
    # A clone of a clone: the same rules.
    with pytest.raises(VirtfleetError) as refusal:
        call("vm_clone", source.uri, source="fresh", name="fresh", mode="linked")
    assert refusal.value.code == "invalid"
    call("vm", source.uri, name="fresh", state="absent", delete_made_volumes=True)


def test_what_cannot_be_is_refused_before_anything_is_made(source: Guest, tmp_path: Path) -> None:
    before = volume_names(source.uri)
    for code, options in (
        ("not_found", {"snapshot": "s9"}),
        ("invalid", {"snapshot": "s1", "mode": "fresh"}),
        ("invalid", {"name": "../x"}),
        ("already_exists", {"name": "broken", "uuid": UUID}),
        ("not_found", {"cloud_init": {"user_data_src": str(tmp_path / "none")}}),
        ("invalid", {"networks": [{"bridge": "vmbr0", "network": "x"}]}),
    ):
        with pytest.raises(VirtfleetError) as refusal:
            clone(source, **{"name": "broken", "check": True, **options})
        assert refusal.value.code == code
    assert volume_names(source.uri) == before


def test_a_run_that_follows_a_killed_one_finishes_and_one_that_fails_leaves_nothing(source: Guest) -> None:
    before = volume_names(source.uri)
    with pytest.raises(VirtfleetError) as refusal:
        clone(source, "broken", uuid=CLONE_UUID, networks=[{"bridge": "no-such", "mac": "not a mac"}])
    assert (refusal.value.values["cleaned"], volume_names(source.uri)) == (True, before)
    options = {"source": NAME, "name": "broken", "uuid": CLONE_UUID, "mode": "linked", "timeout": 120.0}
    killed = started("vm_clone", source.uri, **options)
    marker = f"broken-{CLONE_UUID[:8]}-clone.part"
    while marker not in volume_names(source.uri) and killed.poll() is None:
        pass
    killed.kill()
    killed.wait(60)
    assert clone(source, "broken", uuid=CLONE_UUID, mode="linked").values["vm"]["state"] == "stopped"
    left = {name for name in volume_names(source.uri) if name.startswith("broken")}
    assert left == {f"broken-{CLONE_UUID[:8]}-root", f"broken-{CLONE_UUID[:8]}-seed.iso"}
    call("vm", source.uri, name="broken", state="absent", delete_made_volumes=True)
