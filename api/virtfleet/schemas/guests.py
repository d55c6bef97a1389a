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


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it must be one line of text")
    return text


class FileIn(In):
    """A file inside a machine."""

    path: Annotated[str, Field(pattern="^/", max_length=1024), AfterValidator(_one_line)]
    content: Annotated[str, Field(max_length=2**20)] = Field(description="What it is to hold; kept as a secret.")


class GuestIn(In):
    """How the inside of a machine is to be; what is left out stays."""

    frozen: bool | None = Field(default=None, description="Hold all writing to its disks, until it is false again.")
    file: FileIn | None = None
    user: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)] | None = None
    ssh_keys: list[Annotated[str, Field(max_length=16384), AfterValidator(_one_line)]] | None = Field(
        default=None, max_length=100, description="Public keys that may log in as the user."
    )
    only_ssh_keys: bool = Field(default=False, description="Whether no other key may.")
    password: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_one_line)] | None = Field(
        default=None, description="The user's password; kept as a secret."
    )


class ExecIn(In):
    """A program to run inside a machine."""

    argv: list[Word] = Field(min_length=1, max_length=256, description="The program and its arguments; no shell.")
    stdin: Annotated[str, AfterValidator(_short_enough)] | None = Field(
        default=None, description="What it reads from its input; kept as a secret."
    )
    creates: Word | None = Field(default=None, description="A file in the machine; where it is there, nothing is run.")
    timeout: float = Field(default=60.0, ge=1, le=3600, description="Seconds that it may take.")
