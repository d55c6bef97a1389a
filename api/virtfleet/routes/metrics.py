"""`/metrics` for Prometheus, and the same of one host as JSON."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response, request

from virtfleet import database
from virtfleet.models import Host
from virtfleet.routes import views
from virtfleet.routes.door import caller, items, require
from virtfleet.services import metrics
from virtfleet.services.lookup import find

blueprint = APIBlueprint("metrics", __name__, tag="hosts")
TEXT: dict[int | str, Any] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@blueprint.get("/metrics")
@require("hosts:read")
@blueprint.doc(responses=TEXT)
def show_metrics() -> Response:
    """Show what the fleet measures, for Prometheus"""
    with database.read() as session:
        samples = metrics.of_fleet(session, caller())
    body, media_type = metrics.exposition(samples, request.headers.get("Accept", ""))
    return Response(body, content_type=media_type)


@blueprint.get("/hosts/<ref>/metrics")
@require("hosts:read")
@blueprint.doc(responses=[200])
def list_host_metrics(ref: str) -> Response:
    """List what is measured of a host and of the machines on it"""
    with database.read() as session:
        host = find(session, Host, "host", ref)
        return items([views.metric(sample) for sample in metrics.of_hosts(session, caller(), [host])])
