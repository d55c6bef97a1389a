"""The three files of S1's `./script PM_FILE IMAGE_FILE TYPES_FILE` (rows S1.8 to S1.12 and S1.17)."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST_IMAGE = 100
ADDRESS = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*@)?[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?", re.ASCII)
URI = re.compile(r"[a-z+0-9]+://\S*", re.ASCII)


class S1FileError(ValueError):
    """A line that cannot be used; the message names file and line."""


@dataclass(frozen=True)
class S1Image:
    """An image, with the id that clients know it by."""

    number: int
    path: str


@dataclass(frozen=True)
class S1Type:
    """An instance type: MiB of memory, GiB of disk."""

    tid: int
    cpu: int
    ram: int
    disk: int


@dataclass(frozen=True)
class S1Files:
    """All three files: hosts as they were written, in the order of their ids, from 1."""

    hosts: tuple[str, ...]
    images: tuple[S1Image, ...]
    types: tuple[S1Type, ...]


def read(pm_file: Path, image_file: Path, types_file: Path) -> S1Files:
    """Read the three files. Raises S1FileError at the first line that cannot be used."""
    return S1Files(_hosts(pm_file), _images(image_file), _types(types_file))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise S1FileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise S1FileError(f"{path}: it is not a text file") from error


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that say something, with their numbers; what follows a # is a comment."""
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(_content(path).splitlines(), 1)]
    found = [(number, line) for number, line in lines if line]
    if not found:
        raise S1FileError(f"{path}: there is no line in it that says something")
    return found


def _hosts(path: Path) -> tuple[str, ...]:
    hosts: list[str] = []
    for number, line in _lines(path):
        if not (URI if "://" in line else ADDRESS).fullmatch(line):
            raise S1FileError(f"{path}, line {number}: {line[:80]!r} is no address, user@address or libvirt URI")
        if line in hosts:
            raise S1FileError(f"{path}, line {number}: the host {line} was named before")
        hosts.append(line)
    return tuple(hosts)


def _images(path: Path) -> tuple[S1Image, ...]:
    images: list[S1Image] = []
    for number, line in _lines(path):
        file = Path(line)
        if not file.is_absolute():
            raise S1FileError(f"{path}, line {number}: {line[:80]!r} is not a full path")
        if not file.is_file():
            raise S1FileError(f"{path}, line {number}: there is no file {line[:200]!r}")
        if any(line == image.path for image in images):
            raise S1FileError(f"{path}, line {number}: the image {line} was named before")
        images.append(S1Image(FIRST_IMAGE + len(images), line))
    return tuple(images)


def _types(path: Path) -> tuple[S1Type, ...]:
    text = "\n".join(line.partition("#")[0] for line in _content(path).splitlines()).strip()
    # The sample that clients were given lacks the opening brace.
    if text.startswith('"types"'):
        text = "{" + text
        if text.count("{") > text.count("}"):
            text += "}"
    try:
        listed = json.loads(text)["types"]
    except json.JSONDecodeError as error:
        raise S1FileError(f"{path}, line {error.lineno}: it is not JSON ({error.msg})") from error
    except (KeyError, TypeError) as error:
        raise S1FileError(f'{path}: it is not like {{"types": [{{"tid", "cpu", "ram", "disk"}}]}}') from error
    if not isinstance(listed, list) or not listed:
        raise S1FileError(f"{path}: it names no types")
    types = [_type(path, position, each) for position, each in enumerate(listed, 1)]
    numbers = [each.tid for each in types]
    if len(set(numbers)) != len(numbers):
        raise S1FileError(f"{path}: two types have the same tid")
    return tuple(types)


def _type(path: Path, position: int, given: Any) -> S1Type:
    if not isinstance(given, dict) or set(given) != {"tid", "cpu", "ram", "disk"}:
        raise S1FileError(f"{path}, type {position}: it needs just tid, cpu, ram and disk")
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise S1FileError(f"{path}, type {position}: {key} is not a whole number above 0")
    return S1Type(**given)
