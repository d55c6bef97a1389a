"""libvirt's network filters of a host."""

from typing import Annotated, Any, Literal

from ansible_collections.virtfleet.core.plugins.module_utils.nwfilter_rules import ATTRIBUTES, DEFAULT_PRIORITY
from pydantic import AfterValidator, Field

from virtfleet.schemas.base import In, Out, Text

Value = Text | int
Priority = Annotated[int, Field(ge=-1000, le=1000)]


def _known(text: str) -> str:
    if text not in ATTRIBUTES:
        raise ValueError(f"libvirt filters no such protocol; it can be {', '.join(ATTRIBUTES)}")
    return text


Protocol = Annotated[Text, AfterValidator(_known)]


class Rule(In):
    """A rule, or with `filter` another filter whose rules hold too."""

    filter: Text | None = None
    parameters: dict[Text, Value | list[Value]] | None = Field(
        default=None, description="Values of that filter's variables."
    )
    action: Literal["accept", "drop", "reject", "return", "continue"] | None = None
    direction: Literal["in", "out", "inout"] | None = None
    priority: Priority = DEFAULT_PRIORITY
    stateful: bool = True
    protocol: Protocol | None = Field(default=None, examples=["tcp"], description="What is matched; all if left out.")
    match: dict[Text, Value] | None = Field(
        default=None,
        description="What of the protocol is looked at, by libvirt's names.",
        examples=[{"dstportstart": 80}],
    )


class NwfilterIn(In):
    """A filter. What is left out stays as it is; with nothing said, the job only tells its rules."""

    chain: Text | None = None
    priority: Priority | None = Field(default=None, description="The place of the chain among others.")
    rules: list[Rule] | None = Field(default=None, max_length=10_000, description="All of them, in their order.")


class NwfilterOut(Out):
    """A filter that was last seen on a host."""

    name: str


def rules_of(given: NwfilterIn) -> dict[str, Any]:
    """Return what was given, as module nwfilter takes it: each rule whole."""
    plain = given.model_dump(exclude_none=True, exclude={"rules"})
    return plain if given.rules is None else {**plain, "rules": [rule.model_dump() for rule in given.rules]}
