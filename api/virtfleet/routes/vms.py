"""`/vms` and `/placements`."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host, Vm, Zone
from virtfleet.routes import views
from virtfleet.routes.door import answer, caller, items, location_of, once, one, require, ring_later, unchanged
from virtfleet.schemas.vm_settings import VmSettings
from virtfleet.schemas.vms import PlacementIn, VmAction, VmIn, VmOut, VmPatch, VmQuery, VmsAccepted, VmWish
from virtfleet.services import vms
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.paging import page
from virtfleet.services.vms import NewVm

blueprint = APIBlueprint("vms", __name__, tag="vms")


def _new(wish: VmWish) -> NewVm:
    given = wish.model_dump()
    given["memory_bytes"] = given.pop("memory")
    given["disk_bytes"] = given.pop("disk")
    given["max_memory_bytes"] = given.pop("max_memory")
    return NewVm(**given)


@blueprint.get("/vms")
@require("vms:read")
@blueprint.input(VmQuery, location="query")
def list_vms(query_data: VmQuery) -> Response:
    """List machines"""
    who = caller()
    with database.read() as session:
        query = select(Vm)
        if not who.admin:
            query = query.where(Vm.project_id == who.project_id)
        if query_data.state is not None:
            query = query.where(Vm.state == query_data.state)
        if query_data.name is not None:
            query = query.where(Vm.name == query_data.name)
        if query_data.host is not None:
            query = query.where(Vm.host_id == find(session, Host, "host", query_data.host).id)
        if query_data.zone is not None:
            query = query.where(Vm.zone_id == find(session, Zone, "zone", query_data.zone).id)
        found = page(session, query, Vm.number, limit=query_data.limit, cursor=query_data.cursor)
        return items(views.all_vms(session, found.rows), found.next)


@blueprint.post("/vms")
@require("vms:write")
@blueprint.input(VmIn)
@blueprint.output(VmsAccepted, status_code=202)
def create_vms(json_data: VmIn) -> Response:
    """Create one machine, or several

    Hosts, addresses and disks are reserved in this call; a job then makes the machines. When not all of them fit, none
    is reserved and the answer has the reasons of every host.
    """
    new = _new(json_data)

    def work(session: Session, who: Principal) -> Answer:
        job, made = vms.create(session, who, new)
        body: dict[str, Any] = views.accepted(session, job)
        body["vms"] = [views.vm(session, vm).model_dump(mode="json") for vm in made]
        return Answer(202, body, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.get("/vms/<ref>")
@require("vms:read")
@blueprint.output(VmOut)
def get_vm(ref: str) -> Response:
    """Show a machine"""
    with database.read() as session:
        return one(views.vm(session, find(session, Vm, "vm", ref, caller())))


@blueprint.patch("/vms/<ref>")
@require("vms:write")
@blueprint.input(VmPatch)
@blueprint.doc(responses=[202])
def change_vm(ref: str, json_data: VmPatch) -> Response:
    """Change what a machine has

    It is reserved in this call; a job then gives it, without a reboot as far as that goes. What holds only from the
    next boot on is told by the job's result. When the job fails, the reservation is taken back. A disk never shrinks.
    A new name needs a machine that is stopped, or `allow_power_cycle`. `xml_patch` is for administrators.
    """
    sizes = {"memory", "max_memory", "disk", "grow_disk_by", "io"}
    steps = json_data.xml_patch
    wanted = vms.Resize(
        **json_data.model_dump(exclude={*sizes, *VmSettings.model_fields}),
        settings=json_data.given_settings(),
        xml_patch=() if steps is None else [step.model_dump(exclude_none=True) for step in steps],
        memory_bytes=json_data.memory,
        max_memory_bytes=json_data.max_memory,
        disk_bytes=json_data.disk,
        grow_disk_by_bytes=json_data.grow_disk_by,
        io=None if json_data.io is None else json_data.io.given(),
    )

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        unchanged(vm.generation)
        job = vms.resize(session, who, vm, wanted)
        body: dict[str, Any] = views.accepted(session, job)
        body["vm"] = views.vm(session, vm).model_dump(mode="json")
        return Answer(202, body, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.delete("/vms/<ref>")
@require("vms:write")
@blueprint.doc(responses=[202])
def delete_vm(ref: str) -> Response:
    """Delete a machine with the volumes that were made for it

    Bases, ISOs and volumes that were attached to it stay. A creation under way is cancelled and undone.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        unchanged(vm.generation)
        job, to_ring = vms.delete(session, who, vm)
        ring_later(session, to_ring)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)


@blueprint.post("/vms/<ref>/actions")
@require("vms:write")
@blueprint.input(VmAction)
@blueprint.doc(responses=[202])
def act_on_vm(ref: str, json_data: VmAction) -> Response:
    """Start, stop, reboot, reset, pause, resume or save a machine

    A machine that was saved is stopped; the next start lets it go on where it was.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job = vms.act(session, who, vm, json_data.action, force=json_data.force, grace=json_data.grace)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/placements")
@require("vms:read")
@blueprint.input(PlacementIn)
def try_placement(json_data: PlacementIn) -> Response:
    """Show where machines would go, and why

    Nothing is reserved.
    """
    new = _new(json_data)
    with database.read() as session:
        return answer(vms.try_out(session, caller(), new))
