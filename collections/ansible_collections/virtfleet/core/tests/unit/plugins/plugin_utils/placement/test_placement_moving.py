"""Where machines move to, on hosts as host_info shows them."""

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.moving import evacuation, moves

GIB = 2**30


def host(name: str, *machines: dict[str, Any], gib: int = 8, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "live": True,
        "vcpus": {"total": 4, "allocated": sum(vm["vcpus"] for vm in machines)},
        "memory": {"total_bytes": gib * GIB, "allocated_bytes": sum(vm["memory_bytes"] for vm in machines)},
        "pools": [],
        "machines": list(machines),
        **more,
    }


def vm(name: str, gib: int = 1, state: str = "running") -> dict[str, Any]:
    return {"name": name, "uuid": f"uuid-{name}", "vcpus": 1, "memory_bytes": gib * GIB, "state": state}


def decided(wanted: list[dict[str, Any]], *hosts: dict[str, Any], **options: Any) -> dict[str, Any]:
    return moves(wanted, list(hosts), parse_size, **options)


def ways(decision: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(move["name"], move["from"], move["to"]) for move in decision["moves"]]


def test_a_machine_goes_to_the_host_that_is_named_or_to_where_the_policy_sends_it_never_to_its_own() -> None:
    hosts = host("h1", vm("a"), vm("b")), host("h2", vm("c", 4)), host("h3")
    assert ways(decided([{"name": "a", "to": "h2"}], *hosts)) == [("a", "h1", "h2")]
    assert ways(decided([{"name": "a"}], *hosts)) == [("a", "h1", "h3")]
    assert ways(decided([{"uuid": "uuid-c"}], *hosts, policy="bin_packing")) == [("c", "h2", "h1")]


def test_a_machine_that_is_there_already_is_no_move_but_its_old_host_looks_for_what_is_left() -> None:
    hosts = host("h1"), host("h2", vm("a"))
    assert decided([{"name": "a", "to": "h2"}], *hosts) == {"moves": [], "left": []}
    told = decided([{"name": "a", "to": "h2", "from": "h1"}], *hosts)
    assert [(move["by"], move["to"]) for move in told["moves"]] == [("h1", "h2")]


def test_of_two_definitions_the_one_that_runs_is_the_source() -> None:
    hosts = host("h1", vm("a", state="stopped")), host("h2", vm("a")), host("h3")
    assert ways(decided([{"name": "a", "to": "h3"}], *hosts)) == [("a", "h2", "h3")]
    assert ways(decided([{"name": "a"}], *hosts)) == [("a", "h2", "h3")]


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"name": "nobody"}, "no host has the machine nobody"),
        ({"name": "a", "to": "h9"}, "a cannot go to h9: there is no such host"),
        ({"name": "a", "to": "h2"}, "h2: memory short by"),
        ({"name": "a", "to": "h3"}, "h3: maintenance"),
        ({"name": "a", "to": "h4"}, "h4: not live"),
    ],
)
def test_what_cannot_go_says_why(wanted: dict[str, Any], text: str) -> None:
    gone = {"name": "h4", "live": False, "error": "it is off"}
    hosts = host("h1", vm("a", 2)), host("h2", gib=1), host("h3", maintenance=True), gone
    told = decided([wanted], *hosts)
    assert told["moves"] == []
    assert wanted["name"] in told["left"][0]["text"]
    assert text.partition(":")[0] in told["left"][0]["text"]


def test_machines_that_move_together_are_counted_together() -> None:
    hosts = host("h1", vm("a", 3), vm("b", 3)), host("h2", gib=4)
    told = decided([{"name": "a"}, {"name": "b"}], *hosts)
    assert len(told["moves"]) == len(told["left"]) == 1


def test_an_evacuation_moves_every_machine_and_names_those_that_stay() -> None:
    hosts = [host("h1", vm("a"), vm("b", 7)), host("h2", gib=4), host("h3")]
    plan = evacuation(hosts, ["h1"], parse_size)
    assert {(each["name"], each["from"]) for each in plan["machines"]} == {("a", "h1"), ("b", "h1")}
    assert plan["left"] == []
    plan = evacuation(hosts[:2], ["h1"], parse_size)
    assert [each["name"] for each in plan["machines"]] == ["a"]
    assert [each["name"] for each in plan["left"]] == ["b"]
    assert plan["left"][0]["text"].startswith("b fits on none")


def test_wrong_data_are_refused_with_their_place() -> None:
    with pytest.raises(SchemaError, match="machines"):
        decided([{}], host("h1"))
    with pytest.raises(SchemaError, match=r"hosts\[0\]"):
        moves([], ["h1"], parse_size)
