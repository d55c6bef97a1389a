"""What netplan says of a card goes to the bridge, and comes back exactly."""

from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from tests.unit.roles.programs import load

PATH = "/etc/netplan/50-cloud-init.yaml"
OWN = "/etc/netplan/90-virtfleet-vmbr0.yaml"
FORMER = """\
# A person's comment
network:
  version: 2
  ethernets:
    lan:
      match:
        macaddress: 52:54:00:12:34:56
      set-name: eth0
      dhcp4: yes
      nameservers:
        addresses: [192.0.2.53]  # theirs

    eth1:
      addresses:
      - 198.51.100.7/24
      gateway4: 198.51.100.1
"""
BRIDGE = {"bridges": {"vmbr0": {"interfaces": ["eth0"]}}}


bridge_netplan = load("bridge/filter_plugins/bridge_netplan.py").bridge_netplan


def network(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(text, yaml.BaseLoader)["network"]
    return found


def test_the_bridge_has_what_the_card_had_and_the_card_what_is_its_own() -> None:
    files = bridge_netplan({PATH: FORMER}, "vmbr0", ["eth0"], "vmbr0", BRIDGE)
    assert "lan" not in network(files[PATH])["ethernets"]
    own = network(files[OWN])
    assert own["ethernets"] == {"lan": {"match": {"macaddress": "52:54:00:12:34:56"}, "set-name": "eth0"}}
    assert own["bridges"]["vmbr0"] == {
        "interfaces": ["lan"],
        "dhcp4": "yes",
        "nameservers": {"addresses": ["192.0.2.53"]},
    }


def test_a_second_time_is_the_same_and_absent_is_as_before() -> None:
    once = bridge_netplan({PATH: FORMER}, "vmbr0", ["eth0"], "vmbr0", BRIDGE)
    assert bridge_netplan(once, "vmbr0", ["eth0"], "vmbr0", BRIDGE) == once
    assert bridge_netplan(once, "vmbr0", ["eth0"]) == {PATH: FORMER}


def test_two_bridges_do_not_undo_each_other() -> None:
    first = bridge_netplan({PATH: FORMER}, "vmbr0", ["eth0"], "vmbr0", BRIDGE)
    second = {**first, **bridge_netplan(first, "vmbr1", ["eth1"], "vmbr1", {"bridges": {"vmbr1": {}}})}
    assert network(second[PATH]) == {"version": "2"}
    assert bridge_netplan(second, "vmbr0", ["eth0"], "vmbr0", BRIDGE)[PATH] == second[PATH]
    left = {**second, **bridge_netplan(second, "vmbr0", [])}
    assert network(left[PATH])["ethernets"].keys() == {"lan"}
    assert bridge_netplan(left, "vmbr1", []) == {PATH: FORMER}


def test_a_file_of_the_machine_is_always_named_so_that_nobody_takes_it_for_the_roles() -> None:
    assert bridge_netplan({PATH: FORMER}, "vmbr0", []) == {PATH: FORMER}


def test_what_is_asked_for_wins() -> None:
    asked = {"addresses": ["203.0.113.5/24"], "routes": [{"to": "default", "via": "203.0.113.1"}]}
    own = bridge_netplan({PATH: FORMER}, "vmbr0", ["eth1"], "vmbr0", {"bridges": {"vmbr0": asked}})[OWN]
    assert network(own)["bridges"]["vmbr0"] == asked
    own = bridge_netplan({PATH: FORMER}, "vmbr0", ["eth0"], "vmbr0", {"bridges": {"vmbr0": asked}})[OWN]
    assert "dhcp4" not in network(own)["bridges"]["vmbr0"]


def test_a_vlan_leaves_the_files_of_the_card_alone() -> None:
    made = {"vlans": {"eth0.40": {"id": 40, "link": "eth0"}}, "bridges": {"vmbr0": {"interfaces": ["eth0.40"]}}}
    files = bridge_netplan({PATH: FORMER}, "vmbr0", [], "", made)
    assert files[PATH] == FORMER
    assert network(files[OWN])["bridges"] == {"vmbr0": {"interfaces": ["eth0.40"]}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("network: {ethernets: {eth0: {dhcp4: true}}}\n", "lines of its own"),
        ("network:\n  ethernets:\n    eth0: &card\n      dhcp4: true\n    eth1: *card\n", "anchors"),
        ("network: [\n", "is no YAML"),
    ],
)
def test_what_cannot_be_moved_line_by_line_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=reason):
        bridge_netplan({PATH: text}, "vmbr0", ["eth0"], "vmbr0", BRIDGE)
