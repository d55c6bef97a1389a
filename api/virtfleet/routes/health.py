"""`/healthz` and `/readyz`: whether the API lives, and whether the fleet can do its work."""

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy import text

from virtfleet import database
from virtfleet.routes.door import OPEN, answer, require
from virtfleet.services import health

blueprint = APIBlueprint("health", __name__, tag="health")


@blueprint.get("/healthz")
@require(OPEN)
def healthz() -> Response:
    """Tell that the API answers"""
    return answer({"status": "ok"})


@blueprint.get("/readyz")
@require(OPEN)
@blueprint.doc(responses=[200, 503])
def readyz() -> Response:
    """Tell whether everything that the fleet needs is at work, and if not, what is missing"""
    with database.read() as session:
        session.execute(text("SELECT 1"))
        missing = health.missing(session)
    return answer({"status": "waiting" if missing else "ready", "missing": missing}, 503 if missing else 200)
