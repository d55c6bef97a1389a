"""Who may do what: projects, users, tokens."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from virtfleet.models.base import Base, Stamped, id_column


class Project(Stamped, Base):
    """A set of machines, images, … that belong together; names are unique inside one."""

    __tablename__ = "projects"
    id: Mapped[str] = id_column()
    name: Mapped[str] = mapped_column(unique=True)


class User(Stamped, Base):
    """A person or a program that acts."""

    __tablename__ = "users"
    id: Mapped[str] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))


class Token(Stamped, Base):
    """A bearer token. Only its SHA-256 is kept: it has 256 random bits, so a slow hash would add nothing."""

    __tablename__ = "tokens"
    id: Mapped[str] = id_column()
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    scopes: Mapped[list[Any]]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    user: Mapped[User] = relationship(lazy="joined")
    project: Mapped[Project] = relationship(lazy="joined")
