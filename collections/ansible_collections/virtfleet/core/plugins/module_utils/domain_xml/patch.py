# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way out for what has no option: setting and removing parts of a machine's document by XPath.

Paths are what the standard library understands of XPath. Text stays text: nothing that is given becomes markup.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

MAX_STEPS = 50
MAX_PATH_LENGTH = 256
MAX_VALUE_LENGTH = 4096
_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_PLAIN = re.compile(rf"{_NAME}(/{_NAME})*", re.ASCII)
_ATTRIBUTE = re.compile(_NAME, re.ASCII)
_OURS = ("name", "uuid", "metadata")


@dataclass(frozen=True)
class Step:
    """One element, or one attribute of it, set to `value` or removed (`value` None)."""

    path: str
    attribute: str | None
    value: str | None

    @property
    def key(self) -> str:
        """The step's name in a plan."""
        return self.path if self.attribute is None else f"{self.path}@{self.attribute}"


def steps(given: Sequence[dict[str, Any]]) -> list[Step]:
    """Return the steps of option `xml_patch`, checked. Raises VirtfleetError `invalid`."""
    if len(given) > MAX_STEPS:
        raise _invalid("change", f"{len(given)} steps are too many", f"Use at most {MAX_STEPS}.")
    found = [_step(each) for each in given]
    keys = [step.key for step in found]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise _invalid(twice, "two steps are about it", "Name each part once.")
    return found


def _step(given: dict[str, Any]) -> Step:
    path, attribute, value = given["path"], given["attribute"], given["value"]
    path = path.removeprefix("/domain/")
    if not path.startswith(".//"):
        path = path.removeprefix("./")
    shown = path if len(path) <= 60 else f"{path[:60]}…"
    if not path or path.startswith("/") or ".." in path or len(path) > MAX_PATH_LENGTH or not path.isprintable():
        raise _invalid(shown, "it is no path below <domain>", "Write it like devices/memballoon or features/acpi.")
    if path.count("//") > 3:
        raise _invalid(shown, "it searches too widely", "Name the elements on the way.")
    try:
        ET.Element("domain").findall(path)
    except (SyntaxError, KeyError, ValueError, TypeError, IndexError):
        raise _invalid(shown, "it is not XPath as far as it is understood here", "Use a simpler path.") from None
    if attribute is not None and not _ATTRIBUTE.fullmatch(attribute):
        raise _invalid(shown, "there is no attribute of such a name", "Write it like model.")
    if given["state"] == "absent":
        if value is not None:
            raise _invalid(shown, "what is removed has no value", "Leave value or state: absent away.")
        return Step(path, attribute, None)
    if value is None:
        raise _invalid(shown, "it lacks a value", "Give value, or state: absent to remove it.")
    if len(value) > MAX_VALUE_LENGTH:
        raise _invalid(shown, "its value is too long", f"Use at most {MAX_VALUE_LENGTH} characters.")
    return Step(path, attribute, value)


def look(root: ET.Element, step: Step) -> str | None:
    """Return what stands there: the text, or the value of the attribute, of the first element; None for nothing.

    Where several elements match and one of them is not as wanted, that one's is returned.
    """
    found = [each.get(step.attribute) if step.attribute else (each.text or "").strip() for each in _found(root, step)]
    return next((value for value in found if value != step.value), found[0] if found else None)


def apply(root: ET.Element, step: Step) -> None:
    """Carry a step out. Raises VirtfleetError `invalid` when there is nothing to set, `refused` for what is ours."""
    found = _found(root, step)
    if step.value is None:
        _remove(root, step, found)
        return
    if not found:
        if not _PLAIN.fullmatch(step.path):
            raise _invalid(step.key, "no part of the machine is there", "Write a path of plain names to have it made.")
        found = [_made(root, step.path)]
    for element in found:
        if step.attribute is None:
            element.text = step.value
        else:
            element.set(step.attribute, step.value)


def _found(root: ET.Element, step: Step) -> list[ET.Element]:
    found = root.findall(step.path)
    ours = [element for tag in _OURS for top in root.iterfind(tag) for element in top.iter()]
    if step.path.partition("/")[0] in _OURS or any(element is each for element in found for each in ours):
        text = "its name, UUID and metadata are what it is known by"
        raise VirtfleetError(f"change {step.key} of a machine", text, "Use new_name or metadata.", "refused")
    return found


def _remove(root: ET.Element, step: Step, found: list[ET.Element]) -> None:
    if step.attribute is not None:
        for element in found:
            element.attrib.pop(step.attribute, None)
        return
    parents = {element: parent for parent in root.iter() for element in parent}
    for element in found:
        if element in parents:
            parents[element].remove(element)


def _made(root: ET.Element, path: str) -> ET.Element:
    element = root
    for tag in path.split("/"):
        below = element.find(tag)
        element = ET.SubElement(element, tag) if below is None else below
    return element


def _invalid(what: str, obstacle: str, hint: str) -> VirtfleetError:
    return VirtfleetError(f"change {what!r} of a machine by xml_patch", obstacle, hint, "invalid")
