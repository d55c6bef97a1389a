"""Backups on a real host: what a machine's disks held comes back, from whole ones and from chains of increments."""

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call
from tests.lab.test_vm_snapshot_module import Guest

pytestmark = pytest.mark.lab

NAME, COPY = "backed", "backed-copy"
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c77"
BASE, POOL = "backed-base", "backups-test"
FOLDER = "/var/lib/libvirt/backups-test"


class Backed(Guest):
    """A machine that is backed up."""

    def backup(self, name: str, *, check: bool = False, **more: Any) -> Any:
        return call("vm_backup", self.uri, check=check, vm=NAME, name=name, pool=POOL, timeout=120.0, **more)

    def restore(self, name: str, *, check: bool = False, **more: Any) -> Any:
        options = {"vm_uuid": UUID, "backup": name, "pool": POOL, "timeout": 120.0}
        return call("vm_restore", self.uri, check=check, **options, **more)

    def listed(self, **more: Any) -> list[dict[str, Any]]:
        found = call("vm_backup_info", self.uri, pool=POOL, timeout=120.0, **more).values["backups"]
        assert isinstance(found, list)
        return found

    def power(self, state: str, name: str = NAME) -> None:
        call("vm", self.uri, name=name, state=state, force=True, grace=60.0, timeout=120.0)

    def remove_copy(self) -> None:
        call("vm", self.uri, name=COPY, state="absent", delete_made_volumes=True, timeout=120.0)

    def volumes(self, pool: str = POOL) -> set[str]:
        with opened_host(self.uri, Deadline(10)) as connection:
            found = connection.storagePoolLookupByName(pool)
            found.refresh(0)
            return set(found.listVolumes())


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Backed]:
    uri = lab.host("host1").uri
    call("image", uri, name=BASE, pool="default", src=lab.status()["image"], timeout=120.0)
    call("pool", uri, name=POOL, path=FOLDER, timeout=60.0)
    guest = Backed(uri, NAME)
    guest.make(
        name=NAME,
        uuid=UUID,
        disks=[{"image": BASE, "size": "1GiB"}, {"size": "64MiB"}],
        networks=[{"bridge": "vmbr0", "mac": "52:54:00:aa:dd:77"}],
        cloud_init={"hostname": NAME},
    )
    before = guest.volumes("default")
    yield guest
    for name in (NAME, COPY):
        call("vm", uri, name=name, state="absent", delete_made_volumes=True, timeout=120.0)
    left = {name for name in guest.volumes("default") - before if not name.startswith("snapped")}
    call("pool", uri, name=POOL, state="absent", delete_content=True, timeout=60.0)
    call("image", uri, name=BASE, pool="default", state="absent")
    assert left == set()


def test_a_chain_of_increments_brings_back_each_moment(machine: Backed) -> None:
    machine.write("one")
    predicted = machine.backup("b1", check=True, quiesce=True)
    made = machine.backup("b1", quiesce=True)
    assert (predicted.changed, made.changed) == (True, True)
    assert (predicted.before, predicted.after) == (made.before, made.after)
    first = made.values["backup"]
    assert (first["kind"], first["quiesced"], first["state"], first["parent"]) == ("full", True, "running", None)
    assert [disk["target"] for disk in first["disks"]] == ["vda", "vdb"]
    assert call("vm_guest_info", machine.uri, vms=[{"name": NAME}]).values["vms"][0]["guest"]["frozen"] is False
    for check in (True, False):
        again = machine.backup("b1", check=check)
        assert (again.changed, again.values["backup"]) == (False, first)

    machine.write("two")
    assert machine.backup("b2", check=True, kind="incremental").values["backup"]["kind"] == "incremental"
    second = machine.backup("b2", kind="incremental").values
    assert (second["backup"]["kind"], second["backup"]["parent"], second["reason"]) == ("incremental", "b1", None)
    assert second["backup"]["size_bytes"] < first["size_bytes"] / 4
    machine.write("three")

    with pytest.raises(VirtfleetError) as refusal:
        machine.backup("b1", state="absent")
    assert (refusal.value.code, "b2" in str(refusal.value)) == ("refused", True)

    for name, text in (("b1", "one"), ("b2", "two")):
        assert machine.restore(name, check=True, new_name=COPY, start=True).changed
        found = machine.restore(name, new_name=COPY, start=True).values["vm"]
        assert found["uuid"] != UUID
        assert {card["mac"] for card in found["networks"]}.isdisjoint({"52:54:00:aa:dd:77"})
        for check in (True, False):
            assert not machine.restore(name, check=check, new_name=COPY, start=True).changed
        assert Guest(machine.uri, COPY).read() == text
        machine.remove_copy()
    assert machine.read() == "three"
