"""`/images` and `/flavors`."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.models import Flavor, Image
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, location_of, once, one, require, unchanged
from virtfleet.schemas.base import Paging
from virtfleet.schemas.images import FlavorIn, FlavorOut, ImageIn, ImageOut
from virtfleet.services import flavors, image_removal, images
from virtfleet.services.auth import Principal
from virtfleet.services.flavors import Size
from virtfleet.services.images import NewImage
from virtfleet.services.ledger import Answer
from virtfleet.services.lookup import find
from virtfleet.services.paging import page

blueprint = APIBlueprint("images", __name__, tag="images and flavors")


def _mine(model: Any, who: Principal) -> Any:
    query = select(model)
    return query if who.admin else query.where(model.project_id == who.project_id)


@blueprint.get("/images")
@require("images:read")
@blueprint.input(Paging, location="query")
def list_images(query_data: Paging) -> Response:
    """List images"""
    with database.read() as session:
        query = _mine(Image, caller())
        found = page(session, query, Image.number, limit=query_data.limit, cursor=query_data.cursor)
        return items([ImageOut.of(row) for row in found.rows], found.next)


@blueprint.post("/images")
@require("admin")
@blueprint.input(ImageIn)
@blueprint.output(ImageOut, status_code=201)
def add_image(json_data: ImageIn) -> Response:
    """Register an image

    A file of the controller is read at once; a URL needs its checksum, and is fetched when a host first needs it. For
    administrators: it reads files.
    """
    given = json_data.model_dump()
    number = given.pop("number")
    new = NewImage(**given)
    facts = images.inspect(new)

    def work(session: Session, who: Principal) -> Answer:
        row = images.register(session, who, new, facts, number)
        return Answer(201, ImageOut.of(row).model_dump(mode="json"), f"/api/v1/images/{row.id}")

    return once(json_data.model_dump(), work)


@blueprint.get("/images/<ref>")
@require("images:read")
@blueprint.output(ImageOut)
def get_image(ref: str) -> Response:
    """Show an image"""
    with database.read() as session:
        return one(ImageOut.of(find(session, Image, "image", ref, caller())))


@blueprint.delete("/images/<ref>")
@require("images:write")
@blueprint.doc(responses=[202, 204])
def remove_image(ref: str) -> Response:
    """Remove an image that no machine was made from

    A job removes its base volumes from the hosts' pools, and then the image is gone; when no pool has one it is gone at
    once (204).
    """

    def work(session: Session, who: Principal) -> Answer:
        row = find(session, Image, "image", ref, who)
        unchanged(row.generation)
        job = image_removal.remove(session, who, row)
        if job is None:
            return Answer(204, {})
        return Answer(202, views.accepted(session, job), location_of(job.id))

    given = once({}, work)
    return Response(status=204) if given.status_code == 204 else given


@blueprint.get("/flavors")
@require("flavors:read")
@blueprint.input(Paging, location="query")
def list_flavors(query_data: Paging) -> Response:
    """List flavors"""
    with database.read() as session:
        query = _mine(Flavor, caller())
        found = page(session, query, Flavor.number, limit=query_data.limit, cursor=query_data.cursor)
        return items([FlavorOut.of(row) for row in found.rows], found.next)


@blueprint.post("/flavors")
@require("flavors:write")
@blueprint.input(FlavorIn)
@blueprint.doc(responses=[201])
def add_flavor(json_data: FlavorIn) -> Response:
    """Make a flavor"""

    def work(session: Session, who: Principal) -> Answer:
        size = Size(json_data.vcpus, json_data.memory, json_data.disk)
        row = flavors.create(session, who, json_data.name, size, json_data.number)
        return Answer(201, FlavorOut.of(row).model_dump(mode="json"), f"/api/v1/flavors/{row.id}")

    return once(json_data.model_dump(), work)


@blueprint.get("/flavors/<ref>")
@require("flavors:read")
@blueprint.output(FlavorOut)
def get_flavor(ref: str) -> Response:
    """Show a flavor"""
    with database.read() as session:
        return one(FlavorOut.of(find(session, Flavor, "flavor", ref, caller())))


@blueprint.delete("/flavors/<ref>")
@require("flavors:write")
@blueprint.doc(responses=[204])
def remove_flavor(ref: str) -> Response:
    """Remove a flavor; machines keep their size"""
    with database.write() as session:
        row = find(session, Flavor, "flavor", ref, caller())
        unchanged(row.generation)
        flavors.delete(session, caller(), row)
    return Response(status=204)
