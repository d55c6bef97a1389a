"""Settings of machines beside their sizes: what a PATCH may change, in the words of module vm."""

from typing import Annotated, Any, Literal

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import patch
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from pydantic import Field, StringConstraints, field_validator

from virtfleet.schemas.base import In, Text

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
"""A name as libvirt gives to machine types and CPU models."""


class XmlStep(In):
    """One element of libvirt's document, or one attribute of it, set or removed."""

    path: str = Field(min_length=1, max_length=patch.MAX_PATH_LENGTH, description="Below <domain>, in simple XPath.")
    attribute: Text | None = Field(default=None, description="The element's text is meant when left out.")
    value: str | None = Field(default=None, max_length=patch.MAX_VALUE_LENGTH)
    state: Literal["present", "absent"] = "present"

    @field_validator("value")
    @classmethod
    def _text(cls, given: str | None) -> str | None:
        if given is not None and not all(each.isprintable() or each in "\n\t" for each in given):
            raise ValueError("control characters are not allowed")
        return given


class VmSettings(In):
    """How a machine is to be, beside its sizes. All of these hold from the next power cycle on."""

    machine: Word | None = Field(default=None, description="The machine type, such as q35.")
    cpu_model: Word | None = Field(default=None, description="A CPU model, or host-model, host-passthrough, maximum.")
    hugepages: Word | None = Field(default=None, description="The size of its huge pages, default, or off.")
    firmware: Literal["bios", "uefi"] | None = None
    boot: list[Literal["hd", "cdrom", "network", "fd"]] | None = Field(
        default=None, min_length=1, max_length=4, description="What it boots from, in this order."
    )
    video: Literal["none", "vga", "virtio", "qxl", "cirrus", "bochs"] | None = None
    serial: Literal["none", "pty"] | None = Field(default=None, description="The serial port, with the console.")
    rng: bool | None = Field(default=None, description="Whether it has a source of random numbers.")
    watchdog: Literal["none", "reset", "shutdown", "poweroff", "pause", "dump"] | None = None
    tpm: bool | None = Field(default=None, description="Whether it has an emulated TPM 2.0.")
    xml_patch: list[XmlStep] | None = Field(
        default=None,
        min_length=1,
        max_length=patch.MAX_STEPS,
        description="Changes of libvirt's document for what has no option; for administrators.",
    )

    @field_validator("xml_patch")
    @classmethod
    def _usable(cls, given: list[XmlStep] | None) -> list[XmlStep] | None:
        try:
            patch.steps([each.model_dump() for each in given or []])
        except VirtfleetError as error:
            raise ValueError(f"{error.wanted}: {error.obstacle}. {error.hint}") from error
        return given

    def given_settings(self) -> dict[str, Any]:
        """Return those that are to be changed, as module vm takes them."""
        names = [name for name in VmSettings.model_fields if name != "xml_patch"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
