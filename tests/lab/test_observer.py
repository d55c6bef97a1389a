"""The observer on real hosts: what happens behind the fleet's back gets into its rows; a bad host hurts nobody else."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import pytest
from sqlalchemy import select
from virtfleet import clock, database, migrations, settings
from virtfleet.ids import new_id
from virtfleet.lab import Lab
from virtfleet.models import Change, Host, Job, Lease, Project, User, Vm, Zone

pytestmark = pytest.mark.lab

T = TypeVar("T")
HOST_TIMEOUT = 4.0
OBSERVE_SECONDS = 1.0
HOSTS = ("host1", "host2", "host3")
BOUND = 60.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""
NEVER = "36000"
"""Seconds; for a setting whose time must not come during a test."""
MIB = 2**20
GIB = 2**30
FOLLOWED = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE


def eventually(look: Callable[[], T | None], seconds: float = BOUND) -> T:
    """Return what `look` returns once that is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"it did not come about within {seconds:g} s"
        time.sleep(0.05)
    return found


@dataclass
class Fleet:
    """A fleet's database with the lab's hosts, its observer as a process, and machines on the hosts."""

    lab: Lab
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    made: list[str] = field(default_factory=list)

    def start(self, **environment: str) -> None:
        """Start an observer; it is at work, and can be told to stop, when this returns."""
        with (self.folder / "observer.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "virtfleet.observer"], stderr=log, env={**os.environ, **environment}
            )
        mine = f":{self.process.pid}"
        eventually(lambda: (held := self.lease()) is not None and held.holder.endswith(mine))

    @contextlib.contextmanager
    def observed_with(self, **environment: str) -> Iterator[None]:
        """Have an observer with other settings for a while; it has seen every host when the block begins."""
        self.stop()
        seen = {name: self.host(name).observed_at for name in HOSTS}
        self.start(**environment)
        try:
            eventually(lambda: all(self.host(name).observed_at != before for name, before in seen.items()))
            yield
        finally:
            self.stop()
            self.start()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                assert process.wait(BOUND) == 0
            finally:
                process.kill()

    def lease(self) -> Lease | None:
        with database.read() as session:
            found = session.get(Lease, "observer")
            session.expunge_all()
            return found

    def log(self) -> str:
        return (self.folder / "observer.log").read_text()

    def add_host(self, name: str, number: int, uri: str, **variables: Any) -> None:
        with database.write() as session:
            session.add(Host(id=f"hst_{name}", number=number, name=name, uri=uri, zone_id="zon_1", variables=variables))

    def host(self, name: str) -> Host:
        with database.read() as session:
            found = session.scalar(select(Host).where(Host.name == name))
            assert found is not None
            session.expunge_all()
            return found

    def wait_until_up(self, *names: str) -> None:
        # A host that was down for a while is tried only every 30 s.
        eventually(lambda: all(self.host(name).state == "up" for name in names), 2 * BOUND)

    def vm(self, name: str) -> Vm:
        with database.read() as session:
            found = session.scalar(select(Vm).where(Vm.name == name))
            assert found is not None
            session.expunge_all()
            return found

    def wait_for(self, name: str, state: str, host: str | None = None) -> float:
        """Wait until the machine's row says `state` (on `host`); return how long it took, in seconds."""
        begun = time.monotonic()

        def is_so() -> bool:
            row = self.vm(name)
            return row.state == state and host in (None, row.host.name)

        eventually(is_so)
        return time.monotonic() - begun

    def define(self, host: str, name: str) -> str:
        """Define a machine without disks on a host, as somebody with virsh would; return its UUID."""
        identifier = str(uuid.uuid4())
        with self.connection(host) as there:
            there.defineXML(domain_xml(name, identifier))
        self.made.append(name)
        return identifier

    def add_vm(self, host: str, name: str, state: str = "stopped", **values: Any) -> str:
        """Define a machine and give it a row; return its UUID."""
        identifier = self.define(host, name)
        row: dict[str, Any] = {
            "number": 1000 + len(self.made),
            "libvirt_name": name,
            "vcpus": 1,
            "memory_bytes": 32 * MIB,
            "disk_bytes": 0,
            "pool": "default",
            "policy": "bin_packing",
        }
        with database.write() as session:
            session.add(
                Vm(
                    **(row | values),
                    id=new_id("vm"),
                    uuid=identifier,
                    name=name,
                    state=state,
                    host_id=f"hst_{host}",
                    zone_id="zon_1",
                    project_id="prj_1",
                    owner_id="usr_1",
                )
            )
        return identifier

    @contextlib.contextmanager
    def connection(self, host: str) -> Iterator[libvirt.virConnect]:
        there = libvirt.open(self.lab.host(host).uri)
        try:
            yield there
        finally:
            there.close()

    def act(self, host: str, name: str, verb: str) -> None:
        """Have libvirt do something to a machine behind the fleet's back: create, destroy, suspend, undefine, …."""
        with self.connection(host) as there:
            getattr(there.lookupByName(name), verb)()

    def children(self) -> list[int]:
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def remove_machines(self) -> None:
        for host in self.lab.hosts():
            with self.connection(host.name) as there:
                for domain in there.listAllDomains():
                    if domain.name() in self.made:
                        if domain.isActive():
                            domain.destroy()
                        with contextlib.suppress(libvirt.libvirtError):  # transient
                            domain.undefine()
        self.made.clear()
        with database.write() as session:
            for vm in session.scalars(select(Vm)).unique():
                session.delete(vm)


