"""Zones and their networks."""

import ipaddress
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from virtfleet import names
from virtfleet.errors import Problem, not_found
from virtfleet.ids import new_id
from virtfleet.models import Address, Host, Network, Zone
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find

DEFAULT_ZONE = "default"


def create(session: Session, who: Principal, name: str) -> Zone:
    """Make a zone. Raises Problem `already_exists`."""
    names.check(name, "zone")
    if session.scalar(select(Zone).where(Zone.name == name)) is not None:
        raise Problem("already_exists", f"There is a zone {name!r} already.", "Choose another name.")
    zone = Zone(id=new_id("zon"), name=name)
    session.add(zone)
    session.flush()
    ledger.audit(session, who, "zone.create", zone.id)
    ledger.changed(session, "zone", zone.id, "created", None)
    return zone


def ensure(session: Session, who: Principal, name: str) -> Zone:
    """Return the zone, making it when it does not exist."""
    return session.scalar(select(Zone).where(Zone.name == name)) or create(session, who, name)


def delete(session: Session, who: Principal, ref: str) -> None:
    """Remove a zone that has no hosts. Raises Problem `in_use`."""
    zone = find(session, Zone, "zone", ref)
    if session.scalar(select(func.count()).select_from(Host).where(Host.zone_id == zone.id)):
        raise Problem("in_use", f"Zone {zone.name!r} still has hosts.", "Move or remove its hosts first.")
    for network in networks(session, zone):
        session.delete(network)
    session.flush()
    session.delete(zone)
    ledger.audit(session, who, "zone.delete", zone.id)
    ledger.changed(session, "zone", zone.id, "deleted", None)


def choose(session: Session, name: str | None) -> Zone:
    """Return the zone asked for, or `default`, or the only one there is. Raises Problem."""
    if name is not None:
        return find(session, Zone, "zone", name)
    zones = list(session.scalars(select(Zone).order_by(Zone.name)))
    if not zones:
        raise Problem("not_ready", "The fleet has no hosts yet.", "Add one: virtfleet host add URI.")
    for zone in zones:
        if zone.name == DEFAULT_ZONE or len(zones) == 1:
            return zone
    raise Problem(
        "invalid",
        "There are several zones and none of them is called 'default'.",
        f"Say which one with zone: {', '.join(zone.name for zone in zones)}.",
    )


def networks(session: Session, zone: Zone) -> Sequence[Network]:
    """Return the zone's networks, the one made first at the front: it is the default."""
    return session.scalars(select(Network).where(Network.zone_id == zone.id).order_by(Network.id)).all()


def network(session: Session, zone: Zone, ref: str | None) -> Network:
    """Return the network asked for, or the zone's first. Raises Problem."""
    known = networks(session, zone)
    if ref is None:
        if not known:
            raise Problem("not_ready", f"Zone {zone.name!r} has no network.", "Add one: virtfleet network add --zone …")
        return known[0]
    for candidate in known:
        if ref in (candidate.id, candidate.name):
            return candidate
    raise not_found("network", ref)


def _range(cidr: str, gateway: str | None, first: str | None, last: str | None) -> tuple[str, str]:
    """Return the first and last address to hand out; checks that all of them lie in `cidr`."""
    net = ipaddress.IPv4Network(cidr)
    if net.num_addresses < 4:
        raise ValueError(f"{cidr} has no addresses to hand out")
    start = ipaddress.IPv4Address(first) if first else net.network_address + 2
    end = ipaddress.IPv4Address(last) if last else net.broadcast_address - 1
    for address in (start, end, *([ipaddress.IPv4Address(gateway)] if gateway else [])):
        if address not in net or address in (net.network_address, net.broadcast_address):
            raise ValueError(f"{address} is not a host address of {cidr}")
    if start > end:
        raise ValueError(f"the range begins at {start} and ends before it, at {end}")
    return str(start), str(end)


def add_network(
    session: Session,
    who: Principal,
    *,
    name: str,
    zone: str,
    kind: str,
    source: str,
    cidr: str | None = None,
    gateway: str | None = None,
    first: str | None = None,
    last: str | None = None,
    dns: Sequence[str] = (),
) -> Network:
    """Register a network that the hosts of a zone have. Raises Problem."""
    names.check(name, "network")
    names.check(source, "bridge" if kind == "bridge" else "libvirt network")
    where = find(session, Zone, "zone", zone)
    if any(known.name == name for known in networks(session, where)):
        raise Problem("already_exists", f"Zone {where.name!r} has a network {name!r} already.", "Choose another name.")
    if kind == "bridge":
        if cidr is None:
            raise Problem("invalid", "A bridge network needs its addresses.", "Give cidr, such as 10.78.0.0/24.")
        try:
            first, last = _range(cidr, gateway, first, last)
        except ValueError as error:
            raise Problem("invalid", f"The network {name!r} cannot be used: {error}.", "Mend the addresses.") from error
    row = Network(
        id=new_id("net"),
        name=name,
        zone_id=where.id,
        kind=kind,
        source=source,
        cidr=cidr,
        gateway=gateway,
        first=first,
        last=last,
        dns=list(dns),
    )
    session.add(row)
    session.flush()
    ledger.audit(session, who, "network.create", row.id)
    ledger.changed(session, "network", row.id, "created", None)
    return row


def remove_network(session: Session, who: Principal, ref: str) -> None:
    """Forget a network that no machine is joined to. Raises Problem `in_use`."""
    row = find(session, Network, "network", ref)
    held = session.scalar(select(func.count()).select_from(Address).where(Address.network_id == row.id))
    if held:
        raise Problem("in_use", f"{held} machines are joined to network {row.name!r}.", "Delete them first.")
    session.delete(row)
    ledger.audit(session, who, "network.delete", row.id)
    ledger.changed(session, "network", row.id, "deleted", None)
