# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import metadata
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from hypothesis import given, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def domain(values: dict) -> str:
    root = ET.Element("domain", type="test")
    ET.SubElement(root, "name").text = "metadata-test"
    ET.SubElement(root, "memory", unit="MiB").text = "64"
    ET.SubElement(ET.SubElement(root, "os"), "type").text = "hvm"
    ET.SubElement(root, "metadata").append(metadata.build(values))
    return ET.tostring(root, encoding="unicode")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_value_survives_the_way_there_and_back(values: dict) -> None:
    assert metadata.read(domain(values)) == values


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), st.text()))
def test_any_text_survives_libvirt(values: dict) -> None:
    connection = libvirt.open("test:///default")
    machine = connection.defineXML(domain(values))
    assert metadata.read(machine.XMLDesc()) == values
    connection.close()


@pytest.mark.parametrize("broken", ["", "{", "[1]", "7", "[" * 100_000], ids=lambda text: text[:3])
def test_an_element_broken_by_hand_reads_as_empty(broken: str) -> None:
    root = ET.fromstring(domain({"id": "vm_1"}))
    element = root.find(f"metadata/{metadata.TAG}")
    assert element is not None
    element.text = broken
    assert metadata.read(ET.tostring(root, encoding="unicode")) == {}


def test_a_machine_of_others_has_no_metadata() -> None:
    assert metadata.read("<domain><name>x</name></domain>") == {}


@pytest.mark.parametrize("value", [float("nan"), b"bytes", object()])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(VirtfleetError) as caught:
        metadata.build({"key": value})
    assert caught.value.code == "invalid"