def domain_xml(name: str, identifier: str) -> str:
    """Return a machine that finds nothing to boot from: it costs next to no processor time."""
    domain = ET.Element("domain", type="qemu")
    ET.SubElement(domain, "name").text = name
    ET.SubElement(domain, "uuid").text = identifier
    ET.SubElement(domain, "memory", unit="MiB").text = "32"
    ET.SubElement(domain, "vcpu").text = "1"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64", machine="pc").text = "hvm"
    ET.SubElement(ET.SubElement(domain, "cpu", mode="custom"), "model").text = "qemu64"
    ET.SubElement(domain, "devices")
    return ET.tostring(domain, encoding="unicode")


@pytest.fixture(scope="module")
def observed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("observed")
        patch.setenv("VIRTFLEET_HOME", str(folder / "home"))
        patch.setenv("VIRTFLEET_HOST_TIMEOUT", str(HOST_TIMEOUT))
        patch.setenv("VIRTFLEET_OBSERVE_SECONDS", str(OBSERVE_SECONDS))
        settings.load.cache_clear()
        migrations.upgrade()
        fleet = Fleet(lab, folder)
        with database.write() as session:
            session.add(Project(id="prj_1", name="default"))
            session.flush()
            session.add(User(id="usr_1", name="admin", project_id="prj_1"))
            session.add(Zone(id="zon_1", name="zone-a"))
        for number, host in enumerate(lab.hosts()[:3], start=1):
            fleet.add_host(host.name, number, host.uri, virtfleet_shared_pools=["shared"])
        try:
            fleet.start()
            fleet.wait_until_up(*HOSTS)
            yield fleet
        finally:
            print(fleet.log())
            fleet.stop()
            database.dispose()
            settings.load.cache_clear()


@pytest.fixture
def fleet(observed: Fleet) -> Iterator[Fleet]:
    """The fleet, every host up before the test and again after it, the test's machines gone."""
    yield observed
    for host in observed.lab.hosts():
        observed.lab.undo(host.name)
    observed.wait_until_up(*HOSTS)
    observed.remove_machines()


def test_what_a_host_has_is_recorded(fleet: Fleet) -> None:
    host = eventually(lambda: row if (row := fleet.host("host1")).info["load"]["cpu_percent"] is not None else None)
    with fleet.connection("host1") as there:
        assert host.info["vcpus"]["total"] == there.getInfo()[2]
    assert host.info["memory"]["total_bytes"] > GIB
    assert {pool["name"]: pool["shared"] for pool in host.info["pools"]} == {"default": False, "shared": True}
    assert 0 <= host.info["load"]["cpu_percent"] <= 100
    assert "machines" not in host.info
    assert host.error is None


def test_a_host_that_answers_is_seen_again_and_again_and_that_is_no_change(fleet: Fleet) -> None:
    before = fleet.host("host1")
    after = eventually(lambda: row if (row := fleet.host("host1")).observed_at != before.observed_at else None)
    assert (after.generation, after.updated_at) == (before.generation, before.updated_at)
    assert after.observed_at is not None
    assert clock.now() - after.observed_at < timedelta(seconds=BOUND)


