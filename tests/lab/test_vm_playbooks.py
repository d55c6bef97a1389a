"""The playbooks over machines, run by hand on the lab's own inventory: decided, made, repeated, tried dry, undone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call, remove_volumes

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
BASE = "hand-base"
# No templates: in a file that a person writes for `ansible-playbook` they are that person's own.
HOSTILE = "</metadata> $(touch /tmp/virtfleet-owned) `id` 😀 '\""


class Hand:
    """A person with `ansible-playbook` and the lab's inventory."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self._folder = folder

    def __call__(self, playbook: str, variables: dict[str, Any], *words: str, code: int = 0) -> str:
        """Run a playbook; return what it printed. It must have matched hosts."""
        file = self._folder / "variables.json"
        file.write_text(json.dumps(variables))
        program = Path(sys.executable).with_name("ansible-playbook")
        command = [
            str(program),
            "-i",
            self.lab.status()["inventory"],
            f"playbooks/{playbook}.yml",
            "-e",
            f"@{file}",
            *words,
        ]
        own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "no hosts matched" not in done.stdout + done.stderr
        return done.stdout

    def machines(self) -> dict[str, str]:
        """Return name → host of all machines; every host must answer."""
        return {vm["name"]: host.name for host in self.lab.hosts() for vm in call("vm_info", host.uri).values["vms"]}


@pytest.fixture
def hand(lab: Lab, tmp_path: Path) -> Iterator[Hand]:
    by_hand = Hand(lab, tmp_path)
    by_hand("image/import", {"virtfleet_image": {"name": BASE, "pool": "default", "src": lab.status()["image"]}})
    yield by_hand
    for host_ in lab.hosts():
        lab.undo(host_.name)
    for name, host in by_hand.machines().items():
        if name.startswith("hand"):
            call("vm", lab.host(host).uri, name=name, state="absent", delete_made_volumes=True)
    for host_ in lab.hosts():
        remove_volumes(host_.uri, "default", "hand")


def changed(output: str) -> int:
    """Return how many changes the recap tells of."""
    return sum(int(word.partition("=")[2]) for word in output.split() if word.startswith("changed="))


def machine(name: str, number: int, **more: Any) -> dict[str, Any]:
    nic = {"bridge": "vmbr0", "mac": f"52:54:00:10:20:3{number}"}
    disk = {"image": BASE, "size": "1GiB"}
    own = {"owner": HOSTILE, "note": "yes"}
    plain = {"name": name, "vcpus": 1, "memory": "128MiB", "disks": [disk], "networks": [nic], "metadata": own}
    return {**plain, "cloud_init": {"hostname": name}, **more}


def test_machines_are_placed_made_repeated_and_removed_by_hand(hand: Hand) -> None:
    wanted = [machine("hand1", 1), machine("hand2", 2), machine("hand3", 3, host="host2")]
    variables = {"virtfleet_vms": wanted, "virtfleet_policy": "round_robin", "virtfleet_state": "paused"}
    dry = hand("vm/create", variables, "--check")
    assert changed(dry) == 3
    assert hand.machines() == {}
    done = hand("vm/create", variables)
    assert changed(done) == 3
    placed = hand.machines()
    assert (set(placed), placed["hand3"]) == ({"hand1", "hand2", "hand3"}, "host2")
    assert changed(hand("vm/create", variables)) == 0
    kept = call("vm_info", hand.lab.host("host2").uri, vms=[{"name": "hand3"}]).values["vms"][0]["metadata"]
    assert kept == {"owner": HOSTILE, "note": "yes"}
    assert not Path("/tmp/virtfleet-owned").exists()
    named = {"virtfleet_vms": [{"name": name} for name in placed]}
    assert changed(hand("vm/resume", named)) == 3
    assert changed(hand("vm/pause", named)) == 3
    assert changed(hand("vm/pause", named)) == 0
    assert changed(hand("vm/delete", named, "--check")) == 3
    assert len(hand.machines()) == 3
    assert changed(hand("vm/delete", named)) == 3
    assert hand.machines() == {}
    assert changed(hand("vm/delete", named)) == 0


def test_what_does_not_fit_is_said_and_nothing_is_made(hand: Hand) -> None:
    told = hand("vm/create", {"virtfleet_vms": [machine("hand1", 1, memory="900GiB")]}, code=2)
    assert "hand1 fits on none of 3 hosts" in told
    assert hand.machines() == {}


def test_a_machine_that_is_nowhere_is_said(hand: Hand) -> None:
    assert "No host has the machine nowhere" in hand("vm/start", {"virtfleet_vms": [{"name": "nowhere"}]}, code=2)


UUID = "6c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11"
OTHER = "7d2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c12"


def made(hand: Hand, **more: Any) -> None:
    """Make one paused machine with the UUID above on host2."""
    wanted = machine("hand1", 1, uuid=UUID, host="host2", **more)
    hand("vm/create", {"virtfleet_vms": [wanted], "virtfleet_state": "paused"})


