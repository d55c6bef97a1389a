"""Who is asking: tokens, scopes, and the administrator's token of a first start."""

import hashlib
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, database, settings
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.models import Project, Token, User

DEFAULT_PROJECT = "default"
ADMIN = "admin"
"""The scope that allows everything, in every project."""


@dataclass(frozen=True)
class Principal:
    """The user that acts, the project it acts in, and what its token allows."""

    user_id: str
    user_name: str
    project_id: str
    project_name: str
    scopes: frozenset[str]
    request_id: str | None = None

    @property
    def admin(self) -> bool:
        """Whether the token allows everything."""
        return ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        """Whether the token allows `scope` (`vms:write`); `vms:write` includes `vms:read`, and nothing else another."""
        noun, _, verb = scope.partition(":")
        return self.admin or scope in self.scopes or (verb == "read" and f"{noun}:write" in self.scopes)

    def during(self, request_id: str) -> "Principal":
        """Return the same principal, bound to one request."""
        return replace(self, request_id=request_id)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def authenticate(session: Session, token: str) -> Principal:
    """Return who holds the token. Raises Problem `unauthorized`."""
    row = session.scalar(select(Token).where(Token.digest == _digest(token)))
    expired = row is not None and row.expires_at is not None and row.expires_at <= clock.now()
    if row is None or row.revoked_at is not None or expired:
        raise Problem(
            "unauthorized",
            "The token is not known, was revoked or has expired.",
            "Use the token that `virtfleet serve` wrote to admin.token in the fleet's home, or ask for a new one.",
        )
    return _principal(row)


def _principal(token: Token) -> Principal:
    return Principal(
        user_id=token.user_id,
        user_name=token.user.name,
        project_id=token.project_id,
        project_name=token.project.name,
        scopes=frozenset(token.scopes),
    )


def issue(session: Session, user: User, project: Project, name: str, scopes: list[str]) -> str:
    """Make a token and return it; it is never readable again."""
    token = f"vf_{secrets.token_urlsafe(32)}"
    session.add(
        Token(
            id=new_id("tok"),
            name=name,
            digest=_digest(token),
            user_id=user.id,
            project_id=project.id,
            scopes=scopes,
            expires_at=None,
            revoked_at=None,
        )
    )
    return token


def token_file() -> Path:
    """Return where the administrator's token of this fleet is written."""
    return settings.load().home / "admin.token"


def first_start() -> None:
    """Make the project `default`, the user `admin` and its token, unless they exist."""
    with database.write() as session:
        if session.scalar(select(User).where(User.name == "admin")) is not None:
            return
        project = Project(id=new_id("prj"), name=DEFAULT_PROJECT)
        session.add(project)
        session.flush()
        user = User(id=new_id("usr"), name="admin", project_id=project.id)
        session.add(user)
        session.flush()
        token = issue(session, user, project, "first start", [ADMIN])
        # Written before the commit: a token that is in the database but nowhere else would lock everybody out.
        descriptor = os.open(token_file(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")


def system(session: Session) -> Principal:
    """Return the principal of work that nobody in particular asked for (S1's open routes, clean-up)."""
    user = session.scalar(select(User).where(User.name == "admin"))
    project = session.scalar(select(Project).where(Project.name == DEFAULT_PROJECT))
    if user is None or project is None:
        raise Problem("unavailable", "The fleet has not been started yet.", "Start the API once: virtfleet serve.")
    return Principal(user.id, user.name, project.id, project.name, frozenset({ADMIN}))
