"""The lab itself: it comes up whole, goes without a trace, and breaks and mends on command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest
import yaml
from virtfleet.lab import Lab, LabError, layout, links, processes, programs, registry
from virtfleet.lab import host as hosts
from virtfleet.lab.faults import FAULTS

pytestmark = pytest.mark.lab

DOMAIN = "lab-test"


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Make labs of the test's own, in homes of their own; all are taken down at the end."""
    made: list[Lab] = []

    def make(suffix: str = "a", home: str = "home") -> Lab:
        made.append(Lab(f"test-{os.getpid()}-{suffix}", tmp_path / home, say=print))
        return made[-1]

    yield make
    for lab in made:
        lab.down()


def traces(folder: Path) -> list[str]:
    """Return all that this machine has of the lab with this state folder."""
    lab_id = layout.identity(folder)
    found = [f"interface {name}" for name in os.listdir("/sys/class/net") if lab_id in name]
    found += [f"namespace {name}" for name in (os.listdir("/run/netns") if Path("/run/netns").is_dir() else [])]
    found = [line for line in found if lab_id in line]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path("/proc", entry, "environ").read_bytes()
            command = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        if f"{lab_id}/".encode() in environment or str(folder).encode() in command:
            found.append(f"process {entry} {command.decode(errors='replace')}")
    found += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        if str(folder) in file.read_text():
            found.append(f"loop device {file.read_text()}")
    found += [f"registered {entry}" for entry in registry.entries() if entry.folder == folder]
    if folder.parent.exists():
        found += [f"file {path}" for path in folder.parent.iterdir() if path.name.startswith(folder.name)]
    return found


def namespaces_of(lab: Lab) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/pid") for pid in processes.holders(lab.layout.id).values()}


def processes_in(namespaces: set[str]) -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{entry}/ns/pid") in namespaces:
                found.append(entry)
        except OSError:
            continue
    return found


def states(lab: Lab) -> dict[str, str]:
    return {host["name"]: host["state"] for host in lab.status()["hosts"]}


def faults(lab: Lab, host: str) -> list[str]:
    return [fault["fault"] for row in lab.status()["hosts"] if row["name"] == host for fault in row["faults"]]


def ssh(lab: Lab, host: str, command: str) -> subprocess.CompletedProcess[str]:
    here = lab.layout
    options = ["-F", "none", "-i", str(here.key), "-o", f"UserKnownHostsFile={here.known_hosts}", "-o", "BatchMode=yes"]
    line = ["ssh", *options, "-o", "StrictHostKeyChecking=yes", f"root@{lab.host(host).address}", command]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60)


def connects(address: str, port: int, seconds: float = 10.0) -> bool:
    try:
        socket.create_connection((address, port), timeout=seconds).close()
    except OSError:
        return False
    return True


@pytest.fixture
def guest(lab: Lab) -> Iterator[libvirt.virDomain]:
    """A machine without a disk that runs on host1: enough to be killed."""
    domain = ET.Element("domain", type="qemu")
    ET.SubElement(domain, "name").text = DOMAIN
    ET.SubElement(domain, "memory", unit="MiB").text = "32"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64", machine="pc").text = "hvm"
    connection = libvirt.open(lab.host("host1").uri)
    made = connection.defineXML(ET.tostring(domain, encoding="unicode"))
    try:
        made.create()
        yield made
    finally:
        connection.close()
        again = libvirt.open(lab.host("host1").uri)  # a test may have killed the libvirtd of the first connection
        made = again.lookupByName(DOMAIN)
        with suppress(libvirt.libvirtError):  # it may be stopped, or just be about to be
            made.destroy()
        made.undefine()
        again.close()


# ---- up


def test_every_host_has_its_own_libvirt_that_offers_emulation_only(lab: Lab) -> None:
    uuids = set()
    for host in lab.hosts():
        connection = libvirt.open(host.uri)
        try:
            assert connection.getHostname() == host.name
            capabilities = ET.fromstring(connection.getCapabilities())
            uuids.add(capabilities.findtext("host/uuid"))
            assert {domain.get("type") for domain in capabilities.findall("guest/arch/domain")} == {"qemu"}
            pools = {pool.name(): pool for pool in connection.listAllStoragePools()}
            assert set(pools) == {"default", "shared"}
            assert all(pool.isActive() and pool.autostart() for pool in pools.values())
            (network,) = connection.listAllNetworks()
            assert (network.name(), bool(network.isActive())) == ("default", False)
        finally:
            connection.close()
    assert uuids == {host["uuid"] for host in lab.status()["hosts"]}
    assert len(uuids) == 3


