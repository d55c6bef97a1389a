"""A running guest moves between two hosts of the lab while it answers. Libvirt and the lab do it alone."""

import json
import shutil
import subprocess
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import libvirt
import pytest
from virtfleet.lab import Lab, layout, processes
from virtfleet.lab import host as hosts

pytestmark = pytest.mark.lab

NAME = "traveller"
MAC = "52:54:00:00:77:01"
EVERY_SECONDS = 0.05
BOOT_SECONDS = 180.0  # six when the machine is idle
# Libvirt 9.0 takes no plain folder for shared storage and refuses the migration as unsafe. The lab mounted this folder
# into every host itself and recorded so ("shared_pools" of its status), which is what makes the flag right here.
FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_UNSAFE
)


@pytest.fixture
def address(lab: Lab) -> str:
    return str(lab.layout.guests[200])


@pytest.fixture
def guest(lab: Lab, address: str, tmp_path: Path) -> Iterator[libvirt.virDomain]:
    """The small guest with a disk in the shared pool, up and answering on host1."""
    image = lab.status()["image"]
    assert image, "the lab was brought up with its image"
    base, disk, seed = (lab.layout.shared / f"{NAME}-{part}" for part in ("base.qcow2", "disk.qcow2", "seed.iso"))
    shutil.copyfile(image, base)
    make_disk = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, str(disk)]
    subprocess.run(make_disk, check=True, cwd=base.parent)
    make_seed(lab, address, tmp_path, seed)
    connection = libvirt.open(lab.host("host1").uri)
    try:
        connection.defineXML(domain_xml(disk.name, seed.name)).create()
        wait_for_answer(address)
        yield connection.lookupByName(NAME)
    finally:
        for host in lab.hosts():
            remove_from(host)
        connection.close()
        for file in (base, disk, seed):
            file.unlink(missing_ok=True)


def make_seed(lab: Lab, address: str, folder: Path, seed: Path) -> None:
    content = folder / "seed"
    content.mkdir()
    network = {
        "version": 2,
        "ethernets": {
            "net0": {
                "match": {"macaddress": MAC},
                "addresses": [f"{address}/{lab.layout.guests.prefixlen}"],
                "gateway4": str(lab.layout.gateway),
            }
        },
    }
    (content / "meta-data").write_text(json.dumps({"instance-id": "i-1", "local-hostname": NAME}))
    (content / "user-data").write_text("#cloud-config\n{}\n")
    (content / "network-config").write_text(json.dumps(network))
    make = ["xorriso", "-as", "mkisofs", "-quiet", "-J", "-V", "cidata", "-o", str(seed), str(content)]
    subprocess.run(make, check=True, capture_output=True)


def domain_xml(disk: str, seed: str) -> str:
    domain = ET.Element("domain", type="qemu")
    ET.SubElement(domain, "name").text = NAME
    ET.SubElement(domain, "memory", unit="MiB").text = "128"
    ET.SubElement(domain, "vcpu").text = "1"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64", machine="pc").text = "hvm"
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    ET.SubElement(ET.SubElement(domain, "cpu", mode="custom"), "model").text = "qemu64"
    devices = ET.SubElement(domain, "devices")
    for target, file, kind in (("vda", disk, "qcow2"), ("vdb", seed, "raw")):
        element = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(element, "driver", name="qemu", type=kind)
        ET.SubElement(element, "source", file=str(layout.SHARED_FOLDER / file))
        ET.SubElement(element, "target", dev=target, bus="virtio")
        if kind == "raw":
            ET.SubElement(element, "readonly")
    interface = ET.SubElement(devices, "interface", type="bridge")
    ET.SubElement(interface, "source", bridge=layout.GUEST_BRIDGE)
    ET.SubElement(interface, "mac", address=MAC)
    ET.SubElement(interface, "model", type="virtio")
    return ET.tostring(domain, encoding="unicode")


def remove_from(host: layout.HostLayout) -> None:
    connection = libvirt.open(host.uri)
    for domain in connection.listAllDomains():
        if domain.name() == NAME:
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    connection.close()


def ask(address: str, timeout: float = 2.0) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=timeout) as answer:
        return str(answer.read().decode()).strip()


def wait_for_answer(address: str) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            assert ask(address) == NAME
            return
        except OSError:
            assert time.monotonic() < deadline, f"the guest did not answer on {address} within {BOOT_SECONDS} s"
            time.sleep(0.1)


class Client:
    """Asks the guest every 50 ms, each time anew and without waiting for the answer before."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._asked: list[Future[str]] = []
        self._pool = ThreadPoolExecutor(max_workers=60)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self._asked.append(self._pool.submit(ask, self._address))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def outcome(self) -> tuple[int, int]:
        """Return how many requests there were and how many got no answer."""
        lost = sum(1 for asked in self._asked if asked.exception() is not None)
        return len(self._asked), lost


def running_on(lab: Lab) -> list[str]:
    """Return the hosts in which a QEMU of the guest runs, by their processes and not by libvirt's word."""
    return [
        host.name
        for host in lab.hosts()
        for process in processes.within(hosts.holder_of(host, "look"))
        if any(word.startswith(f"guest={NAME},") for word in processes.arguments(process.pid))
    ]


def test_a_running_guest_migrates_and_goes_on_answering(lab: Lab, guest: libvirt.virDomain, address: str) -> None:
    assert running_on(lab) == ["host1"]
    with Client(address) as client:
        time.sleep(1)
        started = time.monotonic()
        guest.migrateToURI3(lab.host("host2").uri, {}, FLAGS)
        took = time.monotonic() - started
        time.sleep(1.5)
    asked, lost = client.outcome()
    print(f"migrated in {took:.2f} s; {lost} of {asked} requests, {EVERY_SECONDS * 1000:.0f} ms apart, were lost")
    assert asked > 10
    assert lost < asked / 2, "none to ten when the machine is idle"
    assert running_on(lab) == ["host2"]
    assert ask(address) == NAME
    source, target = libvirt.open(lab.host("host1").uri), libvirt.open(lab.host("host2").uri)
    try:
        assert NAME not in [domain.name() for domain in source.listAllDomains()]
        assert target.lookupByName(NAME).isActive()
    finally:
        source.close()
        target.close()


def test_libvirt_itself_refuses_the_folder_so_the_labs_assertion_is_needed(lab: Lab, guest: libvirt.virDomain) -> None:
    with pytest.raises(libvirt.libvirtError) as refusal:
        guest.migrateToURI3(lab.host("host2").uri, {}, FLAGS & ~libvirt.VIR_MIGRATE_UNSAFE)
    assert refusal.value.get_error_code() == libvirt.VIR_ERR_MIGRATE_UNSAFE
    assert running_on(lab) == ["host1"]
    assert lab.status()["shared_pools"] == ["shared"]
