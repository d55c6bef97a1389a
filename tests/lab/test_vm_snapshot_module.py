"""Module vm_snapshot on a real host: what the disk held comes back; made before deleted; mixed modes refused."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.fleet import wait_until
from tests.lab.test_storage_modules import call, remove_volumes

pytestmark = pytest.mark.lab

NAME = "snapped"
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c66"
BASE = "snapped-base"
MARK = "/root/mark"


class Guest:
    """A machine with an agent, and what its disk holds."""

    def __init__(self, uri: str, name: str = NAME) -> None:
        self.uri = uri
        self.name = name

    def make(self, **more: Any) -> None:
        machine: dict[str, Any] = {
            "name": NAME,
            "uuid": UUID,
            "state": "running",
            "vcpus": 1,
            "memory": "128MiB",
            "disks": [{"image": BASE, "size": "1GiB"}],
            "networks": [{"bridge": "vmbr0", "mac": "52:54:00:aa:dd:01"}],
            "cloud_init": {"hostname": NAME},
            "metadata": {"id": "vm_1"},
            "timeout": 120.0,
        }
        call("vm", self.uri, **(machine | more))

    def snapshot(self, name: str, *, check: bool = False, **more: Any) -> Any:
        return call("vm_snapshot", self.uri, check=check, vm=NAME, name=name, timeout=120.0, **more)

    def names(self) -> list[str]:
        found = call("vm_snapshot_info", self.uri, vm=NAME).values["snapshots"]
        return [each["name"] for each in found]

    def _ask(self, command: str, **arguments: Any) -> Any:
        with opened_host(self.uri, Deadline(60)) as connection:
            domain = connection.lookupByName(self.name)
            text = json.dumps({"execute": command, "arguments": arguments})
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, text, 10, 0))["return"]

    def ready(self) -> None:
        """Wait for the agent."""

        def answers() -> bool:
            with suppress(libvirt.libvirtError):
                self._ask("guest-ping")
                return True
            return False

        wait_until(answers, 180, "the agent")

    def write(self, text: str) -> None:
        """Write a file on the machine's disk, down to the disk."""
        self.ready()
        handle = self._ask("guest-file-open", path=MARK, mode="w")
        data = base64.b64encode(text.encode()).decode()
        self._ask("guest-file-write", handle=handle, **{"buf-b64": data})
        self._ask("guest-file-flush", handle=handle)
        self._ask("guest-file-close", handle=handle)
        self.run("sync")

    def run(self, script: str, *, wait: bool = True) -> str:
        """Run a shell script in the machine; return what it printed, if it is to be waited for."""
        self.ready()
        asked = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self._ask("guest-exec", **asked)["pid"]
        if not wait:
            return ""
        answers: list[dict[str, Any]] = []

        def ended() -> bool:
            answers.append(self._ask("guest-exec-status", pid=pid))  # told of its end, the agent forgets it
            return bool(answers[-1]["exited"])

        wait_until(ended, 180, "the script")
        return base64.b64decode(answers[-1].get("out-data", "")).decode()

    def read(self) -> str | None:
        """Return what the file holds, read from the disk anew; None when there is none."""
        self.run("echo 3 > /proc/sys/vm/drop_caches")
        try:
            handle = self._ask("guest-file-open", path=MARK, mode="r")
        except libvirt.libvirtError:
            return None
        data = self._ask("guest-file-read", handle=handle, count=1000)["buf-b64"]
        self._ask("guest-file-close", handle=handle)
        return base64.b64decode(data).decode()


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    uri = lab.host("host1").uri
    call("image", uri, name=BASE, pool="default", src=lab.status()["image"], timeout=120.0)
    yield Guest(uri)
    call("vm", uri, name=NAME, state="absent", delete_made_volumes=True)
    with opened_host(uri, Deadline(60)) as connection:
        pool = connection.storagePoolLookupByName("default")
        pool.refresh(0)
        left = {name for name in pool.listVolumes() if name.startswith(f"{NAME}-{UUID[:8]}")}
    remove_volumes(uri, "default", NAME)
    assert left == set()


def test_what_a_running_machine_held_comes_back_with_its_memory(guest: Guest) -> None:
    guest.make()
    guest.write("before")
    predicted = guest.snapshot("s1", check=True, description="it was fine")
    assert (predicted.changed, guest.names()) == (True, [])
    made = guest.snapshot("s1", description="it was fine")
    first = made.values["snapshots"][0]
    assert (first["mode"], first["memory"], first["state"], first["description"]) == (
        *("internal", True, "running"),
        "it was fine",
    )
    assert first["disks"] == [
        {"target": "vda", "mode": "internal", "path": f"/var/lib/libvirt/images/{NAME}-{UUID[:8]}-root"}
    ]
    assert (made.before, made.after) == (predicted.before, predicted.after)
    for check in (True, False):
        assert not guest.snapshot("s1", check=check).changed
    guest.write("after")
    assert guest.read() == "after"
    assert guest.snapshot("s1", check=True, state="reverted").changed
    assert guest.read() == "after"
    assert guest.snapshot("s1", state="reverted").values["vm"]["state"] == "running"
    assert guest.read() == "before"
    for check in (True, False):
        assert guest.snapshot("s1", check=check, state="absent").values["deleted"] == ["s1"]
    assert guest.names() == []
    for check in (True, False):
        assert not guest.snapshot("s1", check=check, state="absent").changed
    assert guest.read() == "before"


