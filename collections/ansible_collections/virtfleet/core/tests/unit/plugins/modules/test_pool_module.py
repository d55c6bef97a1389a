# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools

from .conftest import Call

PATH = "/var/lib/libvirt/p"
NFS = {"type": "netfs", "path": PATH, "source": {"host": "files.example", "dir": "/export"}}
FS = {"type": "fs", "path": PATH, "source": {"device": "/dev/vdb1"}}
LVM = {"type": "logical", "source": {"name": "vg0"}}

# (what is there first, what is asked for, what changes)
TRANSITIONS = [
    (None, {"path": PATH}, ["exists"]),
    (None, {"path": PATH, "state": "inactive"}, ["exists"]),
    (None, NFS, ["exists"]),
    (None, LVM, ["exists"]),
    (None, FS, ["exists"]),
    (FS, FS, []),
    (FS, {**FS, "source": {"device": "/dev/vdc"}, "restart": True}, ["source.device"]),
    (None, {"state": "absent"}, []),
    ({"path": PATH}, {"path": PATH}, []),
    ({"path": PATH}, {}, []),
    (NFS, {}, []),
    (LVM, LVM, []),
    ({"path": PATH}, {"state": "inactive"}, ["active"]),
    ({"path": PATH, "state": "inactive"}, {"state": "inactive"}, []),
    ({"path": PATH, "state": "inactive"}, {}, ["active"]),
    ({"path": PATH}, {"state": "absent"}, ["exists"]),
    ({"path": PATH, "state": "inactive"}, {"state": "absent"}, ["exists"]),
    ({"path": PATH}, {"autostart": False}, ["autostart"]),
    ({"path": PATH}, {"path": PATH + "2", "restart": True}, ["path"]),
    ({"path": PATH, "state": "inactive"}, {"path": PATH + "2", "state": "inactive"}, ["path"]),
    ({"path": PATH}, {**NFS, "restart": True}, ["type", "source.host", "source.dir"]),
]


@pytest.mark.parametrize(("first", "asked", "changes"), TRANSITIONS)
def test_a_pool_is_brought_into_the_wanted_state_once(
    call: Call,
    test_host: libvirt.virConnect,
    first: dict[str, Any] | None,
    asked: dict[str, Any],
    changes: list[str],
) -> None:
    if first is not None:
        call("pool", name="p", **first)

    def documents() -> list[str]:
        return [pool.XMLDesc(0) + str((pool.isActive(), pool.autostart())) for pool in test_host.listAllStoragePools()]

    untouched = documents()
    predicted = call("pool", name="p", check=True, **asked)
    assert documents() == untouched
    done = call("pool", name="p", **asked)
    for result in (predicted, done):
        assert [change["what"] for change in result.values["plan"]] == changes
        assert result.changed == bool(changes)
    assert (predicted.before, predicted.after) == (done.before, done.after)
    again = call("pool", name="p", **asked)
    assert not again.changed
    assert again.before == done.after
    assert (again.values["pool"] is None) == (asked.get("state") == "absent")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "not_found"),
        ({"state": "inactive"}, "not_found"),
        ({"path": "relative"}, "invalid"),
        ({"path": "/a/../../etc"}, "invalid"),
        ({"path": "/a\0b"}, "invalid"),
        ({"type": "netfs", "path": PATH}, "invalid"),
        ({"type": "dir", "path": PATH, "source": {"host": "h"}}, "invalid"),
        ({"type": "netfs", "path": PATH, "source": {"host": "h -o x", "dir": "/e"}}, "invalid"),
        ({"type": "netfs", "path": PATH, "source": {"host": "<h/>", "dir": "/e"}}, "invalid"),
        ({"type": "netfs", "path": PATH, "source": {"host": "h", "dir": "../e"}}, "invalid"),
        ({"type": "logical", "source": {"name": "../vg"}}, "invalid"),
        ({"type": "logical"}, "not_found"),
        ({"type": "fs", "path": PATH}, "invalid"),
        ({"type": "fs", "path": PATH, "source": {"device": "vdb"}}, "invalid"),
    ],
)
def test_what_cannot_be_a_pool_is_refused_and_nothing_is_left(
    call: Call, test_host: libvirt.virConnect, options: dict[str, Any], code: str
) -> None:
    for check in (True, False):
        with pytest.raises(VirtfleetError) as caught:
            call("pool", name="p", check=check, **options)
        assert caught.value.code == code
        assert caught.value.hint
    assert pools.find(test_host, "p") is None


@pytest.mark.parametrize("name", ["../p", "<p/>", "{{ p }}", "p\0", "p" * 5000, "😀", ""])
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_hostile_name_is_refused(call: Call, name: str, state: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        call("pool", name=name, path=PATH, state=state)
    assert caught.value.code == "invalid"


def test_a_changed_definition_of_an_active_pool_is_noticed_and_needs_leave_to_restart(call: Call) -> None:
    call("pool", name="p", path=PATH)
    for check in (True, False):
        with pytest.raises(VirtfleetError, match="restart: true") as caught:
            call("pool", name="p", path=PATH + "2", check=check)
        assert caught.value.code == "refused"


def test_a_pool_with_volumes_is_not_removed_unless_told_so(call: Call, test_host: libvirt.virConnect) -> None:
    call("pool", name="p", path=PATH)
    call("volume", pool="p", name="v", size="1GiB")
    for check in (True, False):
        with pytest.raises(VirtfleetError, match="it holds 1 volume") as caught:
            call("pool", name="p", state="absent", check=check)
        assert caught.value.code == "refused"
    assert call("pool", name="p", state="absent", delete_content=True).changed
    assert pools.find(test_host, "p") is None


def test_a_pool_whose_volume_a_machine_has_is_never_removed(call: Call, test_host: libvirt.virConnect) -> None:
    call("pool", name="p", path=PATH)
    call("volume", pool="p", name="v", size="1GiB")
    test_host.defineXML(
        "<domain type='test'><name>web1</name><memory>1024</memory><os><type>hvm</type></os><devices>"
        f"<disk type='file'><source file='{PATH}/v'/><target dev='vda'/></disk></devices></domain>"
    )
    with pytest.raises(VirtfleetError, match="machines use volumes of it: web1"):
        call("pool", name="p", state="absent", delete_content=True)
    with pytest.raises(VirtfleetError, match="it is a disk of web1"):
        call("volume", pool="p", name="v", state="absent")


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "dir", "path": PATH, "source": {}},
        {"type": "netfs", "path": "/srv/größe & <more>", "source": {"host": "files.example", "dir": "/export"}},
        {"type": "logical", "path": "/dev/vg0", "source": {"name": "vg0"}},
        {"type": "fs", "path": "/srv/x", "source": {"device": "/dev/vdb1"}},
    ],
)
def test_every_document_is_valid_for_libvirts_own_schema(definition: dict[str, Any]) -> None:
    document = pools.pool_xml("p", definition, "0ce8ca2f-6ba7-4b9e-9b0c-2b3d0a3b1a11")
    subprocess.run(["virt-xml-validate", "-", "storagepool"], input=document, text=True, check=True)
