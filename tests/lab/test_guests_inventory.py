"""The inventory of machines on the lab: groups, addresses, the cache; a silent host is a warning."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import build
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import VmSpec
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.test_guest_image import eventually
from tests.lab.test_storage_modules import FROZEN_SECONDS, ROOT, call

pytestmark = pytest.mark.lab


class Inventory:
    """A file of the plugin's, and Ansible's own programs that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "fleet.virtfleet.yml"
        self.said = ""

    def write(self, hosts: dict[str, Any], **options: Any) -> None:
        self.file.write_text(yaml.safe_dump({"plugin": "virtfleet.core.guests", "hosts": hosts, **options}))

    def run(self, program: str, *words: str) -> str:
        """Run a program over the inventory; what it said on the side is in `said`."""
        command = [str(Path(sys.executable).with_name(program)), "-i", str(self.file), *words]
        own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"}
        done = subprocess.run(
            command, env=os.environ | own, cwd=self.folder, capture_output=True, text=True, check=False, timeout=250
        )
        self.said = done.stderr
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def read(self, *words: str) -> tuple[dict[str, set[str]], dict[str, dict[str, Any]]]:
        """Return the groups with their hosts, and the variables of every host."""
        # What is no template is written as {"__ansible_unsafe": text}.
        listed = json.loads(
            self.run("ansible-inventory", "--list", *words), object_hook=lambda each: each.get("__ansible_unsafe", each)
        )
        variables = listed.pop("_meta")["hostvars"]
        return {name: set(group.get("hosts", ())) for name, group in listed.items() if name != "all"}, variables


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return Inventory(tmp_path)


