# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The doors of the placement library: what is refused, and that the complaint names the field."""

from __future__ import annotations

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError, place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import natural
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.plain import plain_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import read_state

GIB = 2**30


def host(name: str = "h1", **changes: object) -> dict[str, object]:
    return {"name": name, "vcpus": {"total": 8}, "memory": {"total_bytes": 16 * GIB}, **changes}


def state(*hosts: dict[str, object], **changes: object) -> dict[str, object]:
    return {"schema_version": 1, "hosts": list(hosts or [host()]), **changes}


def request(**changes: object) -> dict[str, object]:
    return {"id": "vm1", "vcpus": 1, "memory_bytes": GIB, **changes}


@pytest.mark.parametrize(
    ("snapshot", "path"),
    [
        (None, ""),
        ({"hosts": []}, "schema_version"),
        ({"schema_version": 2, "hosts": []}, "schema_version"),
        ({"schema_version": True, "hosts": []}, "schema_version"),
        (state(host(vcpus={"total": "8"})), "hosts[0].vcpus.total"),
        (state(host(vcpus={"total": True})), "hosts[0].vcpus.total"),
        (state(host(vcpus={"total": -1})), "hosts[0].vcpus.total"),
        (state(host(vcpus={"total": 8, "ratio": float("nan")})), "hosts[0].vcpus.ratio"),
        (state(host(vcpus={"total": 8, "ratio": float("inf")})), "hosts[0].vcpus.ratio"),
        (state(host(memory={})), "hosts[0].memory.total_bytes"),
        (state(host(memory={"total_bytes": 2**60})), "hosts[0].memory.total_bytes"),
        (state(host(memory={"total_bytes": 1, "allocted": 1})), "hosts[0].memory.allocted"),
        (state(host(name="")), "hosts[0].name"),
        (state(host(name="a\0b")), "hosts[0].name"),
        (state(host(name="x" * 300)), "hosts[0].name"),
        (state(host(), host()), "hosts[1].name"),
        (state(host(tags="ssd")), "hosts[0].tags"),
        (state(host(pools={"p": {"total_bytes": 1.5}})), "hosts[0].pools.p.total_bytes"),
        (state(vms=[{"id": "v", "host": "h9", "vcpus": 1, "memory_bytes": 1}]), "vms[0].host"),
        (state(vms=[{"id": "v", "host": "h1", "vcpus": 1, "memory_bytes": 1, "groups": ["g"]}]), "vms[0].groups"),
        (state(groups=[{"name": "g", "rule": "together"}]), "groups[0].rule"),
    ],
)
def test_a_wrong_state_is_refused_naming_the_field(snapshot: object, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place(snapshot, [], "first_fit")
    assert caught.value.path == path
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("requests", "path"),
    [
        ({}, "requests"),
        ("vm1", "requests"),
        ([request(vcpus=0)], "requests[0].vcpus"),
        ([request(memory_bytes=None)], "requests[0].memory_bytes"),
        ([request(), request()], "requests[1].id"),
        ([request(disks=[{"pool": "p"}])], "requests[0].disks[0].size_bytes"),
        ([request(memory="1GiB")], "requests[0].memory"),
        ([request(groups=["g"])], "requests[0].groups"),
        ([request(exclude=[7])], "requests[0].exclude[0]"),
    ],
)
def test_a_wrong_request_is_refused_naming_the_field(requests: object, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place(state(), requests, "first_fit")
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ("best_of_all", "policy"),
        (7, "policy"),
        ({"name": "mine"}, "policy.name"),
        ({"name": "mine", "scorers": {"luck": 1}}, "policy.scorers.luck"),
        ({"name": "mine", "scorers": {"first": 0}}, "policy.scorers.first"),
        ({"name": "mine", "algorithm": "magic"}, "policy.algorithm"),
        ({"name": "first_fit", "treshold": 80}, "policy.treshold"),
        ({"name": "first_fit", "order": "random"}, "policy.order"),
    ],
)
def test_a_wrong_policy_is_refused_naming_the_field(policy: object, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place(state(), [request()], policy)
    assert caught.value.path == path


def test_hostile_names_are_only_names() -> None:
    name = "{{ lookup('pipe','touch /tmp/x') }} <a>&'; rm -rf ../.."
    decision = place(state(host(name)), [request(id=name)], "first_fit")
    assert decision["placements"][0]["host"] == name


def test_a_state_reads_back_as_it_was_written() -> None:
    first = read_state(
        state(
            host("h2", numa=[{"vcpus_total": 4, "memory_total_bytes": 8}], pools={"p": {"total_bytes": 5}}, rack="r"),
            host("h1", live=False, error="line\nbreak"),
            vms=[{"id": "v", "host": "h1", "vcpus": 1, "memory_bytes": 1, "groups": ["g"], "numa": [0]}],
            groups=[{"name": "g", "rule": "affinity", "scope": "rack", "hard": False}],
            generation=7,
            cursor="h1",
        )
    )
    assert read_state(plain_state(first)) == first
    assert first.hosts[0].error == "line break"


def test_machines_that_are_listed_take_their_numa_nodes() -> None:
    numa = [{"vcpus_total": 4, "memory_total_bytes": 8 * GIB}, {"vcpus_total": 4, "memory_total_bytes": 8 * GIB}]
    there = {"id": "v", "host": "h1", "vcpus": 3, "memory_bytes": 5 * GIB, "numa": [1]}
    first, second = read_state(state(host("h1", numa=numa), vms=[there])).hosts[0].numa
    assert (first.vcpus_allocated, first.memory_allocated_bytes) == (0, 0)
    assert (second.vcpus_allocated, second.memory_allocated_bytes) == (3, 5 * GIB)


@pytest.mark.parametrize(("numa", "path"), [([2], "vms[0].numa"), ([0, 0], "vms[0].numa[1]"), ([-1], "vms[0].numa[0]")])
def test_a_machine_on_a_numa_node_that_is_not_there_is_refused(numa: list[int], path: str) -> None:
    nodes = [{"vcpus_total": 4, "memory_total_bytes": 8}, {"vcpus_total": 4, "memory_total_bytes": 8}]
    there = {"id": "v", "host": "h1", "vcpus": 1, "memory_bytes": 1, "numa": numa}
    with pytest.raises(SchemaError) as caught:
        read_state(state(host("h1", numa=nodes), vms=[there]))
    assert caught.value.path == path


def test_names_sort_as_people_sort_them() -> None:
    assert sorted(["h10", "h2", "h1", "h02", "a", "10"], key=natural) == ["10", "a", "h1", "h02", "h2", "h10"]
    # A digit that is not ASCII is a letter like any other; it must not break the order.
    assert sorted(["h²", "h1", "h٣"], key=natural)[0] == "h1"
