# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters over the placement library: that each is documented as it is, and what its errors read like."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.virtfleet.core.plugins.doc_fragments.host_values import ModuleDocFragment
from ansible_collections.virtfleet.core.plugins.filter.placement import HOST_OPTIONS, FilterModule
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts import place_machines, state_of_hosts

FILTERS = FilterModule().filters()
FOLDER = Path(inspect.getfile(FilterModule)).parent
MIB = 2**20

HOST = {
    "name": "h1",
    "live": True,
    "vcpus": {"total": 2, "allocated": 0},
    "memory": {"total_bytes": 2048 * MIB, "allocated_bytes": 0},
    "pools": [{"name": "default", "active": True, "capacity_bytes": 10240 * MIB, "allocation_bytes": 0}],
    "machines": [],
}
MACHINE = {
    "name": "a",
    "vcpus": 1,
    "memory": "512 MiB",
    "disks": [{"pool": "default", "size": "1GiB", "image": "base"}],
}


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_is_documented_in_the_file_of_its_name(name: str) -> None:
    documents = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    documentation = documents["DOCUMENTATION"]
    assert documentation["name"] == name
    assert set(documents) == {"DOCUMENTATION", "EXAMPLES", "RETURN"}
    assert isinstance(yaml.safe_load(documents["EXAMPLES"]), list)


def test_the_options_of_place_are_those_documented() -> None:
    options = yaml.safe_load((FOLDER / "place.yml").read_text(encoding="utf-8"))["DOCUMENTATION"]["options"]
    parameters = inspect.signature(place_machines).parameters
    taken = {name for name in parameters if name not in {"machines", "host_infos", "parse_size"}}
    assert set(options) == taken | {"_input", "hosts"}
    for name in taken:
        default = parameters[name].default
        assert options[name].get("default") == default, name


def test_place_decides_where_machines_go() -> None:
    decision = FILTERS["place"]([MACHINE], [HOST], policy="first_fit")
    assert decision["by_host"] == {"h1": ["a"]}


@pytest.mark.parametrize(
    ("machines", "hosts", "options", "text"),
    [
        ([{**MACHINE, "memory": "512"}], [HOST], {}, "machines[0].memory: Failed to read '512'"),
        ([MACHINE], [{**HOST, "vcpus": {}}], {}, "hosts[0].vcpus.total"),
        ([MACHINE], [HOST], {"policy": "luck"}, "policy: there is no policy 'luck'"),
        ([MACHINE], [HOST], {"polcy": "luck"}, "polcy"),
        ([MACHINE], None, {}, "hosts: a list is wanted"),
    ],
)
def test_place_says_which_field_is_wrong(machines: object, hosts: object, options: dict[str, str], text: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        FILTERS["place"](machines, hosts, **options)
    assert text in str(caught.value)


STATE = {
    "schema_version": 1,
    "hosts": [
        {"name": name, "vcpus": {"total": 8}, "memory": {"total_bytes": 16 * 1024 * MIB}} for name in ("h1", "h2")
    ],
    "vms": [{"id": f"v{n}", "host": "h1", "vcpus": 1, "memory_bytes": 2048 * MIB} for n in range(4)],
}
HISTORY = {"now": 0, "subject": "v1", "samples": [{"time": 0, "values": {"cpu": 99.0}}]}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rebalance", (STATE, {"max_moves": 1})),
        ("consolidate", (STATE,)),
        ("drain", (STATE, ["h1"])),
        ("capacity", (STATE, [{"name": "small", "vcpus": 1, "memory_bytes": 1024 * MIB}])),
        ("what_if", (STATE, {"lose_hosts": ["h1"]})),
        ("score", (STATE,)),
        ("scale", (HISTORY, {"kind": "resize"})),
    ],
)
def test_every_answer_can_be_read_as_lines(name: str, values: tuple[object, ...]) -> None:
    lines = FILTERS["explain"](FILTERS[name](*values))
    assert lines
    assert all(isinstance(line, str) and line for line in lines)
    with pytest.raises(AnsibleFilterError, match=f"virtfleet.core.{name}: "):
        FILTERS[name]({}, *values[1:])


