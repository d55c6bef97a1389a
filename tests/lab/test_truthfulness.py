"""Every module and each of its states tells the truth: check mode predicts what the real run does, once.

A case runs on libvirt's in-process test driver where that can do it, else on a real host. What has no case here has a
reason in `REASONS`; a test walks the modules of the collection and finds what has neither. All documents that the real
run sends are valid by libvirt's schemas.
"""

import importlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result, success
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab import emitted_xml
from tests.lab.test_storage_modules import ROOT, call

pytestmark = pytest.mark.lab

MODULES = ROOT / "collections/ansible_collections/virtfleet/core/plugins/modules"
TEST_URI = "test:///default"
PREFIX = "truth"
MAC = "52:54:00:aa:ee:01"
OTHER_MAC = "52:54:00:aa:ee:02"

Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a module is asked for, and what is there first. `TARGET`, `FILE` and `DEST` are filled in by the test."""

    module: str
    asked: Options
    first: tuple[tuple[str, Options], ...] = ()
    on: str = "lab"
    changes: bool = True
    repeats: str = ""
    """Why the second run changes something again: it was asked for something to be done, not for a state."""
    label: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """The name of the case among the tests."""
        words = f"{self.module}-{self.on}-{self.label or self.asked.get('state', 'read')}"
        return words if self.changes else f"{words}-unchanged"


NAME = f"{PREFIX}-vm"
TARGET, FILE, DEST = "{target}", "{file}", "{dest}"
UUID = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c99"
# A machine of nearly nothing: no image, so that nothing boots, and running it costs next to no processor time.
MACHINE: Options = {
    "name": NAME,
    "uuid": UUID,
    "vcpus": 1,
    "memory": "32MiB",
    "disks": [{"size": "8MiB", "format": "qcow2"}],
    "networks": [{"bridge": "vmbr0", "mac": MAC}],
}
STOPPED = ("vm", {**MACHINE, "state": "present"})
PAUSED = ("vm", {**MACHINE, "state": "paused"})
RUNNING = ("vm", {**MACHINE, "state": "running"})
AT_ONCE: Options = {"name": NAME, "force": True, "grace": 0.0}
VOLUME = ("volume", {"name": f"{PREFIX}-data", "pool": "default", "size": "8MiB", "format": "raw"})
DISK: Options = {"name": NAME, "serial": "data", "volume": f"{PREFIX}-data"}
NIC: Options = {"name": NAME, "mac": OTHER_MAC, "bridge": "vmbr0"}
FILTERED = ("vm_nic", {"name": NAME, "mac": MAC, "filter": "clean-traffic"})
SNAPSHOT: Options = {"vm": NAME, "name": f"{PREFIX}-s"}
OUTSIDE: Options = {**SNAPSHOT, "mode": "external"}
IMAGE: Options = {"name": f"{PREFIX}-image", "pool": "default"}

VM_CASES = [
    Case("vm", {**MACHINE, "state": "present"}),
    Case("vm", {**MACHINE, "state": "paused"}),
    Case("vm", {**MACHINE, "state": "running"}),
    Case("vm", {"vms": [{**MACHINE, "state": "present"}]}, label="list"),
    Case("vm", {**MACHINE, "state": "present"}, (STOPPED,), changes=False),
    Case("vm", {"name": NAME, "state": "running"}, (PAUSED,), label="resumed"),
    Case("vm", {"name": NAME, "state": "paused"}, (RUNNING,), label="suspended"),
    Case("vm", {**AT_ONCE, "state": "stopped"}, (RUNNING,)),
    Case("vm", {**AT_ONCE, "state": "stopped"}, (STOPPED,), changes=False),
    Case("vm", {**AT_ONCE, "state": "restarted"}, (RUNNING,), repeats="a restart is done each time"),
    Case("vm", {"name": NAME, "state": "saved"}, (RUNNING,)),
    Case("vm", {"name": NAME, "state": "absent"}, changes=False),
    Case("vm", {"name": NAME, "state": "absent"}, (STOPPED,)),
    Case("vm", {**AT_ONCE, "state": "absent", "delete_made_volumes": True}, (RUNNING,), label="absent-with-volumes"),
    Case("vm", {"name": NAME, "vcpus": 2, "max_vcpus": 4, "video": "vga"}, (STOPPED,), label="changed"),
    Case("vm", {"name": NAME, "metadata": {"owner": "you"}, "video": "vga"}, (PAUSED,), label="changed-live"),
    Case("vm", {"name": NAME, "new_name": f"{NAME}2"}, (STOPPED,), label="renamed"),
    Case("vm_disk", DISK, (STOPPED, VOLUME), label="present"),
    Case("vm_disk", DISK, (PAUSED, VOLUME), label="present-live"),
    Case("vm_disk", {**DISK, "size": "16MiB"}, (STOPPED, VOLUME, ("vm_disk", DISK)), label="grown"),
    Case("vm_disk", {**DISK, "bus": "scsi"}, (STOPPED, VOLUME, ("vm_disk", DISK)), label="other-bus"),
    Case("vm_disk", {"name": NAME, "serial": "data", "state": "absent"}, (STOPPED, VOLUME, ("vm_disk", DISK))),
    Case("vm_disk", {"name": NAME, "serial": "data", "state": "absent"}, (STOPPED,), changes=False),
    Case("vm_nic", NIC, (STOPPED,), label="present"),
    Case("vm_nic", NIC, (PAUSED,), label="present-live"),
    Case("vm_nic", {"name": NAME, "mac": MAC, "link": "down", "model": "e1000"}, (PAUSED,), label="changed"),
    Case("vm_nic", {"name": NAME, "mac": MAC, "filter": "clean-traffic"}, (PAUSED,), label="filtered"),
    Case("vm_nic", {"name": NAME, "mac": MAC, "filter": "none"}, (STOPPED, FILTERED), label="unfiltered"),
    Case("vm_nic", {"name": NAME, "mac": MAC, "state": "absent"}, (STOPPED,)),
    Case("vm_nic", {"name": NAME, "mac": OTHER_MAC, "state": "absent"}, (STOPPED,), changes=False),
    Case("vm_snapshot", SNAPSHOT, (STOPPED,), label="present"),
    Case("vm_snapshot", {**SNAPSHOT, "state": "absent"}, (STOPPED, ("vm_snapshot", SNAPSHOT))),
    Case("vm_snapshot", {**SNAPSHOT, "state": "absent"}, (STOPPED,), changes=False),
    Case("vm_snapshot", {**SNAPSHOT, "state": "absent"}, changes=False, label="absent-without-machine"),
    Case(
        "vm_snapshot",
        {**SNAPSHOT, "state": "reverted"},
        (STOPPED, ("vm_snapshot", SNAPSHOT)),
        repeats="each time the machine goes back anew, whatever it did meanwhile",
    ),
    Case("vm_snapshot", {**SNAPSHOT, "state": "exported"}, (STOPPED, ("vm_snapshot", SNAPSHOT))),
    Case("vm_snapshot", {**SNAPSHOT, "state": "exported"}, (PAUSED, ("vm_snapshot", OUTSIDE)), label="exported-live"),
    Case("vm_migrate", {"name": NAME, "target_uri": TARGET}, (STOPPED,), label="offline"),
]

CLONE: Options = {"source": NAME, "name": f"{NAME}-two"}
BACKUP: Options = {"vm": NAME, "name": f"{PREFIX}-b", "pool": "default"}
RESTORE: Options = {"vm": NAME, "backup": BACKUP["name"], "pool": "default", "new_name": f"{NAME}-again"}
MARK: Options = {"vm": NAME, "name": f"{PREFIX}-mark"}
COPY_CASES = [
    Case("vm_clone", CLONE, (STOPPED,), label="full"),
    Case("vm_clone", {**CLONE, "state": "paused"}, (STOPPED,)),
    Case("vm_clone", {**CLONE, "state": "running"}, (STOPPED,)),
    Case("vm_backup", BACKUP, (STOPPED,), label="present"),
    Case("vm_backup", {**BACKUP, "state": "absent"}, (STOPPED, ("vm_backup", BACKUP))),
    Case("vm_backup", {**BACKUP, "state": "absent"}, (STOPPED,), changes=False),
    Case("vm_restore", RESTORE, (STOPPED, ("vm_backup", BACKUP)), label="as-new"),
    Case("vm_backup_info", {"pool": "default"}, (STOPPED, ("vm_backup", BACKUP)), changes=False),
    Case("vm_checkpoint", MARK, (PAUSED,), label="present"),
    Case("vm_checkpoint", {**MARK, "state": "absent"}, (PAUSED, ("vm_checkpoint", MARK))),
    Case("vm_checkpoint", {**MARK, "state": "absent"}, (PAUSED,), changes=False),
]

IMAGE_CASES = [
    Case("image", {**IMAGE, "src": FILE}, label="present"),
    Case("image", {**IMAGE, "src": FILE}, (("image", {**IMAGE, "src": FILE}),), label="present", changes=False),
    Case("image", {**IMAGE, "state": "absent"}, (("image", {**IMAGE, "src": FILE}),)),
    Case("image", {**IMAGE, "state": "absent"}, changes=False),
]

READ_CASES = [
    Case("host_info", {"sample": 0.0}, changes=False),
    Case("vm_info", {}, (STOPPED,), changes=False),
    Case("vm_guest_info", {"vms": [{"name": NAME}]}, (STOPPED,), changes=False),
    Case("vm_snapshot_info", {"vm": NAME}, (STOPPED, ("vm_snapshot", SNAPSHOT)), changes=False),
    Case("vm_checkpoint_info", {"vm": NAME}, (STOPPED,), changes=False),
    Case("vm_migrate_info", {"name": NAME, "targets": [{"uri": TARGET}]}, (STOPPED,), changes=False),
]

POOL: Options = {"name": f"{PREFIX}-pool", "path": f"/var/lib/libvirt/{PREFIX}-pool"}
NAT: Options = {
    "name": f"{PREFIX}-net",
    "mode": "nat",
    "address": "192.168.177.1/24",
    "dhcp": {"start": "192.168.177.10", "end": "192.168.177.20"},
}
HOSTS = [{"mac": MAC, "address": "192.168.177.3", "name": "db1"}]

NAMES = [{"address": "192.168.177.9", "names": ["x", "a.example"]}, {"address": "10.0.0.1", "names": ["far"]}]


ON_BOTH = {"present", "moved", "changed", "dhcp-host", "dns", "dns-removed", "overlay", "copy"}
"""What real hosts do that libvirt's test driver only notes down."""


