"""`/vms/{ref}/exec`, `/vms/{ref}/guest` and `/vms/{ref}/guest-info`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet.models import Vm
from virtfleet.routes import views
from virtfleet.routes.door import location_of, once, require
from virtfleet.schemas.guests import ExecIn, GuestIn
from virtfleet.services import guests
from virtfleet.services.auth import Principal
from virtfleet.services.guests import Wish
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find

blueprint = APIBlueprint("guests", __name__, tag="vms")


@blueprint.post("/vms/<ref>/exec")
@require("vms:exec")
@blueprint.input(ExecIn)
@blueprint.doc(responses=[202])
def run_in_vm(ref: str, json_data: ExecIn) -> Response:
    """Run a program inside a machine

    The guest agent in the machine runs it. The job's result has, per host, `vms` with `rc`, `stdout` and `stderr`.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job = guests.run(session, who, vm, **json_data.model_dump())
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/vms/<ref>/guest")
@require("vms:exec")
@blueprint.input(GuestIn)
@blueprint.doc(responses=[202])
def change_guest(ref: str, json_data: GuestIn) -> Response:
    """Freeze or thaw a machine's file systems, write a file, set SSH keys or a password in it

    The guest agent in the machine does it.
    """

    def work(session: Session, who: Principal) -> Answer:
        given = json_data.model_dump()
        file = given.pop("file")
        wish = Wish(**given, file=(file["path"], file["content"]) if file else None)
        job = guests.change(session, who, find(session, Vm, "vm", ref, who), wish)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/vms/<ref>/guest-info")
@require("vms:write")
@blueprint.doc(responses=[202])
def ask_vm(ref: str) -> Response:
    """Ask a machine's guest agent for addresses, file systems, operating system and more

    The job's result has, per host, `vms` with `guest`.
    """

    def work(session: Session, who: Principal) -> Answer:
        job = guests.ask(session, who, find(session, Vm, "vm", ref, who))
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)
