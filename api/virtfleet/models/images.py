"""Images, their copies in the hosts' pools, and flavors."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from virtfleet.models.base import Base, Owned, id_column


class Image(Owned, Base):
    """A disk that machines start from. Its content is known by checksum and never changes."""

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = id_column()
    number: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str]
    source: Mapped[str]
    """A path on the controller, or a URL."""
    checksum: Mapped[str]
    """`sha256:` and 64 hex digits."""
    format: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    virtual_size_bytes: Mapped[int] = mapped_column(BigInteger)
    os: Mapped[str | None]
    version: Mapped[str | None]

    @property
    def volume(self) -> str:
        """Name of the base volume in every pool: from the content, so that equal images share one."""
        return f"base-{self.checksum.removeprefix('sha256:')[:24]}"


class ImageCopy(Base):
    """The base volume of one image in one pool of one host (of any host of the zone, where the pool is shared)."""

    __tablename__ = "image_copies"
    __table_args__ = (UniqueConstraint("image_id", "place", "pool"),)
    id: Mapped[str] = id_column()
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"), index=True)
    place: Mapped[str]
    """Id of the host, or of the zone for a shared pool."""
    pool: Mapped[str]
    job_id: Mapped[str | None]
    """The job that makes the copy, until it has."""
    ready_at: Mapped[datetime | None]


class Flavor(Owned, Base):
    """A size of machine (S1: "instance type")."""

    __tablename__ = "flavors"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = id_column()
    number: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str]
    vcpus: Mapped[int]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    disk_bytes: Mapped[int] = mapped_column(BigInteger)