def test_hosts_know_each_other_by_name_and_let_the_labs_key_in(lab: Lab) -> None:
    done = ssh(lab, "host2", "hostname; getent hosts host1 host3; ip -br link show vmbr0; cat /proc/1/comm")
    assert done.returncode == 0, done.stderr
    for word in ("host2", str(lab.host("host1").address), str(lab.host("host3").address), "vmbr0", "tini"):
        assert word in done.stdout
    assert lab.layout.key.stat().st_mode & 0o777 == 0o600
    assert lab.layout.folder.stat().st_mode & 0o777 == 0o700


def test_the_shared_pool_is_one_folder_and_the_private_one_is_each_hosts_own(lab: Lab) -> None:
    shared, private = layout.SHARED_FOLDER / "note", layout.PRIVATE_FOLDER / "note"
    try:
        ssh(lab, "host1", f"echo one > {shared}; echo one > {private}")
        assert ssh(lab, "host3", f"cat {shared}").stdout == "one\n"
        assert ssh(lab, "host3", f"cat {private}").returncode != 0
    finally:
        ssh(lab, "host1", f"rm -f {shared} {private}")


def test_libvirt_answers_on_the_management_address_only_and_guests_have_no_way_back_from_it(lab: Lab) -> None:
    sockets = ssh(lab, "host1", "ss -Hltn").stdout
    address = str(lab.host("host1").address)
    assert re.search(rf"\s{re.escape(address)}:16509\s", sockets)
    assert not re.search(r"(0\.0\.0\.0|\*|\[::\]):(16509|22)\s", sockets)
    routes = ssh(lab, "host1", "ip -4 route").stdout.splitlines()
    assert [line.split()[0] for line in routes] == [str(lab.layout.management)]


def test_the_inventory_names_every_host_and_the_assertion_that_the_shared_pool_is_shared(lab: Lab) -> None:
    status = lab.status()
    tree = yaml.safe_load(Path(status["inventory"]).read_text())["hypervisors"]
    (zone,) = tree["children"].values()
    uris = {name: variables["virtfleet_uri"] for name, variables in zone["hosts"].items()}
    assert uris == {host["name"]: host["uri"] for host in status["hosts"]}
    assert tree["vars"]["virtfleet_shared_pools"] == status["shared_pools"] == ["shared"]
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", status["inventory"], "--list"]
    listed = subprocess.run(command, capture_output=True, check=True)
    assert set(json.loads(listed.stdout)["_meta"]["hostvars"]) == set(uris)


def test_status_tells_the_guests_network_and_the_image(lab: Lab) -> None:
    status = lab.status()
    guests = status["networks"]["guests"]
    assert guests["bridge"] == "vmbr0"
    assert guests["cidr"] == str(lab.layout.guests)
    assert status["image"] is None or Path(status["image"]).is_file()
    own = subprocess.run(["ip", "-4", "-br", "addr"], capture_output=True, text=True, check=True).stdout
    assert f"{guests['gateway']}/{lab.layout.guests.prefixlen}" in own


def test_up_on_a_lab_that_is_up_changes_nothing_and_takes_no_time(lab: Lab) -> None:
    before = processes.holders(lab.layout.id)
    started = time.monotonic()
    lab.up(3)
    assert time.monotonic() - started < 30
    assert processes.holders(lab.layout.id) == before


