"""Plans over real machines: what the API plans from what its observer saw, and what a playbook plans by hand."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.fleet import Fleet, wait_until

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
EAGER = {"enough": 0, "min_gain": 1e-6, "per_gib": 0, "per_move": 1e-6}
"""The test's machines are small, and all but even on the lab's large hosts: every move is worth it."""


def stand(fleet: Fleet) -> dict[str, set[str]]:
    """Return the machines of each host, as libvirt says."""
    return {host.name: set(fleet.domains(host.name)) for host in fleet.lab.hosts()}


def test_plans_are_over_the_machines_that_are_there_and_move_none(fleet: Fleet) -> None:
    fleet.create("plan1", host="host1", wait_for="none")
    fleet.create("plan2", host="host1", start=False)
    before = stand(fleet)
    assert before["host1"] >= {"plan1", "plan2"}
    balanced = fleet.post("/plans", {"kind": "balance", **EAGER})
    assert balanced["score_after"] < balanced["score_before"]
    assert [move["from"] for move in balanced["moves"]] == ["host1"]
    assert balanced["moves"][0]["vm"] in ("plan1", "plan2")
    drained = fleet.post("/plans", {"kind": "drain", "hosts": ["host1"], "policy": "spread"})
    assert {move["vm"] for move in drained["moves"]} == {"plan1", "plan2"}
    assert (drained["left"], drained["observed_at"] is not None) == ([], True)
    assert fleet.post("/plans", {"kind": "consolidate"})["hosts_after"] == 1
    lost = fleet.post("/plans", {"kind": "what-if", "lose_hosts": ["host1"]})
    assert ({each["vm"] for each in lost["restarted"]}, lost["fits"]) == ({"plan1", "plan2"}, True)
    assert stand(fleet) == before


def test_a_host_that_fell_silent_is_no_target_and_its_machines_stay(fleet: Fleet) -> None:
    fleet.create("plan1", host="host1", start=False)
    fleet.lab.fault("kill-libvirtd", "host1")
    wait_until(lambda: fleet.get("/hosts/host1")["state"] == "down", 180, "the observer to notice")
    drained = fleet.post("/plans", {"kind": "drain", "hosts": ["host1"]})
    assert drained["moves"] == []
    assert "host1 is not live" in drained["left"][0]["text"]
    elsewhere = fleet.post("/plans", {"kind": "what-if", "add_vms": [{"flavor": "small", "count": 3}]})
    assert "host1" not in {each["host"] for each in elsewhere["placements"]}
    fleet.lab.undo("host1")
    wait_until(lambda: fleet.get("/hosts/host1")["state"] == "up", 180, "the host to be back")


def by_hand(fleet: Fleet, folder: Path, expression: str) -> str:
    """Run a playbook that reads all hosts and shows what an expression makes of `hosts`; return what it printed."""
    fresh = "{{ ansible_play_hosts | map('extract', hostvars, 'found') | map(attribute='host') | list }}"
    tasks: list[dict[str, Any]] = [
        {
            "virtfleet.core.host_info": {"uri": "{{ virtfleet_uri }}", "name": "{{ inventory_hostname }}"},
            "register": "found",
        },
        {
            "ansible.builtin.debug": {"msg": f"{{{{ {expression} | virtfleet.core.explain }}}}"},
            "vars": {"hosts": fresh},
            "run_once": True,
        },
    ]
    playbook = folder / "plan.yml"
    play = {"hosts": "all", "gather_facts": False, "connection": "local", "tasks": tasks}
    playbook.write_text(yaml.safe_dump([play]))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [program, "-i", fleet.lab.status()["inventory"], str(playbook)],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_playbook_plans_by_hand_over_what_the_hosts_say_now(fleet: Fleet, tmp_path: Path) -> None:
    fleet.create("plan1", host="host1", start=False)
    fleet.create("plan2", host="host1", start=False)
    before = stand(fleet)
    drained = by_hand(fleet, tmp_path, "hosts | virtfleet.core.drain(['host1'], machines={'plan2': {'stays': 'so'}})")
    assert "move plan1 host1 " in drained
    assert "plan2 must stay: so" in drained
    eager = f"hosts | virtfleet.core.rebalance({EAGER}, vcpu_ratio=2.0)"
    assert "1 move in 1 batch" in by_hand(fleet, tmp_path, eager)
    assert "nothing to do" in by_hand(fleet, tmp_path, "hosts | virtfleet.core.consolidate")
    assert stand(fleet) == before
