"""`/vms/{ref}/checkpoints`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Vm
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, require
from virtfleet.schemas.checkpoints import CheckpointIn, CheckpointOut
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.vms import checkpoints

blueprint = APIBlueprint("checkpoints", __name__, tag="vms")


@blueprint.get("/vms/<ref>/checkpoints")
@require("vms:read")
@blueprint.doc(responses=[200])
def list_checkpoints(ref: str) -> Response:
    """List the checkpoints of a machine, oldest first

    As the last job about them saw them; those that backups make are told by it, too.
    """
    with database.read() as session:
        vm = find(session, Vm, "vm", ref, caller())
        return items([CheckpointOut.of(row) for row in checkpoints.all_of(session, vm)])


@blueprint.post("/vms/<ref>/checkpoints")
@require("vms:write")
@blueprint.input(CheckpointIn)
@blueprint.doc(responses=[202])
def make_checkpoint(ref: str, json_data: CheckpointIn) -> Response:
    """Note what changes on a machine's disks from now on

    For programs that make backups of their own. The machine must run.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job, name = checkpoints.create(session, who, vm, json_data.name, json_data.description)
        return Answer(202, {**views.accepted(session, job), "checkpoint": name}, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.delete("/vms/<ref>/checkpoints/<name>")
@require("vms:write")
@blueprint.doc(responses=[202])
def delete_checkpoint(ref: str, name: str) -> Response:
    """Delete a checkpoint; the one before it then notes what it did"""

    def work(session: Session, who: Principal) -> Answer:
        job = checkpoints.delete(session, who, find(session, Vm, "vm", ref, who), name)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)
