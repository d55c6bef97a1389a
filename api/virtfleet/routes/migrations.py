"""`/vms/{ref}/migrate` and `/hosts/{ref}/evacuate`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet.models import Host, Vm
from virtfleet.routes import views
from virtfleet.routes.door import location_of, once, require
from virtfleet.schemas.migrations import EvacuateIn, Evacuation, MigrateIn, MigrationAccepted, PreflightIn, WayIn
from virtfleet.services import evacuation, vms
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.vms import Way

blueprint = APIBlueprint("migrations", __name__, tag="migrations")


def _way(given: WayIn) -> Way:
    values = given.model_dump(include=set(WayIn.model_fields))
    return Way(bandwidth_bytes=values.pop("bandwidth"), **values)


@blueprint.post("/vms/<ref>/migrate")
@require("vms:write")
@blueprint.input(MigrateIn)
@blueprint.output(MigrationAccepted, status_code=202)
def migrate_vm(ref: str, json_data: MigrateIn) -> Response:
    """Move a machine to another host, while it runs

    Room on the target is reserved in this call. The machine keeps its address. When it cannot be moved in time it stays
    where it is.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        came_from = vm.host.name
        job, step = vms.migrate(
            session, who, vm, host=json_data.host, came_from=json_data.came_from, way=_way(json_data)
        )
        body = {
            **views.accepted(session, job),
            "vm": vm.name,
            "from": came_from,
            "host": step.target.name,
            "explanation": dict(step.explanation),
        }
        return Answer(202, body, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/vms/<ref>/preflight")
@require("vms:write")
@blueprint.input(PreflightIn)
@blueprint.doc(responses=[202])
def judge_hosts(ref: str, json_data: PreflightIn) -> Response:
    """Find out which hosts could take a machine, and why not

    The job's result has a verdict for each other host of the zone. Nothing is changed or reserved.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job = vms.preflight(session, who, vm, copy_storage=json_data.copy_storage)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/hosts/<ref>/evacuate")
@require("hosts:write")
@blueprint.input(EvacuateIn)
@blueprint.output(Evacuation, status_code=202)
@blueprint.doc(responses=[200])
def evacuate_host(ref: str, json_data: EvacuateIn) -> Response:
    """Put a host into maintenance and move all its machines to other hosts

    200 without a job when there is nothing that could be moved. `PATCH` with `maintenance: false` takes it back.
    """

    def work(session: Session, who: Principal) -> Answer:
        host = find(session, Host, "host", ref)
        job, plan = evacuation.evacuate(session, who, host, policy=json_data.policy, way=_way(json_data))
        body = {**(views.accepted(session, job) if job else {"job": None}), "host": host.name, **plan}
        return Answer(202 if job else 200, body, location_of(job.id) if job else None)

    return once(json_data.model_dump(), work)