def test_what_is_done_to_a_machine_behind_our_back_is_told_by_its_host_at_once(fleet: Fleet) -> None:
    fleet.add_vm("host1", "obs-life")
    before = fleet.vm("obs-life").generation
    steps = [("create", "running"), ("suspend", "paused"), ("resume", "running"), ("destroy", "stopped")]
    took = []
    with fleet.observed_with(VIRTFLEET_OBSERVE_SECONDS=NEVER):  # so nobody finds it by looking
        for verb, state in steps:
            fleet.act("host1", "obs-life", verb)
            took.append(fleet.wait_for("obs-life", state))
    print("recorded after", [f"{seconds:.2f} s" for seconds in took])
    row = fleet.vm("obs-life")
    assert row.generation >= before + len(steps)
    with database.read() as session:
        told = session.scalars(select(Change).where(Change.id == row.id).order_by(Change.seq)).all()
        assert [change.data["state"] for change in told][-1] == "stopped"
        assert {(change.type, change.action, change.project_id) for change in told} == {("vm", "updated", "prj_1")}


def test_a_machine_that_a_job_holds_is_left_to_the_job(fleet: Fleet) -> None:
    job = Job(id=new_id("job"), number=1, kind="vm.start", state="running", project_id="prj_1", owner_id="usr_1")
    with database.write() as session:
        session.add(job)
    fleet.add_vm("host1", "obs-held", job_id=job.id)
    fleet.act("host1", "obs-held", "create")
    seen = fleet.host("host1").observed_at
    eventually(lambda: fleet.host("host1").observed_at != seen)
    time.sleep(2.5)
    assert fleet.vm("obs-held").state == "stopped"
    with database.write() as session:
        held = session.get(Job, job.id)
        assert held is not None
        held.state, held.ended_at = "succeeded", clock.now()
    fleet.wait_for("obs-held", "running")


def test_a_machine_that_is_not_ours_counts_as_unmanaged(fleet: Fleet) -> None:
    before = fleet.host("host2").unmanaged
    fleet.define("host2", "obs-foreign")
    fleet.add_vm("host2", "obs-ours")
    expected = {"vcpus": before["vcpus"] + 1, "memory_bytes": before["memory_bytes"] + 32 * MIB}
    eventually(lambda: fleet.host("host2").unmanaged.items() >= expected.items())
    time.sleep(2.5)
    assert fleet.host("host2").unmanaged.items() >= expected.items(), "ours is not counted"
    fleet.act("host2", "obs-foreign", "undefine")
    eventually(lambda: fleet.host("host2").unmanaged["vcpus"] == before["vcpus"])


def test_volumes_that_are_not_ours_count_as_unmanaged(fleet: Fleet) -> None:
    before = fleet.host("host2").unmanaged["pools"]["default"]
    fleet.add_vm("host2", "obs-disk", disk_bytes=10 * MIB)
    with fleet.connection("host2") as there:
        pool = there.storagePoolLookupByName("default")
        made = [pool.createXML(volume_xml(f"obs-{size}", size)) for size in (10 * MIB, 3 * MIB)]
        try:
            eventually(lambda: fleet.host("host2").unmanaged["pools"]["default"] == before + 3 * MIB)
        finally:
            for volume in made:
                volume.delete()


def volume_xml(name: str, size: int) -> str:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", unit="bytes").text = str(size)
    ET.SubElement(volume, "allocation").text = "0"
    return ET.tostring(volume, encoding="unicode")


def test_a_machine_that_its_host_no_longer_has_is_missing_and_comes_back(fleet: Fleet) -> None:
    identifier = fleet.add_vm("host3", "obs-gone")
    fleet.act("host3", "obs-gone", "undefine")
    fleet.wait_for("obs-gone", "missing")
    assert fleet.vm("obs-gone").host.name == "host3"
    with fleet.connection("host3") as there:
        there.defineXML(domain_xml("obs-gone", identifier))
    fleet.wait_for("obs-gone", "stopped")


