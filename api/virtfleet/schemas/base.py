"""What all schemas share: strict input, sizes with a unit, moments, pages."""

import json
from datetime import datetime
from typing import Annotated, Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from virtfleet import clock


class In(BaseModel):
    """The body of a request: no field that is not known, no guessing of types, no text that cannot be written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _writable(cls, given: Any) -> Any:
        try:
            # JSON can hold half of a character (a lone surrogate), in keys too; no file or database can.
            json.dumps(given, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it holds half of a character") from error
        return given


class Query(BaseModel):
    """What follows `?` in a request; all of it is text to begin with."""

    model_config = ConfigDict(extra="forbid")


class Out(BaseModel):
    """What an answer holds."""

    model_config = ConfigDict(from_attributes=True)


def _size(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError("a size is text with a unit, such as 512MiB")
    try:
        return parse_size(value)
    except VirtfleetError as error:
        raise ValueError(f"{error.obstacle}. {error.hint}") from error


Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": "string", "examples": ["512MiB", "10GiB"], "description": "A size with its unit."}),
]
"""A size: text with a unit outside, bytes inside."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_printable)]
"""One line of text."""
Source = Annotated[str, StringConstraints(min_length=1, max_length=2048), AfterValidator(_printable)]
"""A path or a URL."""
Moment = Annotated[
    datetime,
    PlainSerializer(clock.rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Paging(Query):
    """How much of a list is wanted, and from where."""

    limit: int = Field(default=100, ge=1, le=1000, description="How many items to return at most.")
    cursor: str | None = Field(default=None, max_length=500, description="What the page before gave as `next`.")
