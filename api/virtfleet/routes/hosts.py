"""`/hosts`, `/zones`, `/networks`, `/capacity`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host, Network, Zone
from virtfleet.routes import views
from virtfleet.routes.door import answer, caller, items, location_of, once, one, require, unchanged
from virtfleet.schemas.base import Paging, Query
from virtfleet.schemas.hosts import HostIn, HostOut, HostPatch, NetworkIn, NetworkOut, ZoneIn, ZoneOut
from virtfleet.services import capacity, hosts, zones
from virtfleet.services.auth import Principal
from virtfleet.services.hosts import HostUpdate
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.paging import page

blueprint = APIBlueprint("hosts", __name__, tag="hosts")


class HostQuery(Paging):
    """Which hosts."""

    zone: str | None = None
    state: str | None = None


class ZoneQuery(Query):
    """Of which zone."""

    zone: str | None = None


@blueprint.get("/hosts")
@require("hosts:read")
@blueprint.input(HostQuery, location="query")
def list_hosts(query_data: HostQuery) -> Response:
    """List hosts"""
    with database.read() as session:
        query = select(Host)
        if query_data.zone is not None:
            query = query.where(Host.zone_id == find(session, Zone, "zone", query_data.zone).id)
        if query_data.state is not None:
            query = query.where(Host.state == query_data.state)
        found = page(session, query, Host.number, limit=query_data.limit, cursor=query_data.cursor)
        return items(views.all_hosts(session, found.rows), found.next)


@blueprint.post("/hosts")
@require("hosts:write")
@blueprint.input(HostIn)
@blueprint.doc(responses=[202])
def add_host(json_data: HostIn) -> Response:
    """Register a host

    A job looks at what it has. Nothing on the host changes.
    """

    def work(session: Session, who: Principal) -> Answer:
        row, job = hosts.register(session, who, **json_data.model_dump())
        shown = views.all_hosts(session, [row])[0]
        body = {**views.accepted(session, job), "host": shown.model_dump(mode="json")}
        return Answer(202, body, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.get("/hosts/<ref>")
@require("hosts:read")
@blueprint.doc(responses=[200])
def get_host(ref: str) -> Response:
    """Show a host"""
    with database.read() as session:
        return one(views.all_hosts(session, [find(session, Host, "host", ref)])[0])


@blueprint.patch("/hosts/<ref>")
@require("hosts:write")
@blueprint.input(HostPatch)
@blueprint.output(HostOut)
def change_host(ref: str, json_data: HostPatch) -> Response:
    """Change a host's maintenance flag, zone or reserves"""
    given = json_data.model_dump()
    given["reserved_memory_bytes"] = given.pop("reserved_memory")
    with database.write() as session:
        row = find(session, Host, "host", ref)
        unchanged(row.generation)
        hosts.update(session, caller(), row, HostUpdate(**given))
        return one(views.all_hosts(session, [row])[0])


@blueprint.delete("/hosts/<ref>")
@require("hosts:write")
@blueprint.doc(responses=[204])
def remove_host(ref: str) -> Response:
    """Forget a host without machines

    Nothing on the host changes.
    """
    with database.write() as session:
        row = find(session, Host, "host", ref)
        unchanged(row.generation)
        hosts.remove(session, caller(), row)
    return Response(status=204)


@blueprint.post("/hosts/<ref>/discover")
@require("hosts:write")
@blueprint.doc(responses=[202])
def discover_host(ref: str) -> Response:
    """Look at what a host has"""

    def work(session: Session, who: Principal) -> Answer:
        job = hosts.discover(session, who, find(session, Host, "host", ref))
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)


@blueprint.get("/zones")
@require("hosts:read")
@blueprint.input(Paging, location="query")
def list_zones(query_data: Paging) -> Response:
    """List zones"""
    with database.read() as session:
        found = page(session, select(Zone), Zone.name, limit=query_data.limit, cursor=query_data.cursor)
        return items([ZoneOut.of(row) for row in found.rows], found.next)


@blueprint.post("/zones")
@require("hosts:write")
@blueprint.input(ZoneIn)
@blueprint.doc(responses=[201])
def add_zone(json_data: ZoneIn) -> Response:
    """Make a zone"""

    def work(session: Session, who: Principal) -> Answer:
        row = zones.create(session, who, json_data.name)
        return Answer(201, ZoneOut.of(row).model_dump(mode="json"), f"/api/v1/zones/{row.id}")

    return once(json_data.model_dump(), work)


@blueprint.get("/zones/<ref>")
@require("hosts:read")
@blueprint.output(ZoneOut)
def get_zone(ref: str) -> Response:
    """Show a zone"""
    with database.read() as session:
        return one(ZoneOut.of(find(session, Zone, "zone", ref)))


@blueprint.delete("/zones/<ref>")
@require("hosts:write")
@blueprint.doc(responses=[204])
def remove_zone(ref: str) -> Response:
    """Remove a zone without hosts"""
    with database.write() as session:
        unchanged(find(session, Zone, "zone", ref).generation)
        zones.delete(session, caller(), ref)
    return Response(status=204)


@blueprint.get("/networks")
@require("hosts:read")
@blueprint.input(Paging, location="query")
def list_networks(query_data: Paging) -> Response:
    """List networks"""
    with database.read() as session:
        found = page(session, select(Network), Network.id, limit=query_data.limit, cursor=query_data.cursor)
        names = {zone.id: zone.name for zone in session.scalars(select(Zone))}
        return items([NetworkOut.of(row, names[row.zone_id]) for row in found.rows], found.next)


@blueprint.post("/networks")
@require("hosts:write")
@blueprint.input(NetworkIn)
@blueprint.doc(responses=[201])
def add_network(json_data: NetworkIn) -> Response:
    """Register a network that the hosts of a zone have"""

    def work(session: Session, who: Principal) -> Answer:
        zone = zones.ensure(session, who, json_data.zone)
        row = zones.add_network(session, who, **{**json_data.model_dump(), "zone": zone.id})
        return Answer(201, NetworkOut.of(row, zone.name).model_dump(mode="json"), f"/api/v1/networks/{row.id}")

    return once(json_data.model_dump(), work)


@blueprint.get("/networks/<ref>")
@require("hosts:read")
@blueprint.output(NetworkOut)
def get_network(ref: str) -> Response:
    """Show a network"""
    with database.read() as session:
        row = find(session, Network, "network", ref)
        zone = session.get_one(Zone, row.zone_id)
        return one(NetworkOut.of(row, zone.name))


@blueprint.delete("/networks/<ref>")
@require("hosts:write")
@blueprint.doc(responses=[204])
def remove_network(ref: str) -> Response:
    """Forget a network that no machine is joined to"""
    with database.write() as session:
        unchanged(find(session, Network, "network", ref).generation)
        zones.remove_network(session, caller(), ref)
    return Response(status=204)


@blueprint.get("/capacity")
@require("hosts:read")
@blueprint.input(ZoneQuery, location="query")
def show_capacity(query_data: ZoneQuery) -> Response:
    """Show what the fleet has, has promised and has left"""
    with database.read() as session:
        zone = find(session, Zone, "zone", query_data.zone) if query_data.zone else None
        return answer(capacity.report(session, zone))