def test_a_lab_of_three_comes_up_in_seconds_grows_and_leaves_nothing(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    started = time.monotonic()
    assert states_of(lab.up(3, image=False)) == {"host1": "up", "host2": "up", "host3": "up"}
    took = time.monotonic() - started
    print(f"three hosts up in {took:.2f} s")
    assert took < 60
    old = processes.holders(lab.layout.id)
    assert set(states_of(lab.up(4, image=False)).values()) == {"up"}
    assert old.items() <= processes.holders(lab.layout.id).items()
    assert "host4" in ssh(lab, "host1", "getent hosts host4").stdout, "old hosts learn the new one's name"
    assert len(lab.up(2, image=False)["hosts"]) == 4, "a lab does not shrink"
    namespaces = namespaces_of(lab)
    assert len(namespaces) == 4
    assert traces(lab.folder)
    assert lab.down()
    assert traces(lab.folder) == []
    assert processes_in(namespaces) == []
    assert not lab.down(), "taking down what is not there is no error"
    assert traces(lab.folder) == []


def states_of(status: dict[str, object]) -> dict[str, str]:
    rows = status["hosts"]
    assert isinstance(rows, list)
    return {host["name"]: host["state"] for host in rows}


@pytest.mark.parametrize("moment", [0.35, 0.5, 0.7, 1.0])
def test_after_a_run_killed_halfway_up_finishes_and_down_leaves_nothing(
    make_lab: Callable[..., Lab], moment: float
) -> None:
    lab = make_lab()
    home = lab.folder.parents[1]
    command = [sys.executable, "-m", "virtfleet.lab", "up", "--hosts", "2", "--no-image", "--name", lab.name]
    for _ in range(2):
        run = subprocess.Popen(command, env={**os.environ, "VIRTFLEET_HOME": str(home)}, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        run.kill()
        run.wait()
    print(len(traces(lab.folder)), "traces left by the killed runs")
    if moment < 0.6:
        lab.down()
        assert traces(lab.folder) == []
    assert set(states_of(lab.up(2, image=False)).values()) == {"up"}
    lab.down()
    assert traces(lab.folder) == []


def test_mending_a_host_in_the_middle_of_its_boot_lets_the_boot_start_its_libvirtd(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab()
    lab.up(1, image=False)
    lab.fault("power-off", "host1")
    host = lab._layout(lab._recorded()).host(1)
    hosts.start(host, kvm=False)
    while "host1" not in processes.holders(host.lab.id):
        time.sleep(0.005)
    FAULTS["kill-libvirtd"].undo(host, {}, False)  # as `up` does where a run that was killed left a boot going on
    assert len(hosts.libvirtd_of(hosts.holder_of(host, "count"))) == 1
    assert (host.folder / "log" / "boot.log").read_text() == ""
    assert states_of(lab.up(1, image=False)) == {"host1": "up"}


def test_hosts_without_any_record_of_them_are_removed(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.up(1, image=False)
    forgotten = processes.marked(layout.identity(lab.folder))["host1"]
    (lab.folder / "lab.json").unlink()
    registry.release(layout.identity(lab.folder))
    assert states_of(lab.up(1, image=False)) == {"host1": "up"}
    now = processes.marked(layout.identity(lab.folder))["host1"]
    assert not set(now) & set(forgotten), "the forgotten host was replaced, not joined by a second one"
    (lab.folder / "lab.json").unlink()
    registry.release(layout.identity(lab.folder))
    assert lab.down()
    assert traces(lab.folder) == []


def test_two_labs_of_one_name_in_two_homes_live_side_by_side(make_lab: Callable[..., Lab]) -> None:
    one, other = make_lab("a", "one"), make_lab("a", "other")
    assert one.name == other.name
    one.up(1, image=False)
    other.up(1, image=False)
    for mine, theirs in ((one.layout.management, other.layout.management), (one.layout.guests, other.layout.guests)):
        assert not mine.overlaps(theirs)
    holder = processes.holders(other.layout.id)
    one.down()
    assert processes.holders(other.layout.id) == holder
    assert states(other) == {"host1": "up"}
    assert ssh(other, "host1", "hostname").stdout == "host1\n"


def test_a_subnet_that_the_machine_uses_otherwise_is_not_taken(make_lab: Callable[..., Lab]) -> None:
    in_use, slots = links.networks_in_use("none"), {entry.slot for entry in registry.entries()}
    lab = make_lab()
    lab.up(1, image=False)
    mine = (lab.layout.management, lab.layout.guests)
    assert not any(network.overlaps(other) for network in mine for other in in_use)
    assert lab.layout.slot not in slots


def test_a_killed_command_of_somebody_else_with_a_forged_mark_is_let_alone() -> None:
    forged = {"PATH": "/usr/bin:/bin", programs.MARK: "abcdef/host1"}
    theirs = subprocess.Popen(["sleep", "30"], env=forged, user="nobody")
    try:
        time.sleep(0.1)
        assert processes.marked("abcdef") == {}
        assert processes.kill("abcdef", None) == []
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


@pytest.mark.parametrize("name", ["", "../x", "Lab", "a b", "a" * 32, "lab\n", "{{ 1 }}", "-x", "é"])
def test_a_name_that_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="Failed to name the lab"):
        Lab(name, tmp_path)


@pytest.mark.parametrize("count", [0, -1, 21])
def test_a_number_of_hosts_that_cannot_be_is_refused_before_anything_is_made(count: int, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="1 to 20 hosts"):
        Lab("x", tmp_path).up(count)
    assert list(tmp_path.iterdir()) == []


def test_missing_programs_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"missing: ip, .*apt-get install .* libvirt-daemon "):
        Lab("x", tmp_path).up(1)


def test_status_of_a_lab_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="virtfleet lab up --name nosuch"):
        Lab("nosuch", tmp_path).status()


# ---- faults


def test_a_killed_libvirtd_leaves_guests_running_and_comes_back(lab: Lab, guest: libvirt.virDomain) -> None:
    lab.fault("kill-libvirtd", "host1")
    assert states(lab)["host1"] == "no-libvirtd"
    assert faults(lab, "host1") == ["kill-libvirtd"]
    assert not connects(str(lab.host("host1").address), 16509)
    assert any("qemu" in process.command for process in processes.within(hosts.holder_of(lab.host("host1"), "look")))
    lab.undo("host1")
    assert states(lab)["host1"] == "up"
    assert faults(lab, "host1") == []
    again = libvirt.open(lab.host("host1").uri)
    assert again.lookupByName(DOMAIN).isActive(), "the guest went on"
    again.close()


def test_a_frozen_libvirtd_takes_connections_and_answers_nothing_until_it_is_thawed(lab: Lab) -> None:
    host = lab.host("host2")
    lab.fault("freeze-libvirtd", "host2")
    try:
        started = time.monotonic()
        assert states(lab)["host2"] == "frozen"
        assert time.monotonic() - started < 30, "looking at a frozen host does not hang"
        assert connects(str(host.address), 16509), "the kernel still takes connections for it"
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["virsh", "-c", host.uri, "list"], timeout=1.5, capture_output=True, check=True)
    finally:
        lab.undo("host2", "freeze-libvirtd")
    assert states(lab)["host2"] == "up"


