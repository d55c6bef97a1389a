"""`/vms/{ref}/snapshots`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Vm
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, require
from virtfleet.schemas.snapshots import SnapshotDeletion, SnapshotExport, SnapshotIn, SnapshotOut
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.vms import snapshots
from virtfleet.services.vms.snapshots import NewSnapshot

blueprint = APIBlueprint("snapshots", __name__, tag="snapshots")


@blueprint.get("/vms/<ref>/snapshots")
@require("vms:read")
@blueprint.doc(responses=[200])
def list_snapshots(ref: str) -> Response:
    """List the snapshots of a machine, oldest first

    As the last job that looked at them saw them.
    """
    with database.read() as session:
        vm = find(session, Vm, "vm", ref, caller())
        return items([SnapshotOut.of(row) for row in snapshots.all_of(session, vm)])


@blueprint.post("/vms/<ref>/snapshots")
@require("vms:write")
@blueprint.input(SnapshotIn)
@blueprint.doc(responses=[202])
def make_snapshot(ref: str, json_data: SnapshotIn) -> Response:
    """Make a snapshot of a machine

    With `prefix` and `keep` the oldest ones go, after the new one was made.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job, name = snapshots.create(session, who, vm, NewSnapshot(**json_data.model_dump()))
        return Answer(202, {**views.accepted(session, job), "snapshot": name}, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/vms/<ref>/snapshots/<name>/revert")
@require("vms:write")
@blueprint.doc(responses=[202])
def revert_to_snapshot(ref: str, name: str) -> Response:
    """Bring a machine back to a snapshot

    What it has written since is lost.
    """

    def work(session: Session, who: Principal) -> Answer:
        job = snapshots.revert(session, who, find(session, Vm, "vm", ref, who), name)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)


@blueprint.post("/vms/<ref>/snapshots/<name>/export")
@require("vms:write")
@blueprint.input(SnapshotExport)
@blueprint.doc(responses=[202])
def export_snapshot(ref: str, name: str, json_data: SnapshotExport) -> Response:
    """Bring out what a machine's disks held at a snapshot, as volumes of their own

    One for each disk, `NAME-TARGET.qcow2`, which need neither the machine nor the snapshot. An internal snapshot can be
    exported only while its machine is stopped.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job, where = snapshots.export(session, who, vm, name, pool=json_data.pool, volume=json_data.name)
        return Answer(202, {**views.accepted(session, job), "export": where}, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.delete("/vms/<ref>/snapshots/<name>")
@require("vms:write")
@blueprint.input(SnapshotDeletion, location="query")
@blueprint.doc(responses=[202])
def delete_snapshot(ref: str, name: str, query_data: SnapshotDeletion) -> Response:
    """Delete a snapshot; the machine goes on as it is"""

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job = snapshots.delete(session, who, vm, name, children=query_data.children)
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once(query_data.model_dump(), work)