def both(*cases: Case) -> list[Case]:
    """Return the cases for the test driver and, where that makes a difference, once more for a real host."""
    really = [Case(**{**case.__dict__, "on": "lab"}) for case in cases if case.changes and case.label in ON_BOTH]
    return [*(Case(**{**case.__dict__, "on": "test"}) for case in cases), *really]


POOL_CASES = both(
    Case("pool", POOL, label="present"),
    Case("pool", {**POOL, "state": "inactive"}),
    Case("pool", {"name": POOL["name"], "state": "inactive"}, (("pool", POOL),), label="stopped"),
    Case("pool", {"name": POOL["name"]}, (("pool", {**POOL, "state": "inactive"}),), label="started"),
    Case("pool", {**POOL, "path": POOL["path"] + "2", "restart": True}, (("pool", POOL),), label="moved"),
    Case("pool", {"name": POOL["name"], "autostart": False}, (("pool", POOL),), label="autostart"),
    Case("pool", POOL, (("pool", POOL),), changes=False, label="present"),
    Case("pool", {"name": POOL["name"], "state": "absent"}, (("pool", POOL),)),
    Case("pool", {"name": POOL["name"], "state": "absent"}, changes=False),
)

NETWORK_CASES = both(
    Case("network", NAT, label="present"),
    Case("network", {**NAT, "state": "inactive"}),
    Case("network", {"name": NAT["name"], "state": "inactive"}, (("network", NAT),), label="stopped"),
    Case("network", {"name": NAT["name"]}, (("network", {**NAT, "state": "inactive"}),), label="started"),
    Case("network", {**NAT, "dhcp": None, "restart": True}, (("network", NAT),), label="changed"),
    Case("network", {**NAT, "dhcp": {**NAT["dhcp"], "hosts": HOSTS}}, (("network", NAT),), label="dhcp-host"),
    Case("network", {**NAT, "dns": NAMES}, (("network", NAT),), label="dns"),
    Case("network", {**NAT, "dns": NAMES[:1]}, (("network", {**NAT, "dns": NAMES}),), label="dns-removed"),
    Case("network", {"name": NAT["name"], "mode": "bridge", "bridge": "vmbr0"}, label="bridge"),
    Case("network", NAT, (("network", NAT),), changes=False, label="present"),
    Case("network", {"name": NAT["name"], "state": "absent"}, (("network", NAT),)),
    Case("network", {"name": NAT["name"], "state": "absent"}, changes=False),
)

