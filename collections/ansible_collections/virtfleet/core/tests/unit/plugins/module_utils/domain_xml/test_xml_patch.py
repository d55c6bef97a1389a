# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way out by XPath: text stays text, and nobody gets at what a machine is known by."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import patch
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

DOCUMENT = """<domain type='qemu'><name>n</name><uuid>u</uuid><metadata><x/></metadata>
<features><acpi/></features><devices><disk><target dev='vda'/></disk><disk><target dev='vdb'/></disk></devices>
</domain>"""


def step(path: str, value: str | None = None, attribute: str | None = None, state: str = "present") -> dict[str, Any]:
    return {"path": path, "value": value, "attribute": attribute, "state": state}


def patched(*given: dict[str, Any]) -> ET.Element:
    root = ET.fromstring(DOCUMENT)
    for each in patch.steps(given):
        patch.apply(root, each)
        assert patch.look(root, each) == each.value
        before = ET.tostring(root)
        patch.apply(root, each)
        assert ET.tostring(root) == before
    return root


def test_what_is_there_is_changed_and_what_is_not_is_made() -> None:
    root = patched(
        step("/domain/devices/disk[2]/target", "vdz", "dev"),
        step("description", "new"),
        step("features/hyperv/relaxed", "on", "state"),
        step("./features/acpi", state="absent"),
        step("os/bios", "yes", "useserial"),
    )
    assert [each.get("dev") for each in root.iterfind("devices/disk/target")] == ["vda", "vdz"]
    assert root.findtext("description") == "new"
    assert root.find("features/hyperv/relaxed[@state='on']") is not None
    assert root.find("features/acpi") is None


@pytest.mark.parametrize("text", ["</description><devices/>", "{{ 7 * 7 }}", "&amp;", "$(id)", "é 😀"])
def test_hostile_values_stay_text(text: str) -> None:
    root = patched(step("description", text), step("features/acpi", text, "x"))
    again = ET.fromstring(ET.tostring(root, encoding="unicode"))
    assert again.findtext("description") == text
    assert len(again) == len(root)


@pytest.mark.parametrize(
    "given",
    [
        step("", "x"),
        step("/", "x"),
        step("//disk", "x"),
        step("../x", "x"),
        step("devices/../name", "x"),
        step("a[", "x"),
        step("a[@", "x"),
        step("a" * 1000, "x"),
        step("a\0", "x"),
        step(".//a//b//c//d", "x"),
        step("devices", "x", "no such"),
        step("devices", "x", "a='1' b"),
        step("devices"),
        step("devices", "x", state="absent"),
        step("devices", "x" * 5000),
    ],
)
def test_what_is_no_path_or_value_is_invalid(given: dict[str, Any]) -> None:
    with pytest.raises(VirtfleetError) as failed:
        patch.steps([given])
    assert failed.value.code == "invalid"


def test_two_steps_about_one_part_and_too_many_are_invalid() -> None:
    for given in (
        [step("description", "a"), step("/domain/description", "b")],
        [step(f"a{n}", "x") for n in range(51)],
    ):
        with pytest.raises(VirtfleetError) as failed:
            patch.steps(given)
        assert failed.value.code == "invalid"


@pytest.mark.parametrize("path", ["name", "uuid", "metadata", "metadata/x", "*", ".//metadata/x", "./metadata/*"])
def test_what_a_machine_is_known_by_is_refused(path: str) -> None:
    root = ET.fromstring(DOCUMENT)
    for given in (step(path, "x"), step(path, "x", "a"), step(path, state="absent")):
        with pytest.raises(VirtfleetError) as refused:
            patch.apply(root, patch.steps([given])[0])
        assert refused.value.code == "refused"


def test_nothing_is_made_for_a_path_that_searches() -> None:
    with pytest.raises(VirtfleetError) as failed:
        patched(step("devices/disk[5]", "x", "y"))
    assert failed.value.code == "invalid"