FULL = {
    **HOST,
    "machines": [
        {"name": f"v{n}", "uuid": f"u-{n}", "state": "running", "vcpus": 1, "memory_bytes": 512 * MIB} for n in range(4)
    ],
    "vcpus": {"total": 2, "allocated": 4},
    "memory": {"total_bytes": 2048 * MIB, "allocated_bytes": 2048 * MIB},
}
EMPTY = {**HOST, "name": "h2"}
DOWN = {"name": "h3", "live": False, "error": "no route"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rebalance", ()),
        ("consolidate", ()),
        ("drain", (["h1"],)),
        ("capacity", ([{"name": "small", "vcpus": 1, "memory_bytes": 1024 * MIB}],)),
        ("what_if", ({"lose_hosts": ["h1"]},)),
        ("score", ()),
    ],
)
def test_filters_over_a_fleet_take_what_host_info_returns(name: str, values: tuple[object, ...]) -> None:
    answer = FILTERS[name]((each for each in (FULL, EMPTY, DOWN)), *values)
    assert answer == FILTERS[name](state_of_hosts([FULL, EMPTY, DOWN], int), *values)
    with pytest.raises(AnsibleFilterError, match=f"virtfleet.core.{name}: hosts: a list is wanted"):
        FILTERS[name]("h1", *values)
    with pytest.raises(AnsibleFilterError, match="vcpu_ratio: a state has it in itself"):
        FILTERS[name](STATE, *values, vcpu_ratio=2.0)


def test_a_plan_over_fresh_values_moves_what_may_move() -> None:
    drained = FILTERS["drain"]([FULL, EMPTY, DOWN], ["h1"], "spread", machines={"v3": {"stays": "it has a card"}})
    assert {(move["vm"], move["to"]) for move in drained["moves"]} == {("v0", "h2"), ("v1", "h2"), ("v2", "h2")}
    assert drained["left"][0]["text"] == "v3 must stay: it has a card"
    apart = {"groups": [{"name": "web", "rule": "anti-affinity", "most": 2}]}
    members = {f"v{n}": {"groups": ["web"]} for n in range(4)}
    rules = FILTERS["drain"]([FULL, EMPTY, DOWN], ["h1"], machines=members, **apart)
    assert len(rules["moves"]) == len(rules["left"]) == 2
    disks = {"v0": {"disks": [{"pool": "default", "size": "11GiB"}]}}
    short = FILTERS["drain"]([FULL, EMPTY, DOWN], ["h1"], machines=disks)
    assert "pool default short by 1 GiB" in short["left"][0]["text"]
    assert FILTERS["rebalance"]([FULL, EMPTY], vcpu_ratio=1.0)["score_before"] > 1


def test_machines_of_one_name_on_two_hosts_are_told_apart() -> None:
    both = FILTERS["drain"]([FULL, {**FULL, "name": "h2"}, {**HOST, "name": "h4"}], ["h1"])
    assert {move["vm"] for move in both["moves"]} == {f"v{n}@h1" for n in range(4)}


@pytest.mark.parametrize(
    ("hosts", "options", "text"),
    [
        ([{**FULL, "machines": ["v1"]}], {}, "hosts[0].machines[0]: a mapping is wanted, not 'v1'"),
        ([{**FULL, "machines": [{"name": "v1"}]}], {}, "vms[0].vcpus: a whole number of vCPUs is wanted"),
        ([FULL], {"machines": {"v9": {}}}, "machines.v9: no host has such a machine"),
        ([FULL], {"machines": {"v1": {"colour": 1}}}, "machines.v1: a mapping of"),
        ([FULL], {"machines": ["v1"]}, "machines: a mapping by name is wanted"),
        ([FULL], {"machines": {"v1": {"disks": [{"size": "2"}]}}}, "machines.v1.disks[0].size"),
        ([FULL], {"colour": 1}, "colour"),
    ],
)
def test_what_is_wrong_with_fresh_values_is_named(hosts: object, options: dict[str, object], text: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        FILTERS["rebalance"](hosts, **options)
    assert text in str(caught.value)


def test_the_options_about_hosts_are_those_documented() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    parameters = inspect.signature(state_of_hosts).parameters
    assert set(documented) == HOST_OPTIONS == set(parameters) - {"host_infos", "parse_size"}
    for name in HOST_OPTIONS:
        assert documented[name].get("default") == parameters[name].default