def test_machines_are_found_by_uuid_and_never_mistaken_for_one_of_the_same_name(hand: Hand) -> None:
    made(hand)
    by_uuid = {"virtfleet_vms": [{"uuid": UUID.upper()}]}
    mistaken = {"virtfleet_vms": [{"name": "hand1", "uuid": OTHER}]}
    assert changed(hand("vm/resume", by_uuid)) == 1
    assert f"No host has the machine hand1, UUID {OTHER}." in hand("vm/pause", mistaken, code=2)
    assert changed(hand("vm/delete", mistaken)) == 0
    quickly = {"virtfleet_grace": 0, "virtfleet_force": True}
    assert changed(hand("vm/reboot", {**by_uuid, **quickly})) == 1
    assert changed(hand("vm/stop", {**by_uuid, **quickly})) == 1
    assert changed(hand("vm/stop", {**by_uuid, **quickly})) == 0
    assert changed(hand("vm/start", by_uuid)) == 1
    assert changed(hand("vm/delete", by_uuid)) == 1
    assert hand.machines() == {}


@pytest.mark.parametrize("playbook", ["start", "stop", "reboot", "pause", "resume", "delete"])
def test_a_machine_without_name_and_uuid_is_refused(hand: Hand, playbook: str) -> None:
    told = hand(f"vm/{playbook}", {"virtfleet_vms": [{}]}, code=2)
    assert "one of the following is required: name, uuid" in told


def test_delete_leaves_what_virtfleet_did_not_make_unless_it_is_forced(hand: Hand) -> None:
    host = hand.lab.host("host1").uri
    call("volume", host, name="hand-data", pool="default", size="1MiB")
    with opened_host(host, Deadline(60)) as connection:
        path = connection.storagePoolLookupByName("default").storageVolLookupByName("hand-data").path()
        disk = f"<disk type='file'><source file='{path}'/><target dev='vda'/></disk>"
        body = f"<memory unit='MiB'>16</memory><os><type>hvm</type></os><devices>{disk}</devices>"
        connection.defineXML(f"<domain type='qemu'><name>hand-other</name>{body}</domain>")
    named = {"virtfleet_vms": [{"name": "hand-other"}]}
    assert "virtfleet did not make it" in hand("vm/delete", named, code=2)
    assert hand.machines() == {"hand-other": "host1"}
    assert changed(hand("vm/delete", {**named, "virtfleet_force_unmanaged": True})) == 1
    with opened_host(host, Deadline(60)) as connection:
        assert connection.storagePoolLookupByName("default").storageVolLookupByName("hand-data").path() == path


def test_a_silent_host_hinders_only_what_needs_it(hand: Hand) -> None:
    hand.lab.fault("freeze-libvirtd", "host1")
    impatient = {"virtfleet_connect_timeout": 2}
    made_elsewhere = {"virtfleet_vms": [machine("hand1", 1)], "virtfleet_state": "paused", **impatient}
    assert changed(hand("vm/create", made_elsewhere)) == 1
    assert hand.lab.status()["hosts"][0]["faults"]
    pinned = {"virtfleet_vms": [machine("hand2", 2, host="host1")], **impatient}
    assert "host1" in hand("vm/create", pinned, code=2)
    assert changed(hand("vm/resume", {"virtfleet_vms": [{"name": "hand1"}], **impatient})) == 1
    told = hand("vm/resume", {"virtfleet_vms": [{"name": "hand2"}], **impatient}, code=2)
    assert "No host has the machine hand2. host1: Failed to connect" in told
    one_host = {"virtfleet_vms": [{"name": "hand2"}], "virtfleet_targets": "host1", **impatient}
    assert "libvirt daemon did not answer" in hand("vm/resume", one_host, code=2)


def test_user_data_are_in_no_output_however_verbose(hand: Hand) -> None:
    marker = "marker-4711"
    wanted = machine("hand1", 1, cloud_init={"user_data": f"#cloud-config\n# {marker}\n"})
    variables = {"virtfleet_vms": [wanted], "virtfleet_state": "paused"}
    assert marker not in hand("vm/create", variables, "-vvv", "--diff")


def test_of_several_machines_a_broken_one_is_told_and_the_others_are_made(hand: Hand) -> None:
    broken = machine("hand2", 2, host="host1", disks=[{"image": "no-such-base", "size": "1GiB"}])
    wanted = [machine("hand1", 1, host="host1"), broken, machine("hand3", 3, host="host2")]
    told = hand("vm/create", {"virtfleet_vms": wanted, "virtfleet_state": "paused"}, code=2)
    assert "no-such-base" in told
    assert hand.machines() == {"hand1": "host1", "hand3": "host2"}


@pytest.mark.parametrize("wrong", [{"virtfleet_vms": "x"}, {}, {"virtfleet_vms": [], "virtfleet_wait_for": "godot"}])
def test_wrong_variables_are_refused_by_the_argument_spec(hand: Hand, wrong: dict[str, Any]) -> None:
    assert "Validation of arguments failed" in hand("vm/create", wrong, code=2)
