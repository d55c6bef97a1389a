"""Images and flavors."""

from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from pydantic import Field

from virtfleet.models import Flavor, Image
from virtfleet.schemas.base import In, Moment, Out, Size, Source, Text

LARGEST_VCPUS = 4096


class ImageIn(In):
    """An image to register."""

    source: Source = Field(description="A path on the controller, or an http or https URL.")
    name: Text | None = Field(default=None, description="From the source's last part when left out.")
    checksum: Text | None = Field(default=None, description="`sha256:` and 64 hex digits.")
    os: Text | None = None
    version: Text | None = None
    number: int | None = Field(
        default=None, ge=1, le=2_000_000_000, description="The stable integer; next free if none."
    )


class ImageOut(Out):
    """An image."""

    id: str
    number: int
    name: str
    source: str
    checksum: str
    format: str
    size: str
    size_bytes: int
    virtual_size: str
    virtual_size_bytes: int
    os: str | None
    version: str | None
    created_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Image) -> "ImageOut":
        """Make it from a row."""
        plain = ("id", "number", "name", "source", "checksum", "format", "os", "version")
        return cls(
            **{name: getattr(row, name) for name in plain},
            size=format_size(row.size_bytes),
            size_bytes=row.size_bytes,
            virtual_size=format_size(row.virtual_size_bytes),
            virtual_size_bytes=row.virtual_size_bytes,
            created_at=row.created_at,
            generation=row.generation,
        )


class FlavorIn(In):
    """A flavor to make."""

    name: Text
    vcpus: int = Field(ge=1, le=LARGEST_VCPUS)
    memory: Size
    disk: Size
    number: int | None = Field(default=None, ge=1, le=2_000_000_000, description="S1's tid; the next free if none.")


class FlavorOut(Out):
    """A size of machine."""

    id: str
    number: int
    name: str
    vcpus: int
    memory: str
    memory_bytes: int
    disk: str
    disk_bytes: int
    created_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Flavor) -> "FlavorOut":
        """Make it from a row."""
        return cls(
            id=row.id,
            number=row.number,
            name=row.name,
            vcpus=row.vcpus,
            memory=format_size(row.memory_bytes),
            memory_bytes=row.memory_bytes,
            disk=format_size(row.disk_bytes),
            disk_bytes=row.disk_bytes,
            created_at=row.created_at,
            generation=row.generation,
        )