def test_a_host_without_power_is_gone_and_comes_back_with_its_disks(lab: Lab) -> None:
    host = lab.host("host3")
    private = layout.PRIVATE_FOLDER / "survivor"
    assert ssh(lab, "host3", f"echo here > {private}").returncode == 0
    inside = namespaces_of(lab)
    lab.fault("power-off", "host3")
    assert states(lab)["host3"] == "down"
    assert not connects(str(host.address), 22, 0.5)
    assert len(inside) - len(namespaces_of(lab)) == 1
    assert not links.namespaces(host.namespace)
    lab.undo("host3")
    assert states(lab)["host3"] == "up"
    assert ssh(lab, "host3", f"cat {private}; rm {private}").stdout == "here\n"
    connection = libvirt.open(host.uri)
    assert {pool.name() for pool in connection.listAllStoragePools() if pool.isActive()} == {"default", "shared"}
    connection.close()


def test_up_mends_a_lab_whose_hosts_died_or_were_broken(lab: Lab) -> None:
    os.kill(processes.holders(lab.layout.id)["host1"], signal.SIGKILL)
    lab.fault("power-off", "host2")
    lab.fault("cut-link", "host3", link="both")
    (libvirtd,) = hosts.libvirtd_of(processes.holders(lab.layout.id)["host3"])
    os.kill(libvirtd.pid, signal.SIGSTOP)
    assert set(states_of(lab.up(image=False)).values()) == {"up"}
    assert [fault for host in lab.status()["hosts"] for fault in host["faults"]] == []


@pytest.mark.parametrize(("link", "reachable"), [("management", False), ("guests", True), ("both", False)])
def test_a_cut_link_separates_the_host_until_it_is_mended(lab: Lab, link: str, reachable: bool) -> None:
    host = lab.host("host1")
    lab.fault("cut-link", "host1", link=link)
    try:
        assert links.is_up(host.guest_link) == (link == "management")
        assert connects(str(host.address), 22, 0.5) == reachable
        assert states(lab)["host1"] == ("up" if reachable else "unreachable")
    finally:
        lab.undo("host1")
    assert connects(str(host.address), 22)
    assert states(lab)["host1"] == "up"


def seconds_to_fetch(lab: Lab, host: str, size: int) -> float:
    started = time.monotonic()
    done = ssh(lab, host, f"head -c {size} /dev/zero")
    assert len(done.stdout) == size
    return time.monotonic() - started


def test_a_slow_link_is_slow_both_ways_until_it_is_mended(lab: Lab) -> None:
    size = 128 * 1024
    fast = min(seconds_to_fetch(lab, "host2", size) for _ in range(3))
    lab.fault("slow-link", "host2", rate_kbit=512)
    try:
        assert seconds_to_fetch(lab, "host2", size) > fast + 1, "128 KiB at 512 kbit/s take two seconds"
        assert states(lab)["host2"] == "up", "slow is not gone"
    finally:
        lab.undo("host2")
    assert min(seconds_to_fetch(lab, "host2", size) for _ in range(3)) < fast + 1


