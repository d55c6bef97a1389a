"""The API as one Flask application: its rooms put together, errors in one shape, every answer with a request id."""

import logging
import re
from http import HTTPStatus
from typing import Any

from apiflask import APIFlask, HTTPError
from flask import Response, g, jsonify, request
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import HTTPException

from virtfleet import settings
from virtfleet.compat import s1
from virtfleet.errors import STATUS, Problem
from virtfleet.ids import new_id
from virtfleet.routes import (
    backups,
    checkpoints,
    clones,
    documentation,
    guests,
    health,
    host_networks,
    host_secrets,
    hosts,
    images,
    jobs,
    metrics,
    migrations,
    nwfilters,
    plans,
    snapshots,
    vm_devices,
    vms,
    volumes,
)

PREFIX = "/api/v1"
LARGEST_BODY = 2 * 2**20
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
}

log = logging.getLogger(__name__)


def create_app() -> APIFlask:
    """Return the application. The database must be there (`migrations.upgrade`, `auth.first_start`)."""
    app = APIFlask("virtfleet", title="virtfleet", version="1", spec_path=None, docs_path=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]
    documentation.describe(app)
    for room in (
        health,
        documentation,
        hosts,
        metrics,
        host_networks,
        nwfilters,
        host_secrets,
        images,
        vms,
        jobs,
        plans,
        guests,
        migrations,
        snapshots,
        checkpoints,
        backups,
        clones,
        vm_devices,
        volumes,
    ):
        app.register_blueprint(room.blueprint, url_prefix=PREFIX)
    if settings.load().s1_enabled:
        app.register_blueprint(s1.blueprint)
    app.before_request(_name_request)
    app.after_request(_sign)
    app.error_processor(_invalid)
    app.register_error_handler(Problem, _problem)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(OperationalError, _database)
    app.register_error_handler(Exception, _unforeseen)
    return app


def _name_request() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")


def _sign(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id", "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _shown(problem: dict[str, Any]) -> Response:
    response = jsonify({**problem, "request_id": g.get("request_id", "")})
    response.status_code = problem["status"]
    response.mimetype = "application/problem+json"
    if problem["status"] == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _problem(problem: Problem) -> Response:
    return _shown(problem.as_dict())


def _invalid(error: HTTPError) -> Response:
    """Turn what the schemas found wrong into a problem that names each field."""
    if error.status_code not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) or not error.detail:
        return _plain(error.status_code, error.message or "")
    fields = [
        {"field": field, "message": message.removeprefix("Value error, ").rstrip(".")}
        for place in error.detail.values()
        for field, messages in place.items()
        for message in messages
    ]
    first = fields[0] if fields else {"field": "", "message": str(error.message)}
    detail = f"The request cannot be used: {first['field']}: {first['message']}."
    return _problem(Problem("invalid", detail, "Mend the fields that `errors` names.", errors=fields))


def _http(error: HTTPException) -> Response:
    return _plain(error.code or 500, error.description or error.name)


def _plain(status: int, message: str) -> Response:
    code = _CODES.get(status, "internal" if status >= 500 else "bad_request")
    if code in STATUS:
        return _shown({**Problem(code, message).as_dict(), "status": status})
    title = HTTPStatus(status).phrase
    return _shown(
        {
            "type": f"urn:virtfleet:problem:{code}",
            "title": title,
            "status": status,
            "detail": message,
            "code": code,
            "hint": "See /api/v1/docs.",
        }
    )


def _database(error: OperationalError) -> Response:
    log.error("%s: the database cannot be used: %s", g.get("request_id"), error.orig)
    return _problem(
        Problem("unavailable", "The fleet's database does not answer.", "Try again soon; the log of the API says why.")
    )


def _unforeseen(error: Exception) -> Response:
    log.exception("%s: %s %s went wrong", g.get("request_id"), request.method, request.path, exc_info=error)
    return _problem(
        Problem("internal", "Something went wrong inside.", "Report it with the request_id; the API's log has more.")
    )