IN_POOL: Options = {"name": f"{PREFIX}-v", "pool": POOL["name"]}
VOLUME_CASES = both(
    Case("volume", {**IN_POOL, "size": "8MiB"}, (("pool", POOL),), label="present"),
    Case(
        "volume",
        {**IN_POOL, "image": f"{PREFIX}-base"},
        (("pool", POOL), ("volume", {**IN_POOL, "name": f"{PREFIX}-base", "size": "8MiB"})),
        label="overlay",
    ),
    Case(
        "volume",
        {**IN_POOL, "copy_of": {"name": f"{PREFIX}-base"}},
        (("pool", POOL), ("volume", {**IN_POOL, "name": f"{PREFIX}-base", "size": "8MiB"})),
        label="copy",
    ),
    Case("volume", {**IN_POOL, "state": "absent"}, (("pool", POOL), ("volume", {**IN_POOL, "size": "8MiB"}))),
    Case("volume", {**IN_POOL, "state": "absent"}, (("pool", POOL),), changes=False),
    Case("volume", {**IN_POOL, "state": "absent"}, changes=False, label="absent-without-pool"),
)
VOLUME_CASES += [  # the test driver resizes no volumes and has no streams
    Case(
        "volume", {**IN_POOL, "size": "16MiB"}, (("pool", POOL), ("volume", {**IN_POOL, "size": "8MiB"})), label="grown"
    ),
    Case(
        "volume_info", {"pool": POOL["name"]}, (("pool", POOL), ("volume", {**IN_POOL, "size": "8MiB"})), changes=False
    ),
    Case("volume", {**IN_POOL, "src": FILE}, (("pool", POOL),), label="uploaded"),
    Case(
        "volume",
        {**IN_POOL, "state": "downloaded", "dest": DEST},
        (("pool", POOL), ("volume", {**IN_POOL, "size": "8MiB"})),
        label="downloaded",
    ),
    Case(
        "volume",
        {**IN_POOL, "state": "wiped"},
        (("pool", POOL), ("volume", {**IN_POOL, "size": "8MiB"})),
        repeats="each time what was written meanwhile is wiped, which nobody could see from outside",
    ),
]

