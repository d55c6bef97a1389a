"""Disks and network cards of machines."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from virtfleet.schemas.base import In, Out, Size, Text
from virtfleet.schemas.vms import LARGEST, SMALLEST_DISK, IoLimits

Serial = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+-]{0,19}$")]
"""What a machine sees of a disk's serial number."""


class DiskIn(In):
    """A disk to attach: a new one of a size, or a volume that is there."""

    serial: Serial
    size: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST, description="Make a new volume of this size.")
    volume: Text | None = Field(default=None, description="Attach this volume instead.")
    pool: Text | None = Field(default=None, description="The volume's pool; that of the machine if left out.")
    bus: Literal["virtio", "scsi", "usb"] = "virtio"
    read_only: bool = False
    shareable: bool = Field(default=False, description="Other machines may have the volume as a disk too.")
    io: IoLimits | None = Field(default=None, description="Limits of the disk.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "DiskIn":
        if (self.size is None) == (self.volume is None):
            raise ValueError("give just one of size and volume")
        return self


class DiskPatch(In):
    """What is to be different about a disk."""

    size: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST, description="The size to grow to.")
    grow_by: Size | None = Field(default=None, ge=1, le=LARGEST, description="How much to grow by.")
    io: IoLimits | None = Field(default=None, description="Limits of the disk.")

    @model_validator(mode="after")
    def _something(self) -> "DiskPatch":
        if self.size is not None and self.grow_by is not None:
            raise ValueError("size and grow_by exclude each other")
        if self.size is None and self.grow_by is None and self.io is None:
            raise ValueError("nothing is to be changed")
        return self


class DiskOut(Out):
    """A disk of a machine."""

    serial: str
    pool: str
    volume: str
    size: str | None
    size_bytes: int | None
    bus: str
    read_only: bool
    shareable: bool
    io: dict[str, Any]


class NicIn(In):
    """A network card to attach."""

    network: Text | None = Field(default=None, description="A network of the zone; the first if left out.")
    address: Text | None = Field(default=None, description="An address of the network; a free one if left out.")
    filter: Text | None = Field(default=None, description="The network filter that guards it.")


class NicPatch(In):
    """What is to be different about a card."""

    link: Literal["up", "down"] | None = Field(default=None, description="Whether its cable is plugged in.")
    filter: Text | None = Field(default=None, description="The network filter that guards it; none takes it away.")

    @model_validator(mode="after")
    def _something(self) -> "NicPatch":
        if self.link is None and self.filter is None:
            raise ValueError("nothing is to be changed")
        return self


class NicOut(Out):
    """A network card of a machine."""

    mac: str
    network: str
    address: str | None
    link: str
    filter: str
