"""Secrets that libvirt keeps on a host."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from virtfleet.schemas.base import In, Out, Text


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError("it is no UUID") from None


class HostSecretIn(In):
    """A secret to keep. What is left out stays as it is."""

    usage: Literal["volume", "ceph", "iscsi", "tls", "vtpm"]
    usage_id: Text = Field(description="The path of a volume, the target of iSCSI, a name for the others.")
    value: Annotated[str, Field(min_length=1, max_length=16384)] | None = Field(
        default=None, description="The secret itself, which nobody is told again."
    )
    update_value: Literal["always", "on_create"] | None = Field(
        default=None, description="When one that is there gets the value; on_create if it is private."
    )
    uuid: Annotated[Text, AfterValidator(_uuid)] | None = Field(default=None, description="For a new one.")
    description: Text | None = None
    ephemeral: bool | None = Field(default=None, description="Keep it in the memory of libvirt's daemon only.")
    private: bool | None = Field(default=None, description="Have libvirt tell its value to nobody.")


class HostSecretOut(Out):
    """A secret that a host was last seen to keep."""

    uuid: str
    usage: str
    usage_id: str
