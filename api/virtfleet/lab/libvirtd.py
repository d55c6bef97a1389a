"""What the lab asks of its hosts' libvirtd: the pools and the network that every host has."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import PRIVATE_FOLDER, SHARED_FOLDER, HostLayout

POOLS = {"default": PRIVATE_FOLDER, "shared": SHARED_FOLDER}
SHARED_POOLS = ["shared"]
ANSWER_SECONDS = 10.0
NAT_NETWORK = "default"


@contextmanager
def connected(host: HostLayout, wanted: str) -> Iterator[libvirt.virConnect]:
    """Give a connection to the host's libvirtd; what it refuses, or does not answer in time, becomes a LabError."""
    try:
        with opened_host(host.uri, Deadline(ANSWER_SECONDS)) as connection:
            yield connection
    except (VirtfleetError, libvirt.libvirtError) as error:
        raise LabError(wanted, f"libvirtd of {host.name} says: {error}", "See virtfleet lab status.") from error


def ensure_pools(host: HostLayout) -> None:
    """Define, start and autostart the pools, and define libvirt's NAT network, where they are missing."""
    with connected(host, f"make the pools of {host.name}") as connection:
        pools = {pool.name(): pool for pool in connection.listAllStoragePools()}
        for name, folder in POOLS.items():
            pool = pools.get(name) or connection.storagePoolDefineXML(_pool_xml(name, folder))
            if not pool.isActive():
                pool.create()
            if not pool.autostart():
                pool.setAutostart(1)
        if NAT_NETWORK not in {network.name() for network in connection.listAllNetworks()}:
            connection.networkDefineXML(_nat_xml())


def probe_capabilities(host: HostLayout) -> None:
    """Let the host's libvirt find out what QEMU can do, which it keeps in its cache."""
    with connected(host, f"ask {host.name} what it can do") as connection:
        connection.getCapabilities()


def answers(host: HostLayout) -> bool:
    """Say whether the host's libvirtd answers."""
    try:
        with connected(host, "greet") as connection:
            return bool(connection.getLibVersion())
    except LabError:
        return False


def refresh_pool(host: HostLayout, name: str) -> None:
    """Let libvirt look at the pool again, so that its figures are those of the disk."""
    with connected(host, f"refresh the pool {name} of {host.name}") as connection:
        connection.storagePoolLookupByName(name).refresh()


def start_domain(host: HostLayout, name: str) -> None:
    """Start a guest that is defined and does not run; one that runs, or is defined no more, is left alone."""
    with connected(host, f"start the guest {name} on {host.name}") as connection:
        for domain in connection.listAllDomains():
            if domain.name() == name and not domain.isActive():
                domain.create()


def _pool_xml(name: str, folder: Path) -> str:
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = name
    ET.SubElement(ET.SubElement(pool, "target"), "path").text = str(folder)
    return ET.tostring(pool, encoding="unicode")


def _nat_xml() -> str:
    network = ET.Element("network")
    ET.SubElement(network, "name").text = NAT_NETWORK
    ET.SubElement(network, "forward", mode="nat")
    ET.SubElement(network, "bridge", name="virbr0", stp="on", delay="0")
    ip = ET.SubElement(network, "ip", address="192.168.122.1", netmask="255.255.255.0")
    ET.SubElement(ET.SubElement(ip, "dhcp"), "range", start="192.168.122.2", end="192.168.122.254")
    return ET.tostring(network, encoding="unicode")