def seconds_to_connect(address: str, port: int) -> float:
    started = time.monotonic()
    assert connects(address, port)
    return time.monotonic() - started


def test_a_delay_is_real_or_refused_with_the_reason_and_another_way(lab: Lab) -> None:
    address = str(lab.host("host2").address)
    try:
        lab.fault("slow-link", "host2", delay_ms=300)
    except LabError as error:
        assert "sch_netem" in str(error) and "--rate-kbit" in str(error)
        assert faults(lab, "host2") == [], "what did not happen is not recorded"
    else:
        assert seconds_to_connect(address, 22) > 0.25
    finally:
        lab.undo("host2")
    assert min(seconds_to_connect(address, 22) for _ in range(10)) < 0.2


def test_a_killed_guest_is_seen_dead_by_libvirt_and_starts_again(lab: Lab, guest: libvirt.virDomain) -> None:
    assert lab.fault("kill-guest", "host1", guest=DOMAIN) == {"fault": "kill-guest", "guest": DOMAIN}
    deadline = time.monotonic() + 60
    while guest.isActive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not guest.isActive()
    lab.undo("host1")
    assert guest.isActive()


def test_a_guest_that_does_not_run_cannot_be_killed(lab: Lab) -> None:
    with pytest.raises(LabError, match="no QEMU of that name"):
        lab.fault("kill-guest", "host1", guest="{{ nosuch }}")
    assert faults(lab, "host1") == []


def test_a_full_pool_has_no_byte_left_and_costs_the_machine_nothing(lab: Lab) -> None:
    free_before = os.statvfs(lab.folder).f_bavail * os.statvfs(lab.folder).f_frsize
    connection = libvirt.open(lab.host("host2").uri)
    pool = connection.storagePoolLookupByName("default")
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = "one-more"
    ET.SubElement(volume, "capacity", unit="MiB").text = "1"
    ET.SubElement(volume, "allocation", unit="MiB").text = "1"
    try:
        lab.fault("fill-pool", "host2")
        assert pool.info()[3] < 32 * 1024**2, "what libvirt calls available: ext4 keeps 16 MiB for itself"
        with pytest.raises(libvirt.libvirtError):
            pool.createXML(ET.tostring(volume, encoding="unicode"))
        taken = free_before - os.statvfs(lab.folder).f_bavail * os.statvfs(lab.folder).f_frsize
        assert taken < 1024**3, "20 GiB were filled, none of them on the machine's disk"
        lab.undo("host2")
        pool.createXML(ET.tostring(volume, encoding="unicode")).delete()
        assert pool.info()[3] > 10 * 1024**3
    finally:
        lab.undo("host2")
        connection.close()


def test_unknown_hosts_faults_and_options_are_refused_by_name(lab: Lab) -> None:
    with pytest.raises(LabError, match="no such host"):
        lab.fault("power-off", "host9")
    with pytest.raises(LabError, match="no such fault"):
        lab.fault("explode", "host1")
    with pytest.raises(LabError, match="power-off knows no link"):
        lab.fault("power-off", "host1", link="both")
    with pytest.raises(LabError, match="no link 'x'"):
        lab.fault("cut-link", "host1", link="x")
    assert faults(lab, "host1") == []


# ---- the command


def test_the_command_shows_and_breaks_and_mends(lab: Lab) -> None:
    environment = {**os.environ, "VIRTFLEET_HOME": str(lab.folder.parents[1])}

    def virtfleet(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "virtfleet.lab", *words, "--name", lab.name]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)

    assert json.loads(virtfleet("status", "-o", "json").stdout) == lab.status()
    assert virtfleet("status", "-o", "name").stdout.split() == ["host1", "host2", "host3"]
    broken = virtfleet("fault", "kill-libvirtd", "host3")
    assert (broken.returncode, broken.stdout) == (0, ""), broken.stderr
    assert "no-libvirtd" in virtfleet("status").stdout
    assert "undone: kill-libvirtd" in virtfleet("fault", "undo", "host3").stderr
    wrong = virtfleet("fault", "cut-link", "host77")
    assert wrong.returncode == 1
    assert "It has: host1, host2, host3." in wrong.stderr
    assert "Traceback" not in wrong.stderr