SECRET: Options = {"usage": "volume", "usage_id": f"/{PREFIX}/volume"}
WITH_VALUE: Options = {**SECRET, "value": "of nobody's business"}
PRIVATE: Options = {**WITH_VALUE, "private": True, "ephemeral": True}
SECRET_CASES = [
    Case("secret", SECRET, label="present"),
    Case("secret", WITH_VALUE, label="with-value"),
    Case("secret", PRIVATE, label="private"),
    Case("secret", WITH_VALUE, (("secret", SECRET),), label="value-added"),
    Case("secret", {**WITH_VALUE, "value": "another"}, (("secret", WITH_VALUE),), label="value-changed"),
    Case(
        "secret",
        {**WITH_VALUE, "value": "another", "update_value": "on_create"},
        (("secret", WITH_VALUE),),
        label="on-create",
        changes=False,
    ),
    Case("secret", {**PRIVATE, "value": "another"}, (("secret", PRIVATE),), label="private", changes=False),
    Case(
        "secret",
        {**PRIVATE, "update_value": "always"},
        (("secret", PRIVATE),),
        label="private-always",
        repeats="what cannot be read cannot be compared, and always was asked for",
    ),
    Case("secret", {**SECRET, "description": "x", "private": True}, (("secret", WITH_VALUE),), label="changed"),
    Case("secret", SECRET, (("secret", WITH_VALUE),), label="present", changes=False),
    Case("secret", {**SECRET, "state": "absent"}, (("secret", WITH_VALUE),)),
    Case("secret", {**SECRET, "state": "absent"}, changes=False),
]

