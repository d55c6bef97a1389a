# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of machines: valid by libvirt's own schemas, whatever stands in it, and read back as it was meant."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import build, tree
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.read import read
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import Disk, Nic, VmSpec

SPEC = VmSpec(
    name="web1",
    uuid="5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11",
    vcpus=2,
    memory_bytes=512 * 2**20,
    virt_type="qemu",
    arch="x86_64",
    disks=(Disk("/pool/web1-root", "qcow2", serial="root"), Disk("/dev/vg/data", "raw", block=True, read_only=True)),
    nics=(Nic("bridge", "vmbr0", "52:54:00:12:34:56"), Nic("network", "default", filter="web")),
    metadata={"id": "vm_1", "made_volumes": [{"pool": "default", "name": "web1-root"}]},
)
HOSTILE = [
    "{{ lookup('pipe', 'touch /tmp/x') }}",
    "</name><devices/>",
    "$(touch x); `id` | & > \"'",
    "../../etc/passwd",
    "é 😀 \u202e",
    "x" * 5000,
]


def valid(document: str, tmp_path: Path) -> None:
    file = tmp_path / "domain.xml"
    file.write_text(document, encoding="utf-8")
    checked = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, virt_type="kvm"),
        replace(SPEC, virt_type="kvm", cpu_model="host-passthrough", machine="q35"),
        replace(SPEC, cpu_model="qemu64"),
        replace(SPEC, disks=(), nics=(), metadata={}),
    ],
)
def test_every_document_validates_against_libvirts_schema(spec: VmSpec, tmp_path: Path) -> None:
    valid(build(spec), tmp_path)


def test_a_filter_guards_the_card_that_it_was_named_for() -> None:
    guards = [card.find("filterref") for card in tree(SPEC).iterfind("devices/interface")]
    assert [None if guard is None else guard.get("filter") for guard in guards] == [None, "web"]


def test_what_was_built_is_read_back() -> None:
    facts = read(build(SPEC))
    assert (facts["name"], facts["uuid"], facts["vcpus"]) == (SPEC.name, SPEC.uuid, 2)
    assert facts["memory_bytes"] == SPEC.memory_bytes
    assert [disk["source"] for disk in facts["disks"]] == ["/pool/web1-root", "/dev/vg/data"]
    assert [disk["read_only"] for disk in facts["disks"]] == [False, True]
    assert [(nic["kind"], nic["source"], nic["mac"]) for nic in facts["networks"]] == [
        ("bridge", "vmbr0", "52:54:00:12:34:56"),
        ("network", "default", None),
    ]
    assert facts["metadata"] == {"id": "vm_1"}
    assert facts["made_volumes"] == [{"pool": "default", "name": "web1-root"}]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, tmp_path: Path) -> None:
    spec = replace(SPEC, disks=(Disk(f"/pool/{text}", "qcow2"),), metadata={"owner": text, "made_volumes": []})
    document = build(spec)
    valid(document, tmp_path)
    facts = read(document)
    assert facts["disks"][0]["source"] == f"/pool/{text}"
    assert facts["metadata"]["owner"] == text
    assert len(facts["networks"]) == 2
