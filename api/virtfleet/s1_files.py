"""The three files of S1's `./script PM_FILE IMAGE_FILE TYPES_FILE` (rows S1.8 to S1.12 and S1.17)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import image_format
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

from virtfleet import host_uris, names
from virtfleet.errors import Problem

FIRST_IMAGE = 100
LARGEST = {"tid": 2_000_000_000, "cpu": 4096, "ram": 2**30, "disk": 2**20}
"""What a type may have at most: the numbers that the API takes, memory in MiB, a disk in GiB."""


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
    taken: dict[str, int] = {}
    for number, line in _lines(path):
        name = _usable(path, number, _name_of_host, line)
        if name in taken:
            raise S1FileError(f"{path}, line {number}: the host {name} was named before, in line {taken[name]}")
        taken[name] = number
        hosts.append(line)
    return tuple(hosts)


def _name_of_host(line: str) -> str:
    return names.check(host_uris.name_from(host_uris.check(line)), "host")


def _name_of_image(line: str) -> str:
    return names.check(names.of_image(line), "image")


def _usable(path: Path, number: int, name_of: Callable[[str], str], line: str) -> str:
    """Return the name that the API will give it; what the API would refuse is refused before anything is started."""
    try:
        return name_of(line)
    except Problem as problem:
        raise S1FileError(f"{path}, line {number}: {problem.detail} {problem.hint}") from problem


def _images(path: Path) -> tuple[S1Image, ...]:
    images: list[S1Image] = []
    taken: dict[str, int] = {}
    for number, line in _lines(path):
        file = Path(line)
        if not file.is_absolute():
            raise S1FileError(f"{path}, line {number}: {line[:80]!r} is not a full path")
        _check_image(path, number, file)
        name = _usable(path, number, _name_of_image, line)
        if name in taken:
            raise S1FileError(f"{path}, line {number}: an image {name} was named before, in line {taken[name]}")
        taken[name] = number
        images.append(S1Image(FIRST_IMAGE + len(images), line))
    return tuple(images)


def _check_image(path: Path, number: int, file: Path) -> None:
    """Look at the beginning of an image, to tell whether it is one."""
    shown = repr(str(file)[:200])
    try:
        if not file.is_file():
            raise S1FileError(f"{path}, line {number}: there is no file {shown}")
        with file.open("rb") as content:
            image_format.importable(image_format.inspect(content, file.stat().st_size), None, f"use {shown}")
    except OSError as error:
        raise S1FileError(f"{path}, line {number}: the file {shown} cannot be read: {error.strerror}") from error
    except VirtfleetError as error:
        raise S1FileError(f"{path}, line {number}: {error}") from error


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
    except (ValueError, RecursionError) as error:
        raise S1FileError(f"{path}: it is not JSON that can be read") from error
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
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST[key]:
            raise S1FileError(f"{path}, type {position}: {key} is not a whole number from 1 to {LARGEST[key]}")
    return S1Type(**given)
