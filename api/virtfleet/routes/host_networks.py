"""`/hosts/{ref}/networks`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host
from virtfleet.routes import views
from virtfleet.routes.door import answer, items, location_of, once, require
from virtfleet.schemas.host_networks import HostNetworkIn, HostNetworkOut, HostNetworkRemoval
from virtfleet.services import host_networks
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find

blueprint = APIBlueprint("host_networks", __name__, tag="hosts")


@blueprint.get("/hosts/<ref>/networks")
@require("hosts:read")
@blueprint.doc(responses=[200])
def list_host_networks(ref: str) -> Response:
    """List libvirt's networks of a host, with what they have given by DHCP

    As they were last seen.
    """
    with database.read() as session:
        return items([HostNetworkOut(**each) for each in host_networks.of(find(session, Host, "host", ref))])


@blueprint.get("/hosts/<ref>/networks/<name>")
@require("hosts:read")
@blueprint.output(HostNetworkOut)
def get_host_network(ref: str, name: str) -> Response:
    """Show one of libvirt's networks of a host"""
    with database.read() as session:
        return answer(HostNetworkOut(**host_networks.find(find(session, Host, "host", ref), name)))


@blueprint.put("/hosts/<ref>/networks/<name>")
@require("hosts:write")
@blueprint.input(HostNetworkIn)
@blueprint.doc(responses=[202])
def define_host_network(ref: str, name: str, json_data: HostNetworkIn) -> Response:
    """Define a network of libvirt on a host, or change it to be so

    Reserved addresses and names change while it is active; the rest only when it is stopped and started, which must be
    allowed with `restart`.
    """
    given = json_data.model_dump(exclude_none=True)

    def work(session: Session, who: Principal) -> Answer:
        job = host_networks.define(session, who, find(session, Host, "host", ref), name, given)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(given, work)


@blueprint.delete("/hosts/<ref>/networks/<name>")
@require("hosts:write")
@blueprint.input(HostNetworkRemoval, location="query")
@blueprint.doc(responses=[202])
def remove_host_network(ref: str, name: str, query_data: HostNetworkRemoval) -> Response:
    """Remove a network of libvirt from a host, unless machines use it"""

    def work(session: Session, who: Principal) -> Answer:
        host = find(session, Host, "host", ref)
        job = host_networks.remove(session, who, host, name, force=query_data.force)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(query_data.model_dump(), work)