@pytest.mark.parametrize("flags", [FOLLOWED, libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST])
def test_a_machine_is_followed_when_somebody_migrates_it(fleet: Fleet, flags: int) -> None:
    fleet.add_vm("host1", "obs-moved")
    fleet.act("host1", "obs-moved", "create")
    fleet.wait_for("obs-moved", "running", host="host1")
    with fleet.connection("host1") as source:
        source.lookupByName("obs-moved").migrateToURI3(
            fleet.lab.host("host2").uri, {}, flags | libvirt.VIR_MIGRATE_PEER2PEER
        )
    took = fleet.wait_for("obs-moved", "running", host="host2")
    print(f"followed after {took:.2f} s")
    time.sleep(2.5)
    assert (fleet.vm("obs-moved").host.name, fleet.vm("obs-moved").state) == ("host2", "running")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("freeze-libvirtd", "did not answer"),
        ("kill-libvirtd", "Check that the host is up"),
        ("power-off", "Check that the host is up"),
        ("cut-link", "Check that the host is up"),
    ],
)
def test_a_bad_host_is_down_with_a_sentence_while_the_others_go_on(fleet: Fleet, fault: str, sentence: str) -> None:
    fleet.add_vm("host1", "obs-bad", state="stopped")
    fleet.add_vm("host2", "obs-good")
    fleet.act("host1", "obs-bad", "create")
    fleet.wait_for("obs-bad", "running")
    begun = time.monotonic()
    fleet.lab.fault(fault, "host1")
    fleet.act("host2", "obs-good", "create")
    fleet.wait_for("obs-good", "running")
    eventually(lambda: fleet.host("host1").state == "down")
    print(f"down after {time.monotonic() - begun:.1f} s: {fleet.host('host1').error}")
    fleet.act("host2", "obs-good", "destroy")
    fleet.wait_for("obs-good", "stopped")
    # What is known of why gets better with each try.
    eventually(lambda: sentence in (fleet.host("host1").error or ""))
    bad = fleet.host("host1")
    last_seen = bad.observed_at
    time.sleep(2.0)
    assert (fleet.vm("obs-bad").state, fleet.host("host1").observed_at) == ("running", last_seen)
    begun = time.monotonic()
    fleet.lab.undo("host1")
    fleet.wait_until_up("host1")
    print(f"up again after {time.monotonic() - begun:.1f} s")
    assert fleet.host("host1").error is None
    fleet.wait_for("obs-bad", "stopped" if fault == "power-off" else "running")


def test_a_host_that_keeps_its_watcher_waiting_keeps_no_other_waiting(fleet: Fleet) -> None:
    fleet.add_vm("host2", "obs-good")
    # So long may host1 be silent before anybody gives it up: all that follows happens meanwhile.
    with fleet.observed_with(VIRTFLEET_HOST_TIMEOUT="600"):
        fleet.lab.fault("freeze-libvirtd", "host1")
        time.sleep(2 * OBSERVE_SECONDS)  # by now its watcher asks, and gets no answer
        for verb, state in (("create", "running"), ("destroy", "stopped")):
            fleet.act("host2", "obs-good", verb)
            fleet.wait_for("obs-good", state)
        assert fleet.host("host1").state == "up", "it was given up already; nobody was kept waiting"


def test_a_host_that_is_added_is_seen_and_one_that_is_removed_is_let_go(fleet: Fleet) -> None:
    fleet.add_host("nowhere", 9, "qemu+tcp://127.0.0.1:1/system")
    begun = time.monotonic()
    eventually(lambda: fleet.host("nowhere").state == "down")
    print(f"known to be down after {time.monotonic() - begun:.1f} s")
    with database.write() as session:
        session.delete(session.get(Host, "hst_nowhere"))
    eventually(lambda: "nowhere is no longer watched" in fleet.log())
    eventually(lambda: len(fleet.children()) == 3)


def test_the_observer_says_that_it_is_alive(fleet: Fleet) -> None:
    row = fleet.lease()
    assert row is not None
    assert row.until > clock.now()
    eventually(lambda: (later := fleet.lease()) is not None and later.until > row.until)


def test_children_end_with_a_killed_observer_and_a_new_one_goes_on(fleet: Fleet) -> None:
    assert fleet.process is not None
    children = fleet.children()
    assert len(children) == 3
    fleet.process.send_signal(signal.SIGKILL)
    fleet.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    fleet.add_vm("host1", "obs-later")
    fleet.act("host1", "obs-later", "create")
    fleet.start()
    fleet.wait_for("obs-later", "running")


def test_an_observer_that_is_told_to_stop_leaves_nothing(fleet: Fleet) -> None:
    children = fleet.children()
    fleet.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert fleet.lease() is None
    assert "Traceback" not in fleet.log()
    fleet.start()
    eventually(lambda: len(fleet.children()) == 3)


def test_a_killed_child_is_replaced(fleet: Fleet) -> None:
    victim = fleet.children()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in fleet.children() and len(fleet.children()) == 3)
    fleet.wait_until_up(*HOSTS)