def test_a_stopped_machine_is_stopped_again_when_it_comes_back(guest: Guest) -> None:
    guest.make()
    guest.write("before")
    call("vm", guest.uri, name=NAME, state="stopped", force=True, grace=60.0, timeout=120.0)
    made = guest.snapshot("s1").values["snapshots"][0]
    assert (made["mode"], made["memory"], made["state"]) == ("internal", False, "stopped")
    call("vm", guest.uri, name=NAME, state="running")
    guest.write("after")
    assert guest.snapshot("s1", state="reverted").values["vm"]["state"] == "stopped"
    call("vm", guest.uri, name=NAME, state="running")
    assert guest.read() == "before"


def test_retention_deletes_only_after_the_new_one_is_there(guest: Guest) -> None:
    guest.make(state="paused")
    guest.snapshot("mine")
    retain = {"prefix": "auto-", "count": 2}
    for number in (1, 2):
        assert guest.snapshot(f"auto-{number}", retain=retain).values["deleted"] == []
    predicted = guest.snapshot("auto-3", check=True, retain=retain)
    assert predicted.values["deleted"] == ["auto-1"]
    assert guest.snapshot("auto-3", retain=retain).values["deleted"] == ["auto-1"]
    assert guest.names() == ["mine", "auto-2", "auto-3"]
    with pytest.raises(VirtfleetError):
        guest.snapshot("auto-4", retain=retain, mode="external", memory=True)  # cannot be made
    assert guest.names() == ["mine", "auto-2", "auto-3"]
    assert not guest.snapshot("auto-3", retain=retain).changed


def test_children_stay_go_too_or_forbid_it(guest: Guest) -> None:
    guest.make(state="paused")
    for name in ("a", "b", "c"):
        guest.snapshot(name)
    with pytest.raises(VirtfleetError) as refusal:
        guest.snapshot("a", state="absent", children="refuse")
    assert refusal.value.code == "refused"
    assert guest.snapshot("a", state="absent").values["deleted"] == ["a"]
    assert guest.names() == ["b", "c"]
    predicted = guest.snapshot("b", check=True, state="absent", children="delete")
    assert predicted.values["deleted"] == ["b", "c"]
    assert guest.snapshot("b", state="absent", children="delete").values["deleted"] == ["b", "c"]
    assert guest.names() == []


def test_an_external_one_is_made_where_it_was_asked_for_shown_and_not_mixed(guest: Guest) -> None:
    guest.make()
    guest.ready()
    can = call("vm_snapshot_info", guest.uri, vm=NAME).values["abilities"]
    assert can["internal"]
    if not can["revert_external"]:
        with pytest.raises(VirtfleetError) as refusal:
            guest.snapshot("e1", quiesce=True)
        assert "cannot go back" in str(refusal.value)
    made = guest.snapshot("e1", mode="external", quiesce=True).values["snapshots"][0]
    assert (made["mode"], made["memory"]) == ("external", False)
    assert made["disks"][0]["path"].endswith("-root")
    running = call("vm_info", guest.uri, vms=[{"name": NAME}]).values["vms"][0]
    assert running["disks"][0]["source"].endswith("-root.e1")
    with pytest.raises(VirtfleetError) as refusal:
        guest.snapshot("i1", mode="internal")
    assert "chain of both" in str(refusal.value)
    if not can["revert_external"]:
        with pytest.raises(VirtfleetError) as refusal:
            guest.snapshot("e1", state="reverted")
        assert (refusal.value.code, "-root" in refusal.value.hint) == ("refused", True)


def test_what_cannot_be_is_refused_before_anything_is_done(guest: Guest) -> None:
    guest.make(state="paused")
    for options in (
        {"name": "../x"},
        {"name": "s", "description": "\0"},
        {"name": "s", "mode": "internal", "memory": False},
        {"name": "s", "mode": "internal", "quiesce": True},
        {"name": "s", "retain": {"prefix": "auto-", "count": 1}},
        {"name": "s", "retain": {"prefix": "s", "count": 0}},
        {"name": "s", "state": "reverted"},
    ):
        with pytest.raises(VirtfleetError) as refusal:
            guest.snapshot(**options)
        assert refusal.value.code in ("invalid", "refused", "not_found")
    assert guest.names() == []
