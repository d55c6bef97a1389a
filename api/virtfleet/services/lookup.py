"""Finding one thing by what people type: its id, its name or its number."""

from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem, not_found
from virtfleet.services.auth import Principal

Row = TypeVar("Row")


def find(session: Session, model: type[Row], what: str, ref: str, who: Principal | None = None) -> Row:
    """Return the row of `model` that `ref` means. Raises Problem `not_found`.

    With `who`, only rows of the caller's project are seen (an administrator sees all, the own project first).
    """
    table: Any = model
    owned = who is not None and hasattr(model, "project_id")
    for column, value in _ways(table, ref):
        query = select(table).where(column == value)
        if owned and who is not None:
            own = session.scalars(query.where(table.project_id == who.project_id)).first()
            if own is not None:
                return own
            if not who.admin:
                continue
        rows = list(session.scalars(query.limit(2)))
        if len(rows) > 1:
            raise Problem("conflict", f"More than one {what} is called {ref!r}.", "Give its id.")
        if rows:
            return rows[0]
    raise not_found(what, ref)


def _ways(table: Any, ref: str) -> list[tuple[Any, Any]]:
    ways: list[tuple[Any, Any]] = [(table.id, ref), (table.name, ref)]
    if hasattr(table, "uuid"):
        ways.append((table.uuid, ref.lower()))
    if hasattr(table, "number") and ref.isascii() and ref.isdigit() and len(ref) < 10:
        ways.append((table.number, int(ref)))
    return ways
