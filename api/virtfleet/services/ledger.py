"""Numbers that are never given twice, the audit trail, the change feed, and answers kept for repeated requests."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.errors import Problem
from virtfleet.models import Audit, Change, IdempotencyKey, Number
from virtfleet.services.auth import Principal

FIRST = {"vm": 38201, "image": 100}
"""Where a sequence begins, as in S1's samples; all others at 1."""


def next_number(session: Session, name: str, wanted: int | None = None) -> int:
    """Give the next number of a sequence, or `wanted` itself. Numbers of deleted things are not given again."""
    row = session.get(Number, name, with_for_update=True)
    if row is None:
        row = Number(name=name, last=FIRST.get(name, 1) - 1)
        session.add(row)
    number = wanted if wanted is not None else row.last + 1
    row.last = max(row.last, number)
    session.flush()
    return number


def audit(session: Session, who: Principal, action: str, subject: str, job_id: str | None = None) -> None:
    """Write down that somebody asked for something."""
    session.add(
        Audit(
            time=clock.now(),
            user_id=who.user_id,
            project_id=who.project_id,
            action=action,
            subject=subject,
            job_id=job_id,
            request_id=who.request_id,
        )
    )


def changed(session: Session, kind: str, identifier: str, action: str, project_id: str | None, **data: Any) -> None:
    """Tell the change feed that something was created, updated or deleted."""
    session.add(Change(time=clock.now(), project_id=project_id, type=kind, id=identifier, action=action, data=data))


@dataclass(frozen=True)
class Answer:
    """What a request was answered with."""

    status: int
    body: dict[str, Any]
    location: str | None = None


def _fingerprint(route: str, body: Any) -> str:
    return hashlib.sha256(json.dumps([route, body], sort_keys=True, default=str).encode()).hexdigest()


def recall(session: Session, who: Principal, key: str | None, route: str, body: Any) -> Answer | None:
    """Return the answer given before under this Idempotency-Key. Raises Problem when the key was used otherwise."""
    if key is None:
        return None
    if not 1 <= len(key) <= 200:
        raise Problem("bad_request", "The Idempotency-Key is empty or longer than 200 characters.", "Send a UUID.")
    row = session.get(IdempotencyKey, (who.project_id, key))
    if row is None:
        return None
    if row.fingerprint != _fingerprint(route, body):
        raise Problem(
            "idempotency_mismatch",
            "This Idempotency-Key was sent before with another request.",
            "Use a new key for a new request; repeat a request with the same body.",
        )
    return Answer(row.status, row.body, row.location)


def remember(session: Session, who: Principal, key: str | None, route: str, body: Any, *, answer: Answer) -> Answer:
    """Keep the answer under the request's Idempotency-Key, in the transaction that did the work."""
    if key is not None:
        session.add(
            IdempotencyKey(
                project_id=who.project_id,
                key=key,
                fingerprint=_fingerprint(route, body),
                status=answer.status,
                location=answer.location,
                body=answer.body,
                created_at=clock.now(),
            )
        )
    return answer


def changes(session: Session, who: Principal, since: int, limit: int) -> list[Change]:
    """Return what changed after `since`, oldest first, as far as the caller may see it."""
    query = select(Change).where(Change.seq > since).order_by(Change.seq).limit(limit)
    if not who.admin:
        query = query.where((Change.project_id == who.project_id) | (Change.project_id.is_(None)))
    return list(session.scalars(query))
