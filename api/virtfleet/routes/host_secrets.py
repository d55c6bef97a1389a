"""`/hosts/{ref}/secrets`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host
from virtfleet.routes import views
from virtfleet.routes.door import items, location_of, once, require
from virtfleet.schemas.host_secrets import HostSecretIn, HostSecretOut
from virtfleet.services import host_secrets
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find

blueprint = APIBlueprint("host_secrets", __name__, tag="hosts")


@blueprint.get("/hosts/<ref>/secrets")
@require("hosts:read")
@blueprint.doc(responses=[200])
def list_host_secrets(ref: str) -> Response:
    """List which secrets libvirt keeps on a host; their values are told to nobody

    As they were last seen.
    """
    with database.read() as session:
        return items([HostSecretOut(**each) for each in host_secrets.of(find(session, Host, "host", ref))])


@blueprint.post("/hosts/<ref>/secrets")
@require("hosts:write")
@blueprint.input(HostSecretIn)
@blueprint.doc(responses=[202])
def keep_host_secret(ref: str, json_data: HostSecretIn) -> Response:
    """Keep a secret with libvirt on a host, or change the one that is for that use"""
    wanted = json_data.model_dump(exclude={"value"})

    def work(session: Session, who: Principal) -> Answer:
        job = host_secrets.keep(session, who, find(session, Host, "host", ref), wanted, json_data.value)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.delete("/hosts/<ref>/secrets/<uuid>")
@require("hosts:write")
@blueprint.doc(responses=[202])
def forget_host_secret(ref: str, uuid: str) -> Response:
    """Have libvirt forget a secret; the job fails while a machine or a pool needs it"""

    def work(session: Session, who: Principal) -> Answer:
        job = host_secrets.forget(session, who, find(session, Host, "host", ref), uuid)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)
