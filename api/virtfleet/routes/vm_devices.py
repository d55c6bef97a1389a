"""`/vms/{ref}/disks` and `/vms/{ref}/nics`."""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Job, Vm
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, require, unchanged
from virtfleet.schemas.vm_devices import DiskIn, DiskOut, DiskPatch, NicIn, NicOut, NicPatch
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.vms import disks, nics

blueprint = APIBlueprint("vm_devices", __name__, tag="vms")


def _vm(session: Session, who: Principal, ref: str) -> Vm:
    vm = find(session, Vm, "vm", ref, who)
    unchanged(vm.generation)
    return vm


def _accepted(session: Session, job: Job, **more: Any) -> Answer:
    return Answer(202, {**views.accepted(session, job), **more}, location_of(job.id))


def _disk(disk: dict[str, Any]) -> DiskOut:
    size = disk["size_bytes"]
    return DiskOut(**disk, size=None if size is None else format_size(size))


@blueprint.get("/vms/<ref>/disks")
@require("vms:read")
@blueprint.doc(responses=[200])
def list_disks(ref: str) -> Response:
    """List the disks of a machine

    The first is the one it boots from.
    """
    with database.read() as session:
        return items([_disk(disk) for disk in disks.of(find(session, Vm, "vm", ref, caller()))])


@blueprint.post("/vms/<ref>/disks")
@require("vms:write")
@blueprint.input(DiskIn)
@blueprint.doc(responses=[202])
def attach_disk(ref: str, json_data: DiskIn) -> Response:
    """Attach a disk, running or not

    A new one of a size, or a volume that is there: one that was made for a machine of the project, or for an
    administrator any. It is known by its serial number, which the machine sees too.
    """
    given = json_data.model_dump(exclude={"size", "io"})
    new = disks.NewDisk(**given, size_bytes=json_data.size, io=json_data.io.given() if json_data.io else {})

    def work(session: Session, who: Principal) -> Answer:
        vm = _vm(session, who, ref)
        job = disks.attach(session, who, vm, new)
        return _accepted(session, job, disk=_disk(disks.find(vm, new.serial)).model_dump(mode="json"))

    return once(json_data.model_dump(), work)


@blueprint.patch("/vms/<ref>/disks/<serial>")
@require("vms:write")
@blueprint.input(DiskPatch)
@blueprint.doc(responses=[202])
def change_disk(ref: str, serial: str, json_data: DiskPatch) -> Response:
    """Grow a disk with the file system on it, or limit it

    Where the agent inside the machine does not answer, the disk grows and the file system does not, and the job says
    so; asking again tries again. A disk never shrinks.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = _vm(session, who, ref)
        io = None if json_data.io is None else json_data.io.given()
        size, more = json_data.size, json_data.grow_by
        return _accepted(session, disks.change(session, who, vm, serial, size_bytes=size, grow_by_bytes=more, io=io))

    return once(json_data.model_dump(), work)


@blueprint.delete("/vms/<ref>/disks/<serial>")
@require("vms:write")
@blueprint.doc(responses=[202])
def detach_disk(ref: str, serial: str) -> Response:
    """Detach a disk

    Its volume stays, with what is on it.
    """

    def work(session: Session, who: Principal) -> Answer:
        return _accepted(session, disks.detach(session, who, _vm(session, who, ref), serial))

    return once({}, work)


@blueprint.get("/vms/<ref>/nics")
@require("vms:read")
@blueprint.doc(responses=[200])
def list_nics(ref: str) -> Response:
    """List the network cards of a machine"""
    with database.read() as session:
        return items([NicOut(**nic) for nic in nics.of(find(session, Vm, "vm", ref, caller()))])


@blueprint.post("/vms/<ref>/nics")
@require("vms:write")
@blueprint.input(NicIn)
@blueprint.doc(responses=[202])
def attach_nic(ref: str, json_data: NicIn) -> Response:
    """Attach a network card, running or not

    An address is reserved for it; whoever runs the machine sets it there.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = _vm(session, who, ref)
        wish = {"network": json_data.network, "address": json_data.address, "nwfilter": json_data.filter}
        job, row = nics.attach(session, who, vm, **wish)
        nic = next(each for each in nics.of(vm) if each["mac"] == row.mac)
        return _accepted(session, job, nic=NicOut(**nic).model_dump(mode="json"))

    return once(json_data.model_dump(), work)


@blueprint.patch("/vms/<ref>/nics/<mac>")
@require("vms:write")
@blueprint.input(NicPatch)
@blueprint.doc(responses=[202])
def change_nic(ref: str, mac: str, json_data: NicPatch) -> Response:
    """Cut the link of a network card or mend it, or give it another filter"""

    def work(session: Session, who: Principal) -> Answer:
        job = nics.change(session, who, _vm(session, who, ref), mac, link=json_data.link, nwfilter=json_data.filter)
        return _accepted(session, job)

    return once(json_data.model_dump(), work)


@blueprint.delete("/vms/<ref>/nics/<mac>")
@require("vms:write")
@blueprint.doc(responses=[202])
def detach_nic(ref: str, mac: str) -> Response:
    """Detach a network card

    Its address is free when the job has succeeded.
    """

    def work(session: Session, who: Principal) -> Answer:
        return _accepted(session, nics.detach(session, who, _vm(session, who, ref), mac))

    return once({}, work)
