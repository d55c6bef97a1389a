"""Plans: what is asked of one. Nothing is carried out."""

from typing import Any, Literal

from pydantic import Field

from virtfleet.schemas.base import In, Size, Text
from virtfleet.schemas.images import LARGEST_VCPUS
from virtfleet.schemas.vms import LARGEST, SMALLEST_DISK, SMALLEST_MEMORY

MOST = 1000
"""The longest list that is taken."""


class AddedHosts(In):
    """Hosts that are not there, to see what they would change."""

    vcpus: int = Field(ge=1, le=100_000, description="Real processors of each.")
    memory: Size = Field(ge=SMALLEST_MEMORY, le=LARGEST)
    disk: Size | None = Field(
        default=None, ge=SMALLEST_DISK, le=LARGEST, description="The size of each of its pools; if left out, ample."
    )
    count: int = Field(default=1, ge=1, le=MOST)


class AddedVms(In):
    """Machines that are not there, to see whether they would fit."""

    flavor: Text | None = None
    vcpus: int | None = Field(default=None, ge=1, le=LARGEST_VCPUS)
    memory: Size | None = Field(default=None, ge=SMALLEST_MEMORY, le=LARGEST)
    disk: Size | None = Field(default=None, ge=SMALLEST_DISK, le=LARGEST)
    pool: Text | None = None
    count: int = Field(default=1, ge=1, le=MOST)


class PlanIn(In):
    """What to plan. Each option belongs to the kinds that its description begins with."""

    kind: Literal["balance", "consolidate", "drain", "what-if"]
    zone: Text | None = Field(default=None, description="All: the zone; machines do not leave it.")
    enough: float | None = Field(default=None, ge=0, le=1e6, description="balance: the score that is even enough.")
    min_gain: float | None = Field(
        default=None, ge=1e-6, le=1e6, description="balance: what a move must gain from there on."
    )
    per_gib: float | None = Field(default=None, ge=0, le=1e6, description="balance: the price of moving a GiB.")
    per_move: float | None = Field(default=None, ge=1e-6, le=1e6, description="balance: the price of a move.")
    rule: Literal["fewest_hosts", "volume_ratio"] | None = Field(default=None, description="consolidate: the rule.")
    least_hosts: int | None = Field(
        default=None, ge=1, le=100_000, description="consolidate: keep at least so many hosts in use."
    )
    choices: int | None = Field(
        default=None, ge=1, le=100, description="consolidate: for how many numbers of hosts to show the moves."
    )
    max_moves: int | None = Field(default=None, ge=0, le=100_000, description="balance, consolidate: the most moves.")
    hosts: list[Text] | None = Field(
        default=None, min_length=1, max_length=MOST, description="drain: the hosts to empty; required."
    )
    per_host: int | None = Field(
        default=None, ge=1, le=1000, description="balance, consolidate, drain: moves at one time that a host is in."
    )
    keep_n_plus_one: bool | None = Field(
        default=None, description="balance, consolidate, drain: whether the loss of a host must stay bearable."
    )
    policy: Text | dict[str, Any] | None = Field(
        default=None, description="drain, what-if: the placement policy that chooses the hosts."
    )
    lose_hosts: list[Text] | None = Field(default=None, max_length=MOST, description="what-if: hosts that are lost.")
    add_hosts: list[AddedHosts] | None = Field(default=None, max_length=MOST, description="what-if: hosts that come.")
    remove_vms: list[Text] | None = Field(default=None, max_length=MOST, description="what-if: machines that go.")
    add_vms: list[AddedVms] | None = Field(default=None, max_length=MOST, description="what-if: machines that come.")
