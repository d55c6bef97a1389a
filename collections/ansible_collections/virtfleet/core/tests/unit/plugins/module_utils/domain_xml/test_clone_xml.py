# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The document of a clone: the same shape, nothing that two machines cannot both have, the original as it was."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import clone, devices, metadata, read
from lxml import etree

SCHEMA = etree.RelaxNG(file="/usr/share/libvirt/schemas/domain.rng")
OLD, NEW = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c21", "6c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c22"
DOCUMENT = f"""
<domain type='qemu'>
  <name>old</name>
  <uuid>{OLD}</uuid>
  <genid>{OLD}</genid>
  <metadata>
    <v:vm xmlns:v="{metadata.NAMESPACE}">{{"id": "vm_1", "made_volumes": [{{"name": "a"}}]}}</v:vm>
    <other:x xmlns:other="urn:other">kept</other:x>
  </metadata>
  <memory unit='KiB'>131072</memory>
  <vcpu placement='static' current='1'>4</vcpu>
  <sysinfo type='smbios'><system><entry name='uuid'>{OLD}</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram>/var/lib/libvirt/qemu/nvram/old_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/p/old-root'/>
      <backingStore type='file'><format type='qcow2'/><source file='/p/base'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>root</serial>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/p/old-seed.iso'/><target dev='vdb' bus='virtio'/>
      <readonly/><serial>seed</serial>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/><source file='/p/both'/><target dev='vdc' bus='virtio'/>
      <shareable/><serial>both</serial>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='vmbr0'/><target dev='tap-old'/><model type='virtio'/>
      <filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.9'/></filterref>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/run/old.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5905' autoport='no' listen='127.0.0.1'/>
    <vsock model='virtio'><cid auto='no' address='7'/></vsock>
  </devices>
</domain>
"""


def made(**more: object) -> ET.Element:
    values: dict[str, object] = {
        **{"name": "new", "uuid": NEW, "metadata": {"id": "vm_2"}, "sources": {"vda": "/p/new-root"}},
        **{"macs": [clone.mac_of(NEW, 0)], "seed": "/p/new-seed.iso"},
    }
    return clone.clone(ET.fromstring(DOCUMENT), clone.Identity(**{**values, **more}))  # type: ignore[arg-type]


def test_nothing_of_it_is_the_originals_but_what_both_may_have() -> None:
    text = ET.tostring(made(), encoding="unicode")
    assert SCHEMA.validate(etree.fromstring(text)), SCHEMA.error_log
    for own in (OLD, "old", "52:54:00:00:00:01", "5905", 'address="7"', "vm_1", "/p/base", "10.0.0.9"):
        assert own not in text, own
    for shared in ("/p/both", "vmbr0", "kept", "OVMF_CODE", "clean-traffic", "127.0.0.1", 'current="1"'):
        assert shared in text, shared
    facts = read.read(text)
    assert [disk["source"] for disk in facts["disks"]] == ["/p/new-root", "/p/new-seed.iso", "/p/both"]
    assert facts["metadata"] == {"id": "vm_2"}


def test_the_original_stays_as_it_is() -> None:
    root = ET.fromstring(DOCUMENT)
    before = ET.tostring(root)
    clone.clone(root, clone.Identity("new", NEW, {}, {"vda": "/x"}, macs=["52:54:00:00:00:02"]))
    assert ET.tostring(root) == before


def test_cards_can_be_others_and_a_seed_can_come_or_go() -> None:
    wanted = {"source": {"kind": "network", "name": "lan"}, "model": "virtio", "link": "up", "filter": "none"}
    cards = made(cards=[devices.nic_element(wanted, "52:54:00:00:00:09")], seed=None).findall("devices/interface")
    assert [card.get("type") for card in cards] == ["network"]
    assert clone.seed_of(made(seed=None)) is None
    bare = ET.fromstring(DOCUMENT)
    parent = bare.find("devices")
    seed = clone.seed_of(bare)
    assert parent is not None
    assert seed is not None
    parent.remove(seed)
    grown = clone.clone(bare, clone.Identity("new", NEW, {}, {}, macs=["52:54:00:00:00:02"], seed="/p/s.iso"))
    found = clone.seed_of(grown)
    assert found is not None
    assert (devices.source_of(found), devices.target_of(found)) == ("/p/s.iso", "vdb")
    assert SCHEMA.validate(etree.fromstring(ET.tostring(grown))), SCHEMA.error_log


def test_a_mac_is_the_same_each_time_and_another_for_each_card() -> None:
    macs = [clone.mac_of(NEW, number) for number in range(20)]
    assert macs == [clone.mac_of(NEW, number) for number in range(20)]
    assert len(set(macs)) == 20
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)


@pytest.mark.parametrize("hostile", ["</metadata><x/>", "{{ 7 * 7 }}", "$(id)", "a\0b", "]]>", "\ud800"])
def test_hostile_metadata_stay_text(hostile: str) -> None:
    text = ET.tostring(made(metadata={"owner": hostile}), encoding="unicode")
    assert read.read(text)["metadata"] == {"owner": hostile}


def test_only_disks_that_it_writes_to_alone_are_its_own() -> None:
    assert [devices.target_of(disk) for disk in clone.own_disks(ET.fromstring(DOCUMENT))] == ["vda"]
