"""The playbooks that change machines, run by hand: tried dry, done, repeated; refused when no host has the machine."""

from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_vm_playbooks import HOSTILE, Hand, changed, hand, machine

__all__ = ["hand"]  # the fixture of that file

pytestmark = pytest.mark.lab


def settled(hand: Hand, playbook: str, variables: dict[str, Any], changes: int) -> str:
    """Run a playbook dry, for real and again: the first two tell the same number of changes, the third none."""
    assert changed(hand(playbook, variables, "--check", "--diff")) == changes
    done = hand(playbook, variables)
    assert changed(done) == changes
    assert changed(hand(playbook, variables)) == 0
    return done


def test_a_machine_is_changed_by_hand_with_its_disks_and_cards(hand: Hand) -> None:
    hand("vm/create", {"virtfleet_vms": [machine("hand1", 1)], "virtfleet_state": "paused"})
    vm = {"name": "hand1"}
    wanted = {"vcpus": 2, "memory": "256MiB", "video": "vga", "metadata": {"owner": HOSTILE}, "autostart": True}
    resize: dict[str, Any] = {"virtfleet_vm": vm, "virtfleet_settings": wanted, "virtfleet_disk": {"size": "2GiB"}}
    done = settled(hand, "vm/resize", resize, 2)
    assert "power was cycled" in done
    assert "file system does not fill it" in done
    cycling = resize | {"virtfleet_allow_power_cycle": True, "virtfleet_force": True, "virtfleet_grace": 0}
    settled(hand, "vm/resize", cycling, 1)
    data = {"serial": "data", "volume": "hand1-data", "size": "16MiB", "bus": "scsi", "io": {"iops": 50}}
    settled(hand, "vm/disk", {"virtfleet_vm": vm, "virtfleet_disks": [data]}, 1)
    settled(hand, "vm/disk", {"virtfleet_vm": vm, "virtfleet_disks": [{"serial": "data", "size": "32MiB"}]}, 1)
    card = {"mac": "52:54:00:10:20:77", "bridge": "vmbr0"}
    settled(hand, "vm/nic", {"virtfleet_vm": vm, "virtfleet_nics": [card]}, 1)
    settled(hand, "vm/nic", {"virtfleet_vm": vm, "virtfleet_nics": [{"mac": card["mac"], "link": "down"}]}, 1)
    hand("vm/stop", {"virtfleet_vms": [vm], "virtfleet_force": True, "virtfleet_grace": 0})
    settled(hand, "vm/disk", {"virtfleet_vm": vm, "virtfleet_disks": [{"serial": "data", "state": "absent"}]}, 1)
    settled(hand, "vm/nic", {"virtfleet_vm": vm, "virtfleet_nics": [{"mac": card["mac"], "state": "absent"}]}, 1)


def test_pools_and_volumes_are_made_grown_copied_wiped_and_removed_by_hand(hand: Hand, tmp_path: Path) -> None:
    """What check mode says of each is tested with the modules."""
    here: dict[str, Any] = {"virtfleet_targets": "host1"}
    pools = here | {"virtfleet_pools": [{"name": "hand-pool", "path": "/var/lib/libvirt/hand-pool"}]}
    data, copy = ({"name": name, "pool": "hand-pool"} for name in ("hand-data", "hand-copy"))
    wanted = here | {"virtfleet_volumes": [data | {"size": "8MiB"}]}
    assert "hand-data" in hand(
        "volume/resize", wanted | {"virtfleet_volumes": [data | {"pool": "default", "size": "8MiB"}]}, code=2
    )
    assert changed(hand("pool/create", pools)) == 1
    assert [changed(hand("volume/create", wanted)) for _ in range(2)] == [1, 0]
    assert changed(hand("volume/resize", here | {"virtfleet_volumes": [data | {"size": "16MiB"}]})) == 1
    assert changed(hand("volume/clone", here | {"virtfleet_volume": data, "virtfleet_clones": [copy]})) == 1
    down = here | {"virtfleet_volumes": [data | {"dest": str(tmp_path / "data.qcow2")}]}
    assert [changed(hand("volume/download", down)) for _ in range(2)] == [1, 0]
    assert changed(hand("volume/wipe", here | {"virtfleet_volumes": [data]})) == 1
    assert changed(hand("volume/delete", here | {"virtfleet_volumes": [data, copy]})) == 1
    assert changed(hand("pool/delete", here | {"virtfleet_pools": [{"name": "hand-pool"}]})) == 1


@pytest.mark.parametrize(
    ("playbook", "more", "said"),
    [
        ("vm/resize", {"virtfleet_settings": {"vcpus": 2}}, "No host has the machine nobody"),
        ("vm/disk", {"virtfleet_disks": [{"serial": "x", "state": "absent"}]}, "No host has the machine nobody"),
        ("vm/nic", {"virtfleet_nics": []}, "No host has the machine nobody"),
        ("vm/resize", {"virtfleet_settings": {"nonsense": 2}}, "nonsense"),
        ("vm/resize", {"virtfleet_disk": {"size": "1GiB", "grow_by": "1GiB"}}, "mutually exclusive"),
    ],
)
def test_what_cannot_be_done_is_said(hand: Hand, playbook: str, more: dict[str, Any], said: str) -> None:
    assert said in hand(playbook, {"virtfleet_vm": {"name": "nobody"}, **more}, code=2)
