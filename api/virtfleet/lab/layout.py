"""What a lab is called everywhere: identity, folders, interfaces, addresses. Pure."""

import base64
import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

MAX_HOSTS = 20
SLOTS = 64  # so many pairs of subnets there are to choose from
GUEST_BRIDGE = "vmbr0"
LIBVIRT_PORT = 16509
SHARED_FOLDER = Path("/var/lib/libvirt/shared")  # the same path in every host
PRIVATE_FOLDER = Path("/var/lib/libvirt/images")


def management_network(slot: int) -> IPv4Network:
    """Return the subnet over which the machine and the hosts talk."""
    return IPv4Network(f"10.77.{slot}.0/24")


def guest_network(slot: int) -> IPv4Network:
    """Return the subnet of the guests, one L2 over all hosts."""
    return IPv4Network(f"10.78.{4 * slot}.0/22")


def identity(folder: Path) -> str:
    """Return the lab's id, six letters and digits that follow from where its state lies.

    A crashed run's leftovers are recognised by it, even if every record is lost.
    """
    return base64.b32encode(hashlib.sha256(str(folder).encode()).digest())[:6].decode().lower()


@dataclass(frozen=True, slots=True)
class HostLayout:
    """Names and places of one host."""

    lab: "Layout"
    number: int

    @property
    def name(self) -> str:
        """The host's name, the same inside and outside."""
        return f"host{self.number}"

    @property
    def folder(self) -> Path:
        """The host's state: its disks, libvirt's configuration, logs."""
        return self.lab.folder / "hosts" / self.name

    @property
    def address(self) -> IPv4Address:
        """The host's address on the management network."""
        return self.lab.management[10 + self.number]

    @property
    def uri(self) -> str:
        """The libvirt URI by which the machine reaches the host."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return f"{self.lab.prefix}-{self.name}"

    def mac(self, interface: str) -> str:
        """Return the hardware address of one of the host's interfaces: the same at every boot, another in every lab."""
        digest = hashlib.sha256(f"{self.lab.folder}/{self.name}/{interface}".encode()).digest()
        return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # 02: locally administered

    @property
    def management_link(self) -> str:
        """The machine's end of the host's management cable."""
        return f"{self.lab.prefix}m{self.number}"

    @property
    def guest_link(self) -> str:
        """The machine's end of the host's cable into the guests' network."""
        return f"{self.lab.prefix}g{self.number}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and places of one lab. Interface names stay within the kernel's 15 characters."""

    name: str
    folder: Path
    slot: int

    @property
    def id(self) -> str:
        """Six characters that mark all that belongs to this lab."""
        return identity(self.folder)

    @property
    def prefix(self) -> str:
        """The beginning of the name of each of its interfaces and namespaces."""
        return f"vf{self.id}"

    @property
    def management(self) -> IPv4Network:
        """The subnet of machine and hosts."""
        return management_network(self.slot)

    @property
    def guests(self) -> IPv4Network:
        """The subnet of the guests."""
        return guest_network(self.slot)

    @property
    def gateway(self) -> IPv4Address:
        """The machine's own address among the guests."""
        return self.guests[1]

    @property
    def management_bridge(self) -> str:
        """The machine's bridge that joins the hosts."""
        return f"{self.prefix}m"

    @property
    def guest_bridge(self) -> str:
        """The machine's bridge that joins the hosts' `vmbr0` into one L2."""
        return f"{self.prefix}g"

    @property
    def shared(self) -> Path:
        """The folder that every host sees as SHARED_FOLDER."""
        return self.folder / "shared"

    @property
    def key(self) -> Path:
        """The private SSH key that every host lets in as root."""
        return self.folder / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' SSH host keys."""
        return self.folder / "ssh" / "known_hosts"

    @property
    def hosts_file(self) -> Path:
        """What every host sees as /etc/hosts."""
        return self.folder / "hosts.txt"

    @property
    def inventory(self) -> Path:
        """The Ansible inventory of the lab."""
        return self.folder / "inventory" / "hosts.yml"

    def host(self, number: int) -> HostLayout:
        """Return names and places of the host with this number (from 1)."""
        return HostLayout(self, number)
