"""Clones of machines."""

from typing import Literal

from pydantic import Field, model_validator

from virtfleet.schemas.base import In, Text


class CloneIn(In):
    """A machine to make like another one."""

    name: Text
    mode: Literal["full", "linked", "fresh"] = Field(
        default="full", description="Independent copies of its disks, copies over the same image, or new disks."
    )
    snapshot: Text | None = Field(default=None, description="A snapshot of it that the disks are to be as.")
    delete_source: bool = Field(default=False, description="Delete the other one, once the new one is there.")
    address: Text | None = Field(default=None, description="An address of its network; a free one if left out.")
    ssh_keys: list[str] | None = Field(default=None, max_length=100, description="The other one's if left out.")
    user_data: str | None = Field(default=None, description="cloud-init user data; kept as a secret.")
    wait_for: Literal["none", "running", "address", "agent"] | None = None
    start: bool = True

    @model_validator(mode="after")
    def _possible(self) -> "CloneIn":
        if self.mode == "fresh" and self.snapshot is not None:
            raise ValueError("a fresh machine has nothing of a snapshot: leave it out, or use mode full or linked")
        return self