RULE: Options = {
    "action": "accept",
    "direction": "in",
    "protocol": "tcp",
    "match": {"dstportstart": 22, "state": "NEW"},
}
FILTER: Options = {"name": f"{PREFIX}-filter", "rules": [RULE, {"filter": "no-mac-spoofing"}]}
FILTER_CASES = [
    Case("nwfilter", FILTER, label="present"),
    Case("nwfilter", FILTER, (("nwfilter", FILTER),), label="present", changes=False),
    Case("nwfilter", {"name": FILTER["name"]}, (("nwfilter", FILTER),), label="kept", changes=False),
    Case("nwfilter", {**FILTER, "rules": FILTER["rules"][::-1]}, (("nwfilter", FILTER),), label="reordered"),
    Case(
        "nwfilter", {"name": FILTER["name"], "chain": "ipv4-x", "priority": 7}, (("nwfilter", FILTER),), label="moved"
    ),
    Case("nwfilter", {"name": FILTER["name"], "state": "absent"}, (("nwfilter", FILTER),)),
    Case("nwfilter", {"name": FILTER["name"], "state": "absent"}, changes=False),
]

CASES = [
    *VM_CASES,
    *COPY_CASES,
    *IMAGE_CASES,
    *READ_CASES,
    *POOL_CASES,
    *NETWORK_CASES,
    *VOLUME_CASES,
    *SECRET_CASES,
    *FILTER_CASES,
]

# Modules without a case here: the test that proves the same of them, as "own test: FILE", the file named from the root.
REASONS = {
    # They need a machine that has booted with its agent, as that file has.
    "vm_exec": "own test: tests/lab/test_guests.py",
    "vm_guest": "own test: tests/lab/test_guests.py",
}


def states_of(module: str) -> set[str | None]:
    """Return the states that a module knows; None alone for one that has none."""
    spec = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{module}").SPEC
    return set(spec["state"]["choices"]) if "state" in spec else {None}


def state_of(case: Case) -> str | None:
    """Return the state that a case asks for, the module's default where it names none."""
    spec = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{case.module}").SPEC
    asked = case.asked["vms"][0] if "vms" in case.asked else case.asked
    found: str | None = asked.get("state") or spec.get("state", {}).get("default")
    return found


def test_every_module_and_state_has_a_case_or_a_reason() -> None:
    modules = {path.stem for path in MODULES.glob("*.py") if path.stem != "__init__"}
    proven = {(case.module, state_of(case)) for case in CASES}
    missing = {
        (module, state)
        for module in modules - set(REASONS)
        for state in states_of(module)
        if (module, state) not in proven
    }
    assert not missing, "add a case, or a reason"
    assert set(REASONS) <= modules
    assert not set(REASONS) & {case.module for case in CASES}, "what has a case needs no reason"


@pytest.mark.parametrize("module", REASONS)
def test_a_reason_names_a_test_that_calls_the_module_in_check_mode_too(module: str) -> None:
    named = re.match(r"own test: (\S+)", REASONS[module])
    assert named, "a reason begins with the test that proves the same"
    text = Path(ROOT, named[1]).read_text()
    assert f'"{module}"' in text
    assert "check=True" in text


def test_every_module_that_removes_is_asked_to_remove_what_is_not_there() -> None:
    absents = {case.module for case in CASES if state_of(case) == "absent"}
    assert absents == {case.module for case in CASES if state_of(case) == "absent" and not case.changes}


@dataclass
class Hosts:
    """A real host and another, or the test driver; and a file to send."""

    uri: str
    target: str
    file: Path

    def call(self, module: str, options: Options, *, check: bool = False) -> Result:
        """Call a module with what stands in for the other host and the file."""
        return call(module, self.uri, check=check, **self._filled(options))

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        return (
            {TARGET: self.target, FILE: str(self.file), DEST: f"{self.file}.down"}.get(value, value)
            if isinstance(value, str)
            else value
        )

    def picture(self) -> list[str]:
        """Return all that a host has and how it is, in words, and the files beside the one that is sent."""
        beside = [(each.name, each.stat()) for each in sorted(self.file.parent.iterdir())]
        files = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in beside]
        return [*files, *(line for uri in {self.uri, self.target} for line in picture(uri))]


