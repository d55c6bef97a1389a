"""What is done inside machines."""

from typing import Annotated

from pydantic import AfterValidator, Field

from virtfleet.schemas.base import In

LONGEST_STDIN_BYTES = 2**16
"""What module vm_exec can send."""


def _no_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("a word of a command cannot hold a null character")
    return text


def _short_enough(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_STDIN_BYTES:
        raise ValueError(f"at most {LONGEST_STDIN_BYTES} bytes can be sent; write more to a file in the machine")
    return text


Word = Annotated[str, Field(max_length=32768), AfterValidator(_no_null)]


class ExecIn(In):
    """A program to run inside a machine."""

    argv: list[Word] = Field(min_length=1, max_length=256, description="The program and its arguments; no shell.")
    stdin: Annotated[str, AfterValidator(_short_enough)] | None = Field(
        default=None, description="What it reads from its input; kept as a secret."
    )
    creates: Word | None = Field(default=None, description="A file in the machine; where it is there, nothing is run.")
    timeout: float = Field(default=60.0, ge=1, le=3600, description="Seconds that it may take.")
