"""Addresses: reserved with the machine, kept over restarts and migrations, released when it is deleted."""

import ipaddress
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.models import Address, Network, Vm
from virtfleet.services import nwfilters

QEMU_PREFIX = "52:54:00"
"""The prefix that QEMU's machines use; the rest is random."""


def _new_mac(session: Session) -> str:
    while True:
        mac = ":".join([QEMU_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])
        if session.scalar(select(Address.id).where(Address.mac == mac)) is None:
            return mac


def _free(session: Session, network: Network, wanted: str | None) -> str | None:
    if network.kind == "nat":
        if wanted is not None:
            raise Problem(
                "invalid", f"Network {network.name!r} hands out addresses by DHCP.", "Leave the address away."
            )
        return None
    taken = set(session.scalars(select(Address.address).where(Address.network_id == network.id)))
    first = ipaddress.IPv4Address(network.first or "")
    last = ipaddress.IPv4Address(network.last or "")
    if wanted is not None:
        try:
            address = ipaddress.IPv4Address(wanted)
        except ValueError as error:
            raise Problem("invalid", "The address is not an IPv4 address.", f"Use {first} to {last}.") from error
        if not first <= address <= last:
            raise Problem("invalid", f"{address} is not an address of {network.name!r}.", f"Use {first} to {last}.")
        if str(address) in taken:
            raise Problem("conflict", f"Another machine has the address {address}.", "Choose another, or none.")
        return str(address)
    for value in range(int(first), int(last) + 1):
        address = ipaddress.IPv4Address(value)
        if str(address) not in taken and str(address) != network.gateway:
            return str(address)
    raise Problem(
        "no_capacity",
        f"Network {network.name!r} has no free address left of {first} to {last}.",
        "Delete machines, or add a network with more addresses.",
    )


def reserve(
    session: Session, vm: Vm, network: Network, wanted: str | None = None, nwfilter: str | None = None
) -> Address:
    """Give the machine an address (none on a network with DHCP) and a MAC; note its card's filter. Raises Problem."""
    address = _free(session, network, wanted)
    row = Address(
        id=new_id("adr"),
        network_id=network.id,
        address=address,
        mac=_new_mac(session),
        vm_id=vm.id,
        position=len(vm.addresses),
        filter=None if nwfilter == nwfilters.NONE else nwfilter,
    )
    row.network = network
    vm.addresses.append(row)
    session.flush()
    return row
