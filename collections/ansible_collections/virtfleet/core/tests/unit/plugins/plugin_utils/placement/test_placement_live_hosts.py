# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Machines as `vm` takes them on hosts as `host_info` shows them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts import place_machines

MIB = 2**20


def parse(text: str) -> int:
    number, unit = text[:-3], text[-3:]
    return int(number) * {"MiB": MIB, "GiB": 1024 * MIB}[unit]


def info(name: str, *machines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "uri": f"qemu+tcp://{name}/system",
        "live": True,
        "cpu": {"model": "x86_64", "cpus": 2},
        "vcpus": {"total": 2, "allocated": 0},
        "memory": {"total_bytes": 2048 * MIB, "allocated_bytes": 0, "free_bytes": 1000 * MIB},
        "pools": [
            {
                "name": "default",
                "active": True,
                "shared": False,
                "capacity_bytes": 10240 * MIB,
                "allocation_bytes": 100 * MIB,
                "available_bytes": 10140 * MIB,
                "provisioned_bytes": 2048 * MIB,
            }
        ],
        "load": {"cpu_busy_seconds": 1.0, "cpu_total_seconds": 2.0, "cpu_percent": None},
        "machines": list(machines),
        **changes,
    }


def machine(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "vcpus": 1,
        "memory": "512MiB",
        "disks": [{"pool": "default", "size": "1GiB", "image": "base"}],
        "networks": [{"bridge": "br0"}],
        "metadata": {"id": "vm_1"},
        **changes,
    }


def test_machines_are_placed_and_listed_by_host() -> None:
    decision = place_machines([machine("a"), machine("b")], [info("h1"), info("h2")], parse, "round_robin")
    assert decision["by_host"] == {"h1": ["a"], "h2": ["b"]}
    assert decision["cursor"] == "h2"


def test_a_machine_that_exists_stays_and_is_not_charged_again() -> None:
    there = {"name": "a", "uuid": "U-1", "vcpus": 1, "memory_bytes": 512 * MIB}
    full = info("h2", there, memory={"total_bytes": 2048 * MIB, "allocated_bytes": 2048 * MIB})
    for wanted in (machine("a"), machine("a", host="h2"), machine("a", uuid="u-1"), machine("new-name", uuid="u-1")):
        decision = place_machines([wanted], [info("h1"), full], parse)
        assert decision["by_host"] == {"h2": [wanted["name"]]}
        assert decision["fits"]


def test_a_machine_pinned_away_from_where_it_stands_is_not_placed() -> None:
    there = {"name": "a", "uuid": "u-1"}
    decision = place_machines([machine("a", uuid="u-1", host="h1")], [info("h1"), info("h2", there)], parse)
    assert not decision["fits"]
    assert decision["by_host"] == {}
    assert "exists already on h2" in decision["summary"]


def test_another_machine_of_that_name_is_another_machine() -> None:
    there = {"name": "a", "uuid": "u-1"}
    decision = place_machines([machine("a", uuid="u-2", host="h1")], [info("h1"), info("h2", there)], parse)
    assert decision["by_host"] == {"h1": ["a"]}


def test_a_host_that_did_not_answer_is_refused_with_its_error() -> None:
    gone = {"name": "h1", "live": False, "error": "no route\nto host"}
    decision = place_machines([machine("a", host="h1")], [gone, info("h2")], parse)
    assert "not live: no route to host" in str(decision["unplaced"])


def test_reserves_ratios_and_maintenance_of_a_host_count() -> None:
    small = {"total": 1, "allocated": 0}
    assert place_machines([machine("a", vcpus=8)], [info("h1", vcpus=small)], parse)["fits"]
    assert not place_machines([machine("a", vcpus=8)], [info("h1", vcpus=small)], parse, vcpu_ratio=4.0)["fits"]
    assert not place_machines([machine("a", vcpus=8)], [info("h1", vcpus=small, vcpu_ratio=2.0)], parse)["fits"]
    assert not place_machines([machine("a")], [info("h1", reserved={"memory": "1GiB", "vcpus": 16})], parse)["fits"]
    assert not place_machines([machine("a")], [info("h1", reserved={"memory": "1537MiB"})], parse)["fits"]
    assert not place_machines([machine("a")], [info("h1", maintenance=True)], parse)["fits"]


def test_what_the_volumes_were_promised_counts_not_only_what_they_use() -> None:
    nine = machine("a", disks=[{"size": "9GiB", "image": "base"}])
    assert not place_machines([nine], [info("h1")], parse)["fits"]
    assert place_machines([nine], [info("h1")], parse, disk_ratio=0.5)["fits"]
    assert place_machines([machine("a", disks=[{"pool": "default", "name": "old"}])], [info("h1")], parse)["fits"]
    off = [{"name": "default", "active": False}]
    assert not place_machines([machine("a")], [info("h1", pools=off)], parse)["fits"]


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("web", "machines[0]"),
        (machine("a", memory=512), "machines[0].memory"),
        (machine("a", memory="512 bananas"), "machines[0].memory"),
        (machine("a", memory=None), "machines[0].memory"),
        (machine("a", vcpus="two"), "machines[0].vcpus"),
        (machine("a", disks=[{"size": 7}]), "machines[0].disks[0].size"),
        ({"memory": "1GiB"}, "machines[0].name"),
    ],
)
def test_a_wrong_machine_is_refused_naming_the_field(wanted: object, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place_machines([wanted], [info("h1")], parse)
    assert caught.value.path == path


def test_the_same_machine_twice_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"machines\[1\].name"):
        place_machines([machine("a"), machine("a")], [info("h1")], parse)
