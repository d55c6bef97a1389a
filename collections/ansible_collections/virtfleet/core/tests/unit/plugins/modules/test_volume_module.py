# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes

from .conftest import Call

GIB = 1024**3


@pytest.fixture(autouse=True)
def pool(call: Call) -> None:
    call("pool", name="p", path="/var/lib/libvirt/p")
    call("volume", pool="p", name="base", size="2GiB")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": "10GiB"}, {"capacity_bytes": 10 * GIB, "format": "qcow2", "image": None}),
        ({"size": "10 GiB", "format": "raw"}, {"capacity_bytes": 10 * GIB, "format": "raw"}),
        ({"image": "base"}, {"capacity_bytes": 2 * GIB, "format": "qcow2", "image": "/var/lib/libvirt/p/base"}),
        ({"image": "base", "size": "5GiB"}, {"capacity_bytes": 5 * GIB, "image": "/var/lib/libvirt/p/base"}),
        ({"copy_of": {"name": "base"}}, {"capacity_bytes": 2 * GIB, "image": None}),
        ({"copy_of": {"name": "base", "pool": "p"}, "format": "raw"}, {"capacity_bytes": 2 * GIB, "format": "raw"}),
        ({"state": "absent"}, None),
    ],
)
def test_a_volume_is_made_once(
    call: Call, test_host: libvirt.virConnect, options: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    pool = test_host.storagePoolLookupByName("p")
    predicted = call("volume", pool="p", name="v", check=True, **options)
    assert [volume.name() for volume in pool.listAllVolumes()] == ["base"]
    done = call("volume", pool="p", name="v", **options)
    assert predicted.changed == done.changed == (expected is not None)
    assert (predicted.before, predicted.after) == (done.before, done.after)
    if expected is not None:
        assert expected.items() <= done.values["volume"].items()
    assert not call("volume", pool="p", name="v", **options).changed
    assert call("volume", pool="p", name="v", state="absent").changed == (expected is not None)
    assert not call("volume", pool="p", name="v", state="absent").changed


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "invalid"),
        ({"size": "10"}, "invalid"),
        ({"size": "0B"}, "invalid"),
        ({"size": "2PiB"}, "invalid"),
        ({"size": "1GiB; rm"}, "invalid"),
        ({"image": "nothing"}, "image_missing"),
        ({"image": "../../etc/passwd"}, "invalid"),
        ({"image": "base", "size": "1GiB"}, "invalid"),
        ({"image": "base", "format": "raw"}, "invalid"),
        ({"copy_of": {"name": "nothing"}}, "not_found"),
        ({"copy_of": {"name": "base", "pool": "nothing"}}, "not_found"),
        ({"copy_of": {"name": "base"}, "size": "1GiB"}, "invalid"),
        ({"src": "/nonexistent"}, "not_found"),
        ({"pool": "nothing", "size": "1GiB"}, "not_found"),
        ({"name": "../../etc/passwd", "size": "1GiB"}, "invalid"),
        ({"name": "<v/>", "size": "1GiB"}, "invalid"),
        ({"name": "{{ lookup('pipe', 'id') }}", "size": "1GiB"}, "invalid"),
        ({"name": "v\0", "size": "1GiB"}, "invalid"),
        ({"name": "v" * 5000, "size": "1GiB"}, "invalid"),
        ({"name": "😀", "size": "1GiB"}, "invalid"),
        ({"name": "image.ok", "size": "1GiB"}, "invalid"),
        ({"name": "base", "size": "1GiB"}, "refused"),  # it would shrink
        ({"name": "base", "format": "raw", "size": "2GiB"}, "already_exists"),
        ({"state": "wiped"}, "not_found"),
        ({"state": "wiped", "image": "base"}, "invalid"),
        ({"state": "wiped", "name": "base", "copy_of": {"name": "base"}}, "invalid"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    call: Call, test_host: libvirt.virConnect, options: dict[str, Any], code: str
) -> None:
    for check in (True, False):
        with pytest.raises(VirtfleetError) as caught:
            call("volume", check=check, **{"pool": "p", "name": "v", **options})
        assert caught.value.code == code
        assert caught.value.hint
    volumes_left = test_host.storagePoolLookupByName("p").listAllVolumes()
    assert [(volume.name(), volume.info()[1]) for volume in volumes_left] == [("base", 2 * GIB)]


