"""`/backups` and `/vms/{ref}/backups`."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.errors import Problem
from virtfleet.models import Backup, Vm
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, require
from virtfleet.schemas.backups import BackupIn, BackupOut, BackupQuery, RestoreIn
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.paging import page
from virtfleet.services.vms import backups, restoring
from virtfleet.services.vms.backups import NewBackup

blueprint = APIBlueprint("backups", __name__, tag="backups")


@blueprint.get("/backups")
@require("vms:read")
@blueprint.input(BackupQuery, location="query")
@blueprint.doc(responses=[200])
def list_backups(query_data: BackupQuery) -> Response:
    """List backups in the order in which they were made

    Those of machines that are gone are there too.
    """
    who = caller()
    with database.read() as session:
        query = backups.query(who, query_data.vm)
        found = page(session, query, Backup.id, limit=query_data.limit, cursor=query_data.cursor)
        return items([BackupOut.of(row) for row in found.rows], found.next)


@blueprint.post("/vms/<ref>/backups")
@require("vms:write")
@blueprint.input(BackupIn)
@blueprint.doc(responses=[202])
def make_backup(ref: str, json_data: BackupIn) -> Response:
    """Make a backup of a machine

    With `keep` the oldest ones go, after the new one was made.
    """

    def work(session: Session, who: Principal) -> Answer:
        vm = find(session, Vm, "vm", ref, who)
        job, name = backups.create(session, who, vm, NewBackup(**json_data.model_dump()))
        return Answer(202, {**views.accepted(session, job), "backup": name}, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.post("/backups/<identifier>/restore")
@require("vms:write")
@blueprint.input(RestoreIn)
@blueprint.doc(responses=[202])
def restore_backup(identifier: str, json_data: RestoreIn) -> Response:
    """Restore a backup as a new machine, or in place

    In place what the machine has written since is lost. A new machine has addresses of its own, in the networks that
    the old one was in.
    """

    def work(session: Session, who: Principal) -> Answer:
        backup = backups.find(session, who, identifier)
        if json_data.name is None:
            if json_data.address is not None:
                raise Problem("invalid", "A machine that is restored in place keeps its address.", "Leave it away.")
            job = backups.restore_in_place(session, who, backup, stop=json_data.stop, start=json_data.start)
            return Answer(202, {**views.accepted(session, job), "vm": backup.vm_name}, location_of(job.id))
        if json_data.stop:
            raise Problem("invalid", "No machine needs to be stopped to make a new one.", "Leave stop away.")
        job, vm = restoring.restore_as_new(
            session, who, backup, json_data.name, start=bool(json_data.start), address=json_data.address
        )
        return Answer(202, {**views.accepted(session, job), "vm": vm.name}, location_of(job.id))

    return once(json_data.model_dump(), work)


@blueprint.delete("/backups/<identifier>")
@require("vms:write")
@blueprint.doc(responses=[202])
def delete_backup(identifier: str) -> Response:
    """Delete a backup that no increment lies over"""

    def work(session: Session, who: Principal) -> Answer:
        job = backups.delete(session, who, backups.find(session, who, identifier))
        return Answer(202, views.accepted(session, job), location_of(job.id))

    return once({}, work)
