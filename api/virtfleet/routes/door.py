"""What every route goes through: who is asking, what they may, and how answers are given."""

import functools
import hmac
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from flask import Response, current_app, g, jsonify, request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from virtfleet import database
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle, queue
from virtfleet.schemas.base import Out
from virtfleet.services import auth, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.ledger import Answer

P = ParamSpec("P")
R = TypeVar("R")
OPEN = "open"
"""The scope of routes that need no token."""


def require(scope: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a route be used only with a token that allows `scope`; it finds out who by `caller()`."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if scope != OPEN:
                g.principal = _authorize(scope)
            return view(*args, **kwargs)

        guarded.required_scope = scope  # type: ignore[attr-defined]
        return guarded

    return decorate


def _authorize(scope: str) -> Principal:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if not hmac.compare_digest(kind.lower(), "bearer") or not token.strip():
        raise Problem(
            "unauthorized",
            "This needs a token.",
            "Send `Authorization: Bearer TOKEN`; the administrator's lies in admin.token in the fleet's home.",
        )
    with database.read() as session:
        who = auth.authenticate(session, token.strip())
    if not who.may(scope):
        raise Problem("forbidden", f"The token does not allow {scope}.", "Ask an administrator for one that does.")
    return who.during(g.request_id)


def caller() -> Principal:
    """Return who is asking."""
    who: Principal = g.principal
    return who


def answer(body: Out | dict[str, Any], status: int = 200, location: str | None = None) -> Response:
    """Answer with a body."""
    response = jsonify(body.model_dump(mode="json") if isinstance(body, BaseModel) else body)
    response.status_code = status
    if location is not None:
        response.headers["Location"] = location
    return response


def one(body: Out) -> Response:
    """Answer with one thing and its ETag; 304 when the caller has just that already."""
    tag = f"{body.generation}"  # type: ignore[attr-defined]
    known = request.if_none_match.contains(tag)
    response = current_app.response_class(status=304) if known else answer(body)
    response.set_etag(tag)
    return response


def items(given: list[Any], following: str | None = None) -> Response:
    """Answer with a page of a list."""
    return answer({"items": [each.model_dump(mode="json") for each in given], "next": following})


def unchanged(generation: int) -> None:
    """Honour If-Match. Raises Problem `changed_meanwhile`."""
    if request.if_match and not request.if_match.contains(str(generation)):
        raise Problem(
            "changed_meanwhile",
            "It has changed since you read it.",
            "Read it again, then send its present ETag as If-Match.",
        )


def once(body: Any, work: Callable[[Session, Principal], Answer]) -> Response:
    """Do `work` in one writing transaction, at most once for each Idempotency-Key, then ring for its jobs."""
    who, key = caller(), request.headers.get("Idempotency-Key")
    route = f"{request.method} {request.path}"
    with database.write() as session:
        known = ledger.recall(session, who, key, route, body)
        given = known or ledger.remember(session, who, key, route, body, answer=work(session, who))
        submitted = lifecycle.take_submitted(session) + session.info.pop("virtfleet_to_ring", [])
    queue.ring(dict.fromkeys(submitted))
    response = answer(given.body, given.status, given.location)
    if known is not None:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def ring_later(session: Session, job_ids: list[str]) -> None:
    """Have `once` ring for these jobs too, after the commit."""
    session.info.setdefault("virtfleet_to_ring", []).extend(job_ids)


def location_of(job_id: str) -> str:
    """Return where a job is found."""
    return f"/api/v1/jobs/{job_id}"
