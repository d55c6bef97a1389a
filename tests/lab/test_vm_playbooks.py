"""The playbooks over machines, run by hand on the lab's own inventory: decided, made, repeated, tried dry, undone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
        """Return name → host of all machines."""
        return {vm["name"]: host.name for host in self.lab.hosts() for vm in call("vm_info", host.uri).values["vms"]}


@pytest.fixture
def hand(lab: Lab, tmp_path: Path) -> Iterator[Hand]:
    by_hand = Hand(lab, tmp_path)
    by_hand("image/import", {"virtfleet_image": {"name": BASE, "pool": "default", "src": lab.status()["image"]}})
    yield by_hand
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


@pytest.mark.parametrize("wrong", [{"virtfleet_vms": "x"}, {}, {"virtfleet_vms": [], "virtfleet_wait_for": "godot"}])
def test_wrong_variables_are_refused_by_the_argument_spec(hand: Hand, wrong: dict[str, Any]) -> None:
    assert "Validation of arguments failed" in hand("vm/create", wrong, code=2)