def picture(uri: str) -> list[str]:
    """Return all that one host has: definitions, live documents, states and sizes."""
    found = []
    with opened_host(uri, Deadline(30)) as connection:
        for domain in connection.listAllDomains():
            found += [domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), str(domain.state())]
            found += [str((domain.autostart(), domain.hasManagedSaveImage()))]
            found += [each.getXMLDesc() for each in domain.listAllSnapshots()]
            if uri != TEST_URI:
                found += [each.getName() for each in domain.listAllCheckpoints()]
        for pool in connection.listAllStoragePools():
            root = ET.fromstring(pool.XMLDesc(0))
            for figure in [*root.iterfind("capacity"), *root.iterfind("allocation"), *root.iterfind("available")]:
                root.remove(figure)
            found += [ET.tostring(root, "unicode"), str((pool.isActive(), pool.autostart()))]
            found += [f"{each.path()} {each.info()[:2]}" for each in (pool.listAllVolumes() if pool.isActive() else [])]
        if uri != TEST_URI:  # that driver knows none
            found += [each.XMLDesc() for each in connection.listAllNWFilters()]
        for secret in connection.listAllSecrets() if uri != TEST_URI else []:
            found += [secret.XMLDesc()]
            with suppress(libvirt.libvirtError):  # it is private, or has no value
                found += [secret.value().decode()]
        for network in connection.listAllNetworks():
            found += [network.XMLDesc(), str((network.isActive(), network.autostart()))]
    return sorted(found)


def remove_all(uri: str) -> None:
    """Remove whatever a case made."""
    with opened_host(uri, Deadline(30)) as connection:
        for domain in connection.listAllDomains():
            if domain.name().startswith(PREFIX):
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                domain.undefineFlags(
                    libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                )
        for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            pool.refresh()
            for volume in pool.listAllVolumes():
                if PREFIX in volume.name():  # a backup's names begin with its machine's UUID
                    volume.delete()
        for each in connection.listAllNWFilters():
            if each.name().startswith(PREFIX):
                each.undefine()
        for secret in connection.listAllSecrets():
            if PREFIX in secret.usageID():
                secret.undefine()
        for thing in [*connection.listAllStoragePools(), *connection.listAllNetworks()]:
            if thing.name().startswith(PREFIX):
                if thing.isActive():
                    thing.destroy()
                thing.undefine()


@pytest.fixture
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    """Where the case runs. All that it makes is gone afterwards."""
    file = tmp_path / "disk.img"
    file.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * (4 * 2**20 - 512))
    if request.getfixturevalue("case").on == "test":
        with opened_host(TEST_URI, Deadline(30)):  # it keeps its state while somebody has it open
            yield Hosts(TEST_URI, TEST_URI, file)
        return
    lab: Lab = request.getfixturevalue("lab")
    there = Hosts(lab.host("host1").uri, lab.host("host2").uri, file)
    try:
        yield there
    finally:
        for uri in (there.uri, there.target):
            remove_all(uri)


def told(result: Result) -> dict[str, Any]:
    """Return what a module says about the change: whether there is one, its diff, and its plan."""
    values = result.values
    machines = [*values.get("vms", []), *([values["vm"]] if values.get("vm") else [])]
    answer = success(result, True)
    return {
        "changed": answer["changed"],
        "diff": answer.get("diff"),
        "plan": [values.get("plan"), *(each.get("plan") for each in machines)],
        "needs_power_cycle": [values.get("needs_power_cycle"), *(each.get("needs_power_cycle") for each in machines)],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_check_mode_predicts_what_the_real_run_does_and_the_second_changes_nothing(case: Case, hosts: Hosts) -> None:
    for module, options in case.first:
        hosts.call(module, options)
    untouched = hosts.picture()
    predicted = hosts.call(case.module, case.asked, check=True)
    assert hosts.picture() == untouched
    with emitted_xml.validated():
        done = hosts.call(case.module, case.asked)
    assert told(predicted) == told(done)
    assert done.changed == case.changes
    assert (hosts.picture() != untouched) == case.changes or case.repeats
    if case.repeats:
        return
    left = hosts.picture()
    for check in (True, False):
        again = hosts.call(case.module, case.asked, check=check)
        assert not again.changed, told(again)
        assert again.before == again.after
    assert hosts.picture() == left
