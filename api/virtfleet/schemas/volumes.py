"""Volumes and pools."""

from typing import Any, Literal

from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from pydantic import Field, model_validator

from virtfleet.models import Volume
from virtfleet.schemas.base import In, Moment, Out, Paging, Size, Text
from virtfleet.schemas.vms import LARGEST, SMALLEST_DISK


class VolumeIn(In):
    """A volume to make: on a host, or on that of the machine that is to have it; a copy lies where its source does."""

    name: Text | None = Field(default=None, description="Unique in the project; the volume's id if left out.")
    size: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST, description="Needed unless it is a copy.")
    host: Text | None = Field(default=None, description="The host that it is to lie on.")
    vm: Text | None = Field(default=None, description="A machine: it lies on its host, and in its pool.")
    pool: Text | None = Field(default=None, description="The storage pool.")
    format: Literal["qcow2", "raw"] | None = Field(default=None, description="qcow2 unless it must be raw.")
    shareable: bool = Field(
        default=False, description="Several machines may have it at once, which takes a file system made for that."
    )
    source: Text | None = Field(default=None, description="The volume to copy. No machine may write to it meanwhile.")

    @model_validator(mode="after")
    def _size_or_source(self) -> "VolumeIn":
        if self.size is None and self.source is None:
            raise ValueError("give a size, or a source to copy")
        return self


class VolumePatch(In):
    """How large a volume is to be."""

    size: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST, description="The size to grow to.")
    grow_by: Size | None = Field(default=None, ge=1, le=LARGEST, description="How much to grow by.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "VolumePatch":
        if (self.size is None) == (self.grow_by is None):
            raise ValueError("give just one of size and grow_by")
        return self


class VolumeQuery(Paging):
    """Which volumes."""

    host: str | None = Field(default=None, max_length=255, description="Those that lie on this host.")
    vm: str | None = Field(default=None, max_length=255, description="Those that this machine has.")


class VolumeOut(Out):
    """A volume; `serial` is how machines see it, `volume` its name in the pool."""

    id: str
    name: str
    project: str
    owner: str
    host: str
    zone: str
    pool: str
    volume: str
    format: str
    size: str
    size_bytes: int
    shareable: bool
    state: str
    serial: str
    vms: list[str]
    vm_ids: list[str]
    explanation: dict[str, Any]
    job: str | None
    error: dict[str, Any] | None
    created_at: Moment
    updated_at: Moment
    generation: int

    @classmethod
    def of(cls, row: Volume, *, project: str, owner: str) -> "VolumeOut":
        """Make it from a row; `vms` are the names of the machines that have it, or are going to."""
        plain = ("id", "name", "pool", "volume", "format", "size_bytes", "shareable", "state", "serial", "explanation")
        own = {key: getattr(row, key) for key in (*plain, "error", "created_at", "updated_at", "generation")}
        return cls(
            **own,
            project=project,
            owner=owner,
            host=row.host.name,
            zone=row.host.zone.name,
            size=format_size(row.size_bytes),
            vms=[each.vm.name for each in row.attachments],
            vm_ids=[each.vm_id for each in row.attachments],
            job=row.job_id,
        )


class PoolQuery(Paging):
    """Whose pools; `limit` counts hosts."""

    host: str | None = Field(default=None, max_length=255, description="Of this host.")
    zone: str | None = Field(default=None, max_length=255, description="Of the hosts of this zone.")


class PoolOut(Out):
    """A storage pool of a host; `allocated_bytes` is what is taken and promised, `free_bytes` what may still be."""

    name: str
    host: str
    zone: str
    type: str | None
    path: str | None
    active: bool
    shared: bool
    capacity_bytes: int | None
    available_bytes: int | None
    allocated_bytes: int | None
    free_bytes: int | None
    host_state: str
    observed_at: Moment | None
