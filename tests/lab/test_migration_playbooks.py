"""The playbooks that move machines, run by hand on the lab's own inventory: predicted, done, repeated, refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call, remove_volumes
from tests.lab.test_vm_playbooks import BASE, Hand, changed, hand, machine

pytestmark = pytest.mark.lab
__all__ = ["hand"]


@pytest.fixture
def three(hand: Hand, lab: Lab) -> Iterator[Hand]:
    """Three machines on host1, paused: two with disks of their own, one on shared storage."""
    hand("image/import", {"virtfleet_image": {"name": BASE, "pool": "shared", "src": lab.status()["image"]}})
    shared = {"disks": [{"image": BASE, "pool": "shared", "size": "1GiB"}]}
    wanted: list[dict[str, Any]] = [machine("hand1", 1), machine("hand2", 2), machine("hand3", 3, **shared)]
    wanted = [{**each, "host": "host1"} for each in wanted]
    hand("vm/create", {"virtfleet_vms": wanted, "virtfleet_state": "present"})
    yield hand
    for host in lab.hosts():
        for vm in call("vm_info", host.uri).values["vms"]:
            call("vm", host.uri, name=vm["name"], state="absent", delete_made_volumes=True)
        remove_volumes(host.uri, "shared", "hand")


def test_machines_move_where_they_are_told_or_where_the_policy_says(three: Hand) -> None:
    wanted = {"virtfleet_vms": [{"name": "hand1", "to": "host2"}, {"name": "hand3"}]}
    dry = three("vm/migrate", wanted, "--check")
    assert changed(dry) == 1  # one task on one host
    assert set(three.machines().values()) == {"host1"}
    done = three("vm/migrate", wanted)
    assert "hand1 goes from host1 to host2" in done
    there = three.machines()
    assert (there["hand1"], there["hand2"]) == ("host2", "host1")
    assert there["hand3"] != "host1"
    kept = call("vm_info", three.lab.host(there["hand3"]).uri, vms=[{"name": "hand3"}]).values["vms"][0]
    assert "/shared/" in kept["disks"][0]["source"]
    again = {"virtfleet_vms": [{"name": "hand1", "to": "host2"}, {"name": "hand3", "to": there["hand3"]}]}
    assert changed(three("vm/migrate", again)) == 0
    arrived = {"virtfleet_vms": [{"name": "hand1", "from": "host1", "to": "host2"}]}
    assert changed(three("vm/mend", arrived)) == 0, "nothing is on its way, and nothing was left"
    assert "no host has the machine nobody" in three("vm/migrate", {"virtfleet_vms": [{"name": "nobody"}]}, code=2)
    assert "no such host" in three("vm/migrate", {"virtfleet_vms": [{"name": "hand1", "to": "h9"}]}, code=2)


def test_a_host_is_emptied_and_what_cannot_go_is_named(three: Hand) -> None:
    refused = {"virtfleet_leaving": ["host1"], "virtfleet_copy_storage": False}
    told = three("host/evacuate", refused, code=2)
    assert "may not be copied" in told
    left = {name for name, host in three.machines().items() if host == "host1"}
    assert left == {"hand1", "hand2"}, "the third is on shared storage"
    assert changed(three("host/evacuate", {"virtfleet_leaving": ["host1"]}, "--check")) == 1
    three("host/evacuate", {"virtfleet_leaving": ["host1"]})
    assert "host1" not in three.machines().values()
    assert len(three.machines()) == 3
    assert changed(three("host/evacuate", {"virtfleet_leaving": ["host1"]})) == 0