def test_growing_is_planned_from_the_sizes(call: Call) -> None:
    grown = call("volume", pool="p", name="base", size="3GiB", check=True)  # the test driver cannot really do it
    assert grown.values["plan"] == [{"what": "capacity_bytes", "before": 2 * GIB, "after": 3 * GIB, "effect": "live"}]


def test_a_base_with_overlays_is_not_deleted(call: Call) -> None:
    call("volume", pool="p", name="v", image="base")
    for check in (True, False):
        with pytest.raises(VirtfleetError, match=r"1 volume lies over it \(v\)") as caught:
            call("volume", pool="p", name="base", state="absent", check=check)
        assert caught.value.code == "refused"


def test_neither_a_base_with_overlays_nor_an_overlay_is_wiped(call: Call) -> None:
    call("volume", pool="p", name="v", image="base")
    for name, why in (("base", "lies over it"), ("v", "whose content it would show")):
        for check in (True, False):
            with pytest.raises(VirtfleetError, match=why) as caught:
                call("volume", pool="p", name=name, state="wiped", check=check)
            assert (caught.value.code, caught.value.wanted) == ("refused", f"wipe volume {name}")


def test_a_wipe_that_died_before_the_volume_was_made_anew_is_finished_by_the_next(call: Call) -> None:
    done = call("volume", pool="p", name="v", size="1GiB", format="raw", state="wiped")
    assert (done.changed, done.values["volume"]["format"]) == (True, "raw")


def test_an_overlay_over_another_image_is_not_taken_for_this_one(call: Call) -> None:
    call("volume", pool="p", name="other", size="1GiB")
    call("volume", pool="p", name="v", image="base")
    with pytest.raises(VirtfleetError, match="does not lie over image other"):
        call("volume", pool="p", name="v", image="other")


def test_a_stopped_pool_is_an_error_and_a_missing_one_holds_nothing(call: Call) -> None:
    call("pool", name="p", state="inactive")
    for state in ("present", "absent"):
        with pytest.raises(VirtfleetError, match="not active") as caught:
            call("volume", pool="p", name="v", size="1GiB", state=state)
        assert caught.value.code == "refused"
    assert not call("volume", pool="nothing", name="v", state="absent").changed


def test_an_image_is_absent_where_there_is_none_and_foreign_volumes_are_left_alone(call: Call) -> None:
    assert not call("image", pool="p", name="nothing", state="absent").changed
    assert not call("image", pool="nothing", name="nothing", state="absent").changed
    with pytest.raises(VirtfleetError, match="no import has made"):
        call("image", pool="p", name="base", state="absent")
    with pytest.raises(VirtfleetError, match="no import has made") as caught:
        call("image", pool="p", name="base", src="/nonexistent")
    assert caught.value.code == "already_exists"


@pytest.mark.parametrize("base", [None, ("/var/lib/libvirt/p/größe & <more>", "qcow2"), ("/dev/vg0/lv", "raw")])
@pytest.mark.parametrize("volume_format", ["qcow2", "raw", None])
@pytest.mark.parametrize("sparse", [True, False])
def test_every_document_is_valid_for_libvirts_own_schema(
    base: tuple[str, str] | None, volume_format: str | None, sparse: bool
) -> None:
    document = volumes.volume_xml("v.1+2_3-4", 10 * GIB, volume_format, base, sparse=sparse)
    subprocess.run(["virt-xml-validate", "-", "storagevol"], input=document, text=True, check=True)
