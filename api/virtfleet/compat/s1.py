"""S1's contract on the root: `/vm/*` and `/image/list`, exactly its keys and types, HTTP 200 also on failure.

Why something failed is told in the header `X-Virtfleet-Problem`. No token: the routes exist only when switched on.
"""

import time
from typing import Any

from apiflask import APIBlueprint
from flask import Response, g, jsonify, request
from sqlalchemy import select

from virtfleet import database, settings
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle, queue
from virtfleet.models import UNFINISHED, Flavor, Image, Job, Vm
from virtfleet.routes.door import OPEN, require
from virtfleet.services import auth, vms
from virtfleet.services.vms import NewVm

blueprint = APIBlueprint("s1", __name__, enable_openapi=False)
LOOK_SECONDS = 0.05
UNDO_SECONDS = 60.0
"""How long a create that took too long waits for its own undoing before it answers."""
MIB, GIB = 2**20, 2**30
LARGEST_NUMBER = 2**53


def _parameter(name: str) -> str:
    return (request.values.get(name) or "").strip()


def _number(name: str) -> int:
    """Return a positive integer parameter, or 0 for anything else."""
    text = _parameter(name)
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else 0
    return number if number < LARGEST_NUMBER else 0


def _answer(body: dict[str, Any], problem: Problem | None = None) -> Response:
    response = jsonify(body)
    if problem is not None:
        text = f"{problem.code}: {problem.detail} {problem.hint}"
        response.headers["X-Virtfleet-Problem"] = "".join(c if " " <= c <= "~" else "?" for c in text)[:500]
    return response


@blueprint.route("/vm/create", methods=["GET", "POST"])
@require(OPEN)
def create() -> Response:
    """Create a machine and answer when it exists; at the end of the wait undo it, then say 0."""
    try:
        return _answer({"vmid": _create()})
    except Problem as problem:
        return _answer({"vmid": 0}, problem)


def _create() -> int:
    name = _parameter("name")
    with database.write() as session:
        who = auth.system(session).during(g.request_id)
        flavor = session.scalar(select(Flavor).where(Flavor.number == _number("instance_type")))
        if flavor is None:
            raise Problem("invalid", "There is no such instance_type.", "GET /vm/types lists the types.")
        image = None
        if _parameter("image_id"):
            image = session.scalar(select(Image).where(Image.number == _number("image_id")))
            if image is None:
                raise Problem("invalid", "There is no such image_id.", "GET /image/list lists the images.")
        new = NewVm(name=name, label=name, flavor=flavor.id, image=image.id if image else None, wait_for="running")
        job, made = vms.create(session, who, new)
        job_id, vm_id, number = job.id, made[0].id, made[0].number
        to_ring = lifecycle.take_submitted(session)
    queue.ring(to_ring)
    if not _wait_for_end(job_id, settings.load().s1_wait_seconds):
        _undo(job_id, vm_id)
        raise Problem("unavailable", "The machine was not there in time and was undone.", "Try again.")
    with database.read() as session:
        ended = session.get_one(Job, job_id)
        if ended.state == "succeeded":
            return number
        error = ended.error or {}
        problem = Problem("unavailable", str(error.get("message", "")), str(error.get("hint", "")))
    _wait_gone(vm_id, UNDO_SECONDS)
    raise problem


def _wait_for_end(job_id: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with database.read() as session:
            if session.get_one(Job, job_id).state not in UNFINISHED:
                return True
        time.sleep(LOOK_SECONDS)
    return False


def _wait_gone(vm_id: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with database.read() as session:
            if session.get(Vm, vm_id) is None:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)


def _undo(job_id: str, vm_id: str) -> None:
    with database.write() as session:
        to_ring = lifecycle.cancel(session, session.get_one(Job, job_id))
    queue.ring(to_ring)
    if _wait_for_end(job_id, UNDO_SECONDS):
        with database.write() as session:
            # It may have been made in the very last moment.
            vm = session.get(Vm, vm_id)
            to_ring = []
            if vm is not None and vm.state != "deleting":
                job, to_ring = vms.delete(session, auth.system(session), vm)
                to_ring = [job.id, *to_ring]
        queue.ring(to_ring)
    _wait_gone(vm_id, UNDO_SECONDS)


@blueprint.route("/vm/query", methods=["GET", "POST"])
@require(OPEN)
def query() -> Response:
    """Tell of a machine; one that is unknown has 0 and empty values."""
    with database.read() as session:
        vm = session.scalar(select(Vm).where(Vm.number == _number("vmid"), Vm.state.not_in(("building", "deleting"))))
        if vm is None:
            problem = Problem("not_found", "There is no such vmid.", "")
            return _answer({"vmid": 0, "name": "", "instance_type": 0, "pmid": 0}, problem)
        flavor = session.get(Flavor, vm.flavor_id) if vm.flavor_id else None
        return _answer(
            {
                "vmid": vm.number,
                "name": vm.label or vm.name,
                "instance_type": flavor.number if flavor else 0,
                "pmid": vm.host.number,
            }
        )


@blueprint.route("/vm/destroy", methods=["GET", "POST", "DELETE"])
@require(OPEN)
def destroy() -> Response:
    """Delete a machine and answer when it is gone: 1, or 0."""
    try:
        with database.write() as session:
            vm = session.scalar(select(Vm).where(Vm.number == _number("vmid"), Vm.state != "deleting"))
            if vm is None:
                raise Problem("not_found", "There is no such vmid.", "")
            job, to_ring = vms.delete(session, auth.system(session).during(g.request_id), vm)
            job_id, vm_id = job.id, vm.id
        queue.ring([job_id, *to_ring])
        if not _wait_for_end(job_id, settings.load().s1_wait_seconds) or not _wait_gone(vm_id, 0):
            raise Problem("unavailable", "The machine is not gone.", f"See: virtfleet job show {job_id}.")
    except Problem as problem:
        return _answer({"status": 0}, problem)
    return _answer({"status": 1})


@blueprint.route("/vm/types", methods=["GET", "POST"])
@require(OPEN)
def types() -> Response:
    """List the flavors; memory in MiB and disk in GiB, as whole numbers where they are."""
    with database.read() as session:
        who = auth.system(session)
        flavors = session.scalars(select(Flavor).where(Flavor.project_id == who.project_id).order_by(Flavor.number))
        return _answer(
            {
                "types": [
                    {
                        "tid": flavor.number,
                        "cpu": flavor.vcpus,
                        "ram": _whole(flavor.memory_bytes / MIB),
                        "disk": _whole(flavor.disk_bytes / GIB),
                    }
                    for flavor in flavors
                ]
            }
        )


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


@blueprint.route("/image/list", methods=["GET", "POST"])
@require(OPEN)
def image_list() -> Response:
    """List the images that machines can be made from."""
    with database.read() as session:
        who = auth.system(session)
        images = select(Image).where(Image.project_id == who.project_id).order_by(Image.number)
        return _answer({"images": [{"id": image.number, "name": image.name} for image in session.scalars(images)]})
