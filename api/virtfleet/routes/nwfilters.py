"""`/hosts/{ref}/nwfilters`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host
from virtfleet.routes import views
from virtfleet.routes.door import items, location_of, once, require
from virtfleet.schemas.nwfilters import NwfilterIn, NwfilterOut, rules_of
from virtfleet.services import nwfilters
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find

blueprint = APIBlueprint("nwfilters", __name__, tag="hosts")


@blueprint.get("/hosts/<ref>/nwfilters")
@require("hosts:read")
@blueprint.doc(responses=[200])
def list_nwfilters(ref: str) -> Response:
    """List libvirt's network filters of a host

    As they were last seen.
    """
    with database.read() as session:
        return items([NwfilterOut(name=name) for name in nwfilters.of(find(session, Host, "host", ref))])


@blueprint.put("/hosts/<ref>/nwfilters/<name>")
@require("hosts:write")
@blueprint.input(NwfilterIn)
@blueprint.doc(responses=[202])
def define_nwfilter(ref: str, name: str, json_data: NwfilterIn) -> Response:
    """Define a network filter on a host, or change it

    Its rules hold at once for machines that run with it. The job's result has, per host, `nwfilter` with its rules;
    with an empty body nothing changes, and that is all the job does.
    """
    given = rules_of(json_data)

    def work(session: Session, who: Principal) -> Answer:
        job = nwfilters.define(session, who, find(session, Host, "host", ref), name, given)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(given, work)


@blueprint.delete("/hosts/<ref>/nwfilters/<name>")
@require("hosts:write")
@blueprint.doc(responses=[202])
def remove_nwfilter(ref: str, name: str) -> Response:
    """Remove a network filter from a host; the job fails while machines or other filters use it"""

    def work(session: Session, who: Principal) -> Answer:
        job = nwfilters.remove(session, who, find(session, Host, "host", ref), name)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)