class Machines:
    """Machines without disks that are only defined, on any host; gone after the test."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made: list[tuple[str, str]] = []

    def define(self, host: str, name: str, **metadata: Any) -> str:
        """Define a machine and return its UUID."""
        identifier = str(uuid.uuid4())
        spec = VmSpec(
            name=name, uuid=identifier, vcpus=1, memory_bytes=2**25, virt_type="qemu", arch="x86_64", metadata=metadata
        )
        with opened_host(self._lab.host(host).uri, Deadline(60)) as connection:
            connection.defineXML(build(spec))
        self._made.append((host, identifier))
        return identifier

    def remove(self) -> None:
        for host, identifier in self._made:
            with opened_host(self._lab.host(host).uri, Deadline(60)) as connection:
                connection.lookupByUUIDString(identifier).undefine()


@pytest.fixture
def machines(lab: Lab) -> Iterator[Machines]:
    made = Machines(lab)
    yield made
    for host in lab.hosts():
        lab.undo(host.name)
    made.remove()


def uris(lab: Lab) -> dict[str, Any]:
    return {host.name: host.uri for host in lab.hosts()[:2]}


def test_machines_are_grouped_by_what_their_metadata_say(lab: Lab, inventory: Inventory, machines: Machines) -> None:
    tags = ["web", "tier/1"]
    machines.define("host1", "inv-a", owner="alice", project="shop", flavor="small", zone="north", tags=tags, id="vm_1")
    machines.define("host2", "inv-b", owner="bob", tags={"tier": "db"}, fixed_addresses=["10.78.0.99"])
    machines.define("host2", "inv-c")
    hosts = uris(lab)
    hosts["host2"] = {"uri": hosts["host2"], "zone": "south"}
    composed = {"keyed_groups": [{"key": "virtfleet_vm.metadata.id", "prefix": "id"}], "compose": {"twice": "1 + 1"}}
    inventory.write(hosts, groups={"small": "virtfleet_vm.vcpus == 1"}, **composed)
    groups, variables = inventory.read()
    expected = {
        "host_host1": {"inv-a"},
        "host_host2": {"inv-b", "inv-c"},
        "zone_north": {"inv-a"},
        "zone_south": {"inv-b", "inv-c"},
        "owner_alice": {"inv-a"},
        "owner_bob": {"inv-b"},
        "project_shop": {"inv-a"},
        "flavor_small": {"inv-a"},
        "state_stopped": {"inv-a", "inv-b", "inv-c"},
        "tag_web": {"inv-a"},
        "tag_tier_1": {"inv-a"},
        "tag_tier_db": {"inv-b"},
        "id_vm_1": {"inv-a"},
        "small": {"inv-a", "inv-b", "inv-c"},
    }
    assert {name: members for name, members in groups.items() if members} == expected
    assert variables["inv-b"]["ansible_host"] == "10.78.0.99"
    assert "ansible_host" not in variables["inv-a"]
    assert variables["inv-a"]["twice"] == 2
    assert variables["inv-a"]["virtfleet_vm"]["metadata"]["tags"] == tags
    inventory.write(hosts, group_by=["owner"], managed_only=True)
    groups, variables = inventory.read()
    assert set(variables) == {"inv-a", "inv-b"}
    assert {name for name, members in groups.items() if members} == {"owner_alice", "owner_bob"}


def test_every_machine_has_a_name_of_its_own_that_is_no_path_and_no_pattern(
    lab: Lab, inventory: Inventory, machines: Machines
) -> None:
    machines.define("host1", "inv-same")
    machines.define("host2", "inv-same")
    machines.define("host1", "localhost")
    odd = [machines.define("host2", name) for name in ("..inv", "inv,all", "inv[1:3]", "inv {{ 7 * 7 }}")]
    inventory.write(uris(lab))
    _groups, variables = inventory.read()
    assert set(variables) == {"inv-same.host1", "inv-same.host2", "localhost.host1", *odd}


@pytest.mark.parametrize("fault", ["freeze-libvirtd", "kill-libvirtd", "cut-link"])
def test_a_host_that_is_silent_is_a_warning(lab: Lab, inventory: Inventory, machines: Machines, fault: str) -> None:
    machines.define("host1", "inv-a")
    machines.define("host2", "inv-b")
    inventory.write(uris(lab), connect_timeout=3)
    lab.fault(fault, "host2")
    began = time.monotonic()
    _groups, variables = inventory.read()
    assert time.monotonic() - began < FROZEN_SECONDS
    assert set(variables) == {"inv-a"}
    assert "The machines of host host2 are missing" in inventory.said


HOSTILE = "{{ lookup('ansible.builtin.pipe', 'touch FILE') }}"


def test_text_of_a_machine_is_never_a_template_also_out_of_the_cache(
    lab: Lab, inventory: Inventory, machines: Machines
) -> None:
    touched = inventory.folder / "touched"
    text = HOSTILE.replace("FILE", str(touched))
    machines.define("host1", "inv-evil", owner=text, tags=[text], image=text, fixed_addresses=[text])
    keyed = [{"key": "virtfleet_vm.metadata.image", "prefix": "image"}]
    cache = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(inventory.folder / "c")}
    inventory.write(uris(lab), keyed_groups=keyed, compose={"mine": "virtfleet_vm.metadata.owner"}, **cache)
    said = {"msg": "{{ [virtfleet_vm.metadata.owner, mine, group_names | join(' ')] | to_json }}"}
    playbook = inventory.folder / "show.yml"
    task = {"ansible.builtin.debug": said}
    played = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [task]}]
    playbook.write_text(yaml.safe_dump(played))
    for _again in range(2):  # the second time out of the cache
        _groups, variables = inventory.read()
        assert variables["inv-evil"]["virtfleet_vm"]["metadata"]["owner"] == text
        assert "ansible_host" not in variables["inv-evil"]
        assert "lookup(" in inventory.run("ansible-playbook", str(playbook))
        assert not touched.exists()


def test_the_cache_spares_the_hosts_and_never_keeps_a_half_reading(
    lab: Lab, inventory: Inventory, machines: Machines
) -> None:
    machines.define("host1", "inv-a")
    cache = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(inventory.folder / "c")}
    inventory.write(uris(lab), connect_timeout=3, **cache)
    lab.fault("kill-libvirtd", "host2")
    assert set(inventory.read()[1]) == {"inv-a"}
    lab.undo("host2")
    machines.define("host2", "inv-b")
    assert set(inventory.read()[1]) == {"inv-a", "inv-b"}
    machines.define("host2", "inv-c")
    assert set(inventory.read()[1]) == {"inv-a", "inv-b"}
    assert set(inventory.read("--flush-cache")[1]) == {"inv-a", "inv-b", "inv-c"}


def test_addresses_come_from_record_lease_and_agent(lab: Lab, inventory: Inventory) -> None:
    uri = lab.host("host1").uri
    call("image", uri, name="inv-base", pool="default", src=lab.status()["image"], timeout=120.0)
    dhcp = {"start": "10.79.9.100", "end": "10.79.9.120"}
    net: dict[str, Any] = {"name": "inv-net", "mode": "isolated", "address": "10.79.9.1/24"}
    call("network", uri, **net, dhcp=dhcp)
    nics = [
        {"bridge": "vmbr0", "mac": "52:54:00:aa:cc:01", "address": "10.78.0.77/22"},
        {"network": "inv-net", "mac": "52:54:00:aa:cc:02"},
    ]
    parts: dict[str, Any] = {"disks": [{"image": "inv-base", "size": "1GiB"}], "networks": nics, "cloud_init": {}}
    size: dict[str, Any] = {"vcpus": 1, "memory": "128MiB", "state": "running"}
    identifier = str(uuid.uuid4())
    try:
        call("vm", uri, name="inv-run", uuid=identifier, **parts, **size, wait_for="agent", timeout=200.0)
        for sources in (["record"], ["agent"], ["agent", "lease", "arp"]):
            inventory.write({"host1": uri}, address_from=sources)
            assert inventory.read()[1]["inv-run"]["ansible_host"] == "10.78.0.77"
        eventually("a lease", lambda: call("network", uri, **net, dhcp=dhcp).values["leases"] != [])
        inventory.write({"host1": uri}, address_from=["lease", "record"])
        assert inventory.read()[1]["inv-run"]["ansible_host"].startswith("10.79.9.1")
        inventory.write({"host1": uri}, address_from=[])
        assert "ansible_host" not in inventory.read()[1]["inv-run"]
    finally:
        call("vm", uri, name="inv-run", uuid=identifier, state="absent", delete_made_volumes=True)
        call("network", uri, name="inv-net", state="absent")
        with opened_host(uri, Deadline(60)) as connection:
            pool = connection.storagePoolLookupByName("default")
            for name in [each for each in pool.listVolumes() if each.startswith("inv-base")]:
                pool.storageVolLookupByName(name).delete(0)


def test_a_wrong_file_says_what_is_wrong(inventory: Inventory) -> None:
    inventory.write({"host1": {"url": "qemu:///system"}})
    inventory.run("ansible-inventory", "--list")
    assert "neither a libvirt URI nor a mapping with uri and zone" in inventory.said
