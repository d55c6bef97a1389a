"""Lists in pages: a cursor says after which row the next page begins."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem

Row = TypeVar("Row")


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows, and the cursor of the next page (None: there is none)."""

    rows: list[Row]
    next: str | None


def page(
    session: Session,
    query: "Select[Row]",
    column: Any,
    *,
    limit: int,
    cursor: str | None,
    newest_first: bool = False,
) -> Page[Row]:
    """Return one page of `query`, sorted by the unique `column`. Raises Problem `bad_request` for a foreign cursor."""
    if cursor is not None:
        last = _read(cursor)
        query = query.where(column < last if newest_first else column > last)
    ordered = query.order_by(column.desc() if newest_first else column)
    rows = list(session.scalars(ordered.limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, _write(getattr(rows[-1], column.key)) if more else None)


def _write(value: int | str) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _read(cursor: str) -> int | str:
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as error:
        raise _foreign() from error
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _foreign()
    return value


def _foreign() -> Problem:
    return Problem("bad_request", "The cursor is not one that a list gave.", "Begin again without a cursor.")
