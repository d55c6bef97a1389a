# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the options of a machine mean for one that is there, and when each change holds."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_settings import (
    comparable,
    complete,
    effects,
    settings_of,
)
from ansible_collections.virtfleet.core.plugins.module_utils.plan import LIVE, NEXT_BOOT

GIB = 2**30
KEPT: dict[str, Any] = {
    **{"vcpus": 2, "max_vcpus": 4, "memory": GIB, "max_memory": 2 * GIB, "topology": None, "metadata": {"id": "x"}},
    **{"cpu_model": "qemu64", "writable_disks": 1, "balloon": True},
}
LIMITS = {
    **{"bytes_per_second": 0, "read_bytes_per_second": 0, "write_bytes_per_second": 0},
    **{"iops": 0, "read_iops": 0, "write_iops": 0},
}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, {}),
        ({"vcpus": None, "accel": "auto"}, {}),
        ({"vcpus": 2, "memory": "1GiB"}, {"vcpus": 2, "memory": GIB}),
        ({"memory": "100.5MiB"}, {"memory": 101 * 2**20}),
        ({"machine": "q35"}, {"machine": "pc-q35-7.2"}),
        ({"machine": "pc-q35-6.0"}, {"machine": "pc-q35-6.0"}),
        ({"hugepages": "2048KiB"}, {"hugepages": "2MiB"}),
        (
            {"io": {"iops": 5, "read_bytes_per_second": "1MiB"}},
            {"io": {**LIMITS, "iops": 5} | {"read_bytes_per_second": 2**20}},
        ),
        ({"io": {}}, {"io": LIMITS}),
        ({"metadata": {"a": 1, "b": None, "attempt": 3, "made_volumes": []}}, {"metadata": {"a": 1}}),
        ({"accel": "kvm"}, {"accel": "kvm"}),
    ],
)
def test_options_become_settings(options: dict[str, Any], found: dict[str, Any]) -> None:
    assert settings_of(options, {"q35": "pc-q35-7.2"}) == found


@pytest.mark.parametrize(
    "options",
    [
        {"vcpus": 0},
        {"max_vcpus": 10**6},
        {"vcpus": 3, "max_vcpus": 2},
        {"memory": "1"},
        {"memory": "0MiB"},
        {"memory": "2GiB", "max_memory": "1GiB"},
        {"machine": "</type>"},
        {"cpu_model": "\0"},
        {"topology": {"cores": -1}},
        {"hugepages": "two"},
        {"boot": ["hd", "hd"]},
        {"io": {"iops": -1}},
        {"io": {"iops": 1, "read_iops": 1}},
        {"io": {"bytes_per_second": "1MiB", "write_bytes_per_second": "1MiB"}},
        {"io": {"bytes_per_second": "fast"}},
    ],
)
def test_what_cannot_be_is_invalid(options: dict[str, Any]) -> None:
    with pytest.raises(VirtfleetError) as failed:
        settings_of(options)
    assert failed.value.code == "invalid"


@pytest.mark.parametrize(
    ("found", "kept", "wanted"),
    [
        ({"vcpus": 4}, {}, {"vcpus": 4}),
        ({"vcpus": 6}, {}, {"max_vcpus": 6, "vcpus": 6}),
        ({"max_vcpus": 1}, {}, {"max_vcpus": 1, "vcpus": 1}),
        ({"memory": 3 * GIB}, {}, {"max_memory": 3 * GIB, "memory": 3 * GIB}),
        ({"max_memory": GIB // 2}, {}, {"max_memory": GIB // 2, "memory": GIB // 2}),
        (
            {"topology": {"cores": 2, "threads": 1}},
            {},
            {"topology": {"sockets": 2, "cores": 2, "threads": 1}},
        ),
        (
            {"max_vcpus": 8},
            {"topology": {"sockets": 2, "cores": 2, "threads": 1}},
            {"max_vcpus": 8, "topology": {"sockets": 4, "cores": 2, "threads": 1}},
        ),
        ({"vcpus": 3}, {"topology": {"sockets": 2, "cores": 2, "threads": 1}}, {"vcpus": 3}),
        ({"metadata": {"owner": "me"}}, {}, {"metadata": {"id": "x", "owner": "me"}}),
        ({"io": LIMITS}, {"writable_disks": 0}, {}),
    ],
)
def test_what_follows_from_what_was_named(found: dict[str, Any], kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert complete(found, KEPT | kept) == wanted


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ({"topology": {"cores": 3, "threads": 1}}, {}),
        ({"topology": {"sockets": 1, "cores": 1, "threads": 1}}, {}),
        ({"max_vcpus": 5}, {"topology": {"sockets": 2, "cores": 2, "threads": 1}}),
    ],
)
def test_a_topology_must_be_all_the_vcpus(found: dict[str, Any], kept: dict[str, Any]) -> None:
    with pytest.raises(VirtfleetError) as failed:
        complete(found, KEPT | kept)
    assert failed.value.code == "invalid"


@pytest.mark.parametrize(
    ("name", "wanted", "live", "paused", "effect"),
    [
        ("vcpus", 4, {}, False, LIVE),
        ("vcpus", 5, {}, False, NEXT_BOOT),
        ("vcpus", 1, {}, False, NEXT_BOOT),
        ("vcpus", 4, {}, True, LIVE),
        ("memory", 2 * GIB, {}, False, LIVE),
        ("memory", GIB // 2, {}, False, LIVE),
        ("memory", 3 * GIB, {}, False, NEXT_BOOT),
        ("memory", GIB // 2, {"balloon": False}, False, NEXT_BOOT),
        ("memory", GIB // 2, {}, True, NEXT_BOOT),
        ("io", LIMITS, {}, True, LIVE),
        ("metadata", {}, {}, False, LIVE),
        ("metadata", {}, None, False, LIVE),
        ("autostart", True, None, False, LIVE),
        ("vcpus", 4, None, False, NEXT_BOOT),
        ("machine", "q35", {}, False, NEXT_BOOT),
        ("firmware", "uefi", {}, False, NEXT_BOOT),
        ("xml_patch", {}, {}, False, NEXT_BOOT),
    ],
)
def test_when_a_change_holds(name: str, wanted: Any, live: dict[str, Any] | None, paused: bool, effect: str) -> None:
    assert effects(None if live is None else KEPT | live, paused=paused)(name, None, wanted) == effect


def test_what_libvirt_does_not_show_is_not_compared() -> None:
    kept = KEPT | {"cpu_model": "host-model"}
    assert "cpu_model" not in comparable(KEPT, {"cpu_model": "host-model"}, kept)
    assert "cpu_model" in comparable(KEPT, {"cpu_model": "host-model"}, KEPT)
    still_booting = KEPT | {"memory": 2 * GIB}
    assert "memory" not in comparable(still_booting, {"memory": GIB}, KEPT)
    assert "memory" not in comparable(still_booting, {"memory": GIB // 2}, KEPT)
    assert "memory" in comparable(KEPT, {"memory": GIB // 2}, KEPT)
