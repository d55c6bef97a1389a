"""`/volumes` and `/pools`. A machine gets a volume as a disk: POST `/vms/{ref}/disks`."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Host, Job, Volume
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, one, require, unchanged
from virtfleet.schemas.volumes import PoolOut, PoolQuery, VolumeIn, VolumePatch, VolumeQuery
from virtfleet.services import pools, volumes
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.paging import page
from virtfleet.services.volumes import NewVolume

blueprint = APIBlueprint("volumes", __name__, tag="volumes")


@blueprint.get("/pools")
@require("volumes:read")
@blueprint.input(PoolQuery, location="query")
@blueprint.doc(responses=[200])
def list_pools(query_data: PoolQuery) -> Response:
    """List the storage pools of the hosts

    As they were last observed, with what is promised of them already.
    """
    with database.read() as session:
        query = pools.query(session, host=query_data.host, zone=query_data.zone)
        found = page(session, query, Host.number, limit=query_data.limit, cursor=query_data.cursor)
        return items([PoolOut(**each) for each in pools.of(session, found.rows)], found.next)


@blueprint.get("/volumes")
@require("volumes:read")
@blueprint.input(VolumeQuery, location="query")
@blueprint.doc(responses=[200])
def list_volumes(query_data: VolumeQuery) -> Response:
    """List volumes in the order in which they were made

    The disks that machines were made with are not among them.
    """
    with database.read() as session:
        query = volumes.query(session, caller(), host=query_data.host, vm=query_data.vm)
        found = page(session, query, Volume.id, limit=query_data.limit, cursor=query_data.cursor)
        return items([views.volume(session, row) for row in found.rows], found.next)


@blueprint.post("/volumes")
@require("volumes:write")
@blueprint.input(VolumeIn)
@blueprint.doc(responses=[202])
def make_volume(json_data: VolumeIn) -> Response:
    """Make a volume, empty or as a copy

    It lies on the host that is named, on that of the machine that is named, or on that of its original.
    """
    given = json_data.model_dump(exclude={"size"})
    new = NewVolume(**given, size_bytes=json_data.size)

    def work(session: Session, who: Principal) -> Answer:
        job, row = volumes.create(session, who, new)
        return _accepted(session, job, row)

    return once(json_data.model_dump(), work)


@blueprint.get("/volumes/<ref>")
@require("volumes:read")
@blueprint.doc(responses=[200])
def get_volume(ref: str) -> Response:
    """Get one volume"""
    with database.read() as session:
        return one(views.volume(session, find(session, Volume, "volume", ref, caller())))


@blueprint.patch("/volumes/<ref>")
@require("volumes:write")
@blueprint.input(VolumePatch)
@blueprint.doc(responses=[202])
def grow_volume(ref: str, json_data: VolumePatch) -> Response:
    """Grow a volume

    As a disk of a machine it grows there, running or not, with the file system on it where the agent can do that.
    """

    def work(session: Session, who: Principal) -> Answer:
        row = _volume(session, who, ref)
        size, more = json_data.size, json_data.grow_by
        return _accepted(session, volumes.grow(session, who, row, size_bytes=size, grow_by_bytes=more), row)

    return once(json_data.model_dump(), work)


@blueprint.post("/volumes/<ref>/wipe")
@require("volumes:write")
@blueprint.doc(responses=[202])
def wipe_volume(ref: str) -> Response:
    """Empty a volume that no machine has

    What was on it is overwritten by its host.
    """

    def work(session: Session, who: Principal) -> Answer:
        row = _volume(session, who, ref)
        return _accepted(session, volumes.wipe(session, who, row), row)

    return once({}, work)


@blueprint.delete("/volumes/<ref>")
@require("volumes:write")
@blueprint.doc(responses=[202])
def delete_volume(ref: str) -> Response:
    """Delete a volume that no machine has"""

    def work(session: Session, who: Principal) -> Answer:
        row = _volume(session, who, ref)
        return _accepted(session, volumes.delete(session, who, row), row)

    return once({}, work)


def _volume(session: Session, who: Principal, ref: str) -> Volume:
    row = find(session, Volume, "volume", ref, who)
    unchanged(row.generation)
    return row


def _accepted(session: Session, job: Job, row: Volume) -> Answer:
    body: dict[str, Any] = {
        **views.accepted(session, job),
        "volume": views.volume(session, row).model_dump(mode="json"),
    }
    return Answer(202, body, location_of(job.id))
