# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading plain data that came from outside: every complaint names the path of the field that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 2**53
"""The largest number taken: exact in floating point too, so that every way of computing agrees (8 PiB of memory)."""
LARGEST_POOL = 2**62
"""The largest size of a storage pool, in bytes."""
LONGEST = 255
"""The longest name, in characters."""
LONGEST_SENTENCE = 1000
"""What is kept of a message, in characters."""


class SchemaError(ValueError):
    """Data at the door are not what the schema says; `path` names the field, such as `hosts[3].memory.total_bytes`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Door:
    """One mapping on its way in. Fields are taken one by one; `done` refuses those that nobody asked for."""

    __slots__ = ("_known", "_values", "path")

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise SchemaError(path, f"a mapping is wanted, not {_shown(value)}")
        self._values: Mapping[Any, Any] = value
        self._known: set[str] = set()
        self.path = path

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def raw(self, key: str) -> Any:
        """Return the value as it is, or None."""
        self._known.add(key)
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Tell whether the field is there and not null."""
        return self.raw(key) is not None

    def integer(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = LARGEST, unit: str = ""
    ) -> int:
        """Return a whole number. Without a default the field is required."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        what = f"a whole number{f' of {unit}' if unit else ''}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise SchemaError(self._at(key), f"{what} is wanted, not {_shown(value)}")
        if not least <= value <= most:
            raise SchemaError(self._at(key), f"{what} from {least} to {most} is wanted, not {value}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, least: float = 0.0, most: float = 1e9) -> float:
        """Return a finite number. Without a default the field is required."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        return _number(value, self._at(key), least, most)

    def number_or_none(self, key: str, *, least: float = 0.0, most: float = 1e9) -> float | None:
        """Return a finite number, or None where nobody measured: unknown is never zero."""
        value = self.raw(key)
        return None if value is None else _number(value, self._at(key), least, most)

    def truth(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SchemaError(self._at(key), f"true or false is wanted, not {_shown(value)}")
        return value

    def text(self, key: str) -> str:
        """Return a required, non-empty name."""
        return name_of(self.raw(key), self._at(key))

    def text_or_none(self, key: str) -> str | None:
        """Return a name, or None."""
        value = self.raw(key)
        return None if value is None else name_of(value, self._at(key))

    def sentence_or_none(self, key: str) -> str | None:
        """Return a message on one line, or None."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise SchemaError(self._at(key), f"a text is wanted, not {_shown(value)}")
        words = "".join(letter if letter.isprintable() else " " for letter in value).split()
        return " ".join(words)[:LONGEST_SENTENCE] or None

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """Return one of the words that are allowed."""
        value = self.raw(key)
        if value is None:
            return default
        allowed = sorted(choices)
        if value not in allowed:
            raise SchemaError(self._at(key), f"one of {', '.join(allowed)} is wanted, not {_shown(value)}")
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of names, in the order given."""
        return tuple(name_of(value, path) for value, path in self.items(key))

    def items(self, key: str) -> list[tuple[Any, str]]:
        """Return the elements of a list, each with its path; an absent list is empty."""
        value = self.raw(key)
        return [] if value is None else list_of(value, self._at(key))

    def entries(self, key: str) -> list[tuple[str, Any, str]]:
        """Return the entries of a mapping: (name, value, path); an absent mapping is empty."""
        value = self.raw(key)
        if value is None:
            return []
        path = self._at(key)
        if not isinstance(value, Mapping):
            raise SchemaError(path, f"a mapping is wanted, not {_shown(value)}")
        return [(name_of(name, path), entry, f"{path}.{name}") for name, entry in value.items()]

    def door(self, key: str) -> Door:
        """Return the door of a mapping inside; an absent one is an empty mapping."""
        value = self.raw(key)
        return Door({} if value is None else value, self._at(key))

    def fail(self, key: str, problem: str) -> SchemaError:
        """Return the error for a field of this mapping."""
        return SchemaError(self._at(key), problem)

    def done(self) -> None:
        """Refuse fields that the schema does not know: a misspelt field would otherwise be silently without effect."""
        if len(self._known) >= len(self._values) and self._known.issuperset(self._values):
            return
        for key in self._values:
            if key not in self._known:
                known = ", ".join(sorted(self._known))
                raise SchemaError(self._at(_shown(key).strip("'\"")), f"no such field; the schema knows {known}")


def _number(value: object, path: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SchemaError(path, f"a number is wanted, not {_shown(value)}")
    if not least <= value <= most:
        raise SchemaError(path, f"a number from {least:g} to {most:g} is wanted, not {value}")
    return float(value)


def name_of(value: object, path: str) -> str:
    """Return a non-empty text without control characters."""
    if not isinstance(value, str) or not value:
        raise SchemaError(path, f"a text is wanted, not {_shown(value)}")
    if len(value) > LONGEST:
        raise SchemaError(path, f"the text has {len(value)} characters; at most {LONGEST} are taken")
    if not value.isprintable():
        raise SchemaError(path, f"the text {_shown(value)} has characters that cannot be printed")
    # A str subclass (Ansible tags its strings) would slow every later comparison down.
    return str(value)


def list_of(value: object, path: str) -> list[tuple[Any, str]]:
    """Return the elements of a list, each with its path."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise SchemaError(path, f"a list is wanted, not {_shown(value)}")
    return [(element, f"{path}[{number}]") for number, element in enumerate(value)]


def unique(elements: Iterable[tuple[T, str]], key: Callable[[T], str], field: str) -> tuple[T, ...]:
    """Return the elements; raises SchemaError when two have the same key."""
    seen: dict[str, str] = {}
    kept: list[T] = []
    for element, path in elements:
        name = key(element)
        if name in seen:
            raise SchemaError(f"{path}.{field}", f"{name!r} was given before, at {seen[name]}")
        seen[name] = path
        kept.append(element)
    return tuple(kept)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return the key that sorts names as people do: h2 before h10. Equal only for equal names."""
    parts: list[tuple[int, int, str]] = []
    word = ""
    digits = ""
    for character in name:
        if character in "0123456789":
            if word:
                parts.append((1, 0, word))
                word = ""
            digits += character
        else:
            if digits:
                parts.append((0, int(digits), digits))
                digits = ""
            word += character
    if digits:
        parts.append((0, int(digits), digits))
    if word:
        parts.append((1, 0, word))
    return tuple(parts)
