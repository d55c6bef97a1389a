"""The one shape of an error that reaches a caller (RFC 9457), raised by services and rendered by the API."""

from typing import Any

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "already_exists": 409,
    "no_capacity": 409,
    "in_use": 409,
    "not_ready": 409,
    "idempotency_mismatch": 422,
    "changed_meanwhile": 412,
    "too_large": 413,
    "invalid": 422,
    "internal": 500,
    "unavailable": 503,
}


class Problem(Exception):
    """Something the caller asked for cannot be done.

    `detail` says what was wanted and what stood in the way, `hint` what to do next; `extra` joins the JSON object.
    """

    def __init__(self, code: str, detail: str, hint: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.status = STATUS[code]
        self.detail = detail
        self.hint = hint
        self.extra = extra

    @property
    def title(self) -> str:
        """The code in words."""
        return self.code.replace("_", " ").capitalize()

    def as_dict(self) -> dict[str, Any]:
        """Return the members of the problem object."""
        return {
            "type": f"urn:virtfleet:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "hint": self.hint,
            **self.extra,
        }


def not_found(what: str, ref: str) -> Problem:
    """Return the problem for a thing that does not exist (or that the caller must not know of)."""
    return Problem("not_found", f"There is no {what} {ref!r}.", f"List what there is: virtfleet {what} list.")
