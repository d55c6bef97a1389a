"""`/vms/{ref}/clone`."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet.models import Vm
from virtfleet.routes import views
from virtfleet.routes.door import location_of, once, require
from virtfleet.schemas.clones import CloneIn
from virtfleet.schemas.vms import VmsAccepted
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.vms import cloning
from virtfleet.services.vms.cloning import NewClone

blueprint = APIBlueprint("clones", __name__, tag="vms")


@blueprint.post("/vms/<ref>/clone")
@require("vms:write")
@blueprint.input(CloneIn)
@blueprint.output(VmsAccepted, status_code=202)
def clone_vm(ref: str, json_data: CloneIn) -> Response:
    """Make a machine like another one

    Room and addresses are reserved in this call. A clone with copied disks is made on the host of the other one, which
    must be stopped unless an external snapshot is named, and is left as it is; a fresh one goes where placement says.
    With `delete_source` the other one is deleted, after the new one was made.
    """

    def work(session: Session, who: Principal) -> Answer:
        source = find(session, Vm, "vm", ref, who)
        job, made = cloning.clone(session, who, source, NewClone(**json_data.model_dump()))
        body: dict[str, Any] = views.accepted(session, job)
        body["vms"] = [views.vm(session, made).model_dump(mode="json")]
        return Answer(202, body, location_of(job.id))

    return once(json_data.model_dump(), work)
