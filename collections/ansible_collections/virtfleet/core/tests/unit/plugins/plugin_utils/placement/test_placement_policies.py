# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The named policies of the source systems: what each prefers, and the small language of matchmaking."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import NAMED, SchemaError, place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import level_of

GIB = 2**30


def host(
    name: str, vcpus: int = 8, memory: int = 16, *, used_vcpus: int = 0, used: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "vcpus": {"total": vcpus, "allocated": used_vcpus},
        "memory": {"total_bytes": memory * GIB, "allocated_bytes": used * GIB},
        **more,
    }


def vm(name: str = "vm1", vcpus: int = 1, memory: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": name, "vcpus": vcpus, "memory_bytes": memory * GIB, **changes}


def decide(hosts: list[dict[str, Any]], requests: list[dict[str, Any]], policy: object) -> dict[str, str]:
    decision = place({"schema_version": 1, "hosts": hosts}, requests, policy)
    return {placement["request"]: placement["host"] for placement in decision["placements"]}


@pytest.mark.parametrize("policy", [*NAMED, "best_fit", "spread"])
def test_every_named_policy_places_and_explains(policy: str) -> None:
    hosts = [host(f"h{n}", used=n) for n in range(4)]
    decision = place({"schema_version": 1, "hosts": hosts}, [vm("a"), vm("b")], policy, explain=True)
    assert decision["fits"]
    assert decision["policy"] == policy
    for placement in decision["placements"]:
        for each in placement["explanation"]["ranked"]:
            assert sum(each["terms"].values()) == pytest.approx(each["score"], abs=1e-12)


def test_worst_fit_spreads() -> None:
    hosts = [host("h1", used=4), host("h2", used=2)]
    assert decide(hosts, [vm()], "spread") == {"vm1": "h2"}
    assert (
        len(set(decide([host(f"h{n}") for n in range(4)], [vm(f"v{n}") for n in range(4)], "worst_fit").values())) == 4
    )


def test_balanced_judges_by_the_scarcer_of_both_dimensions() -> None:
    hosts = [host("h1", used=1, used_vcpus=7), host("h2", used=6, used_vcpus=3)]
    assert decide(hosts, [vm()], "balanced") == {"vm1": "h2"}
    # A machine hungry for memory goes where vCPUs are the scarcer already.
    hosts = [host("h1", used=4, used_vcpus=4), host("h2", used=8, used_vcpus=2)]
    assert decide(hosts, [vm(vcpus=1, memory=4)], "balanced") == {"vm1": "h1"}


def test_greedy_fills_host_after_host() -> None:
    """S5.4: node by node, as many VMs as fit; a small one behind a large one still gets the room left."""
    hosts = [host("h1", memory=4), host("h2", memory=4)]
    requests = [vm("a", memory=3), vm("b", memory=3), vm("c", memory=1)]
    assert decide(hosts, requests, "greedy") == {"a": "h1", "b": "h2", "c": "h1"}


def test_greedy_places_a_part_of_a_group_whose_only_host_for_all_of_it_was_filled_meanwhile() -> None:
    hosts = [host("h1", vcpus=2), host("h2", vcpus=4)]
    state = {"schema_version": 1, "hosts": hosts, "groups": [{"name": "one", "rule": "affinity"}]}
    requests = [vm("a", 4, exclude=["h1"]), vm("b", 2, groups=["one"]), vm("c", 2, groups=["one"])]
    decision = place(state, requests, "greedy", explain=True)
    assert {each["request"]: each["host"] for each in decision["placements"]} == {"a": "h2", "b": "h1"}
    [left] = decision["unplaced"]
    assert left["request"] == "c"
    assert [each["host"] for each in left["explanation"]["rejected"]] == ["h1", "h2"]


def test_matchmaking_gives_one_to_the_largest_and_looks_again() -> None:
    """S5.6 as the diagram says: sort by vCPUs, then memory; one machine to the largest; repeat."""
    hosts = [host("h1", vcpus=4, memory=32), host("h2", vcpus=6, memory=8), host("h3", vcpus=6, memory=16)]
    requests = [vm("a", vcpus=2), vm("b", vcpus=2), vm("c", vcpus=2)]
    assert decide(hosts, requests, "matchmaking") == {"a": "h3", "b": "h2", "c": "h1"}


def test_matchmaking_obeys_a_requirement_and_a_rank() -> None:
    hosts = [host("h1", zone="a"), host("h2", zone="b", used=2), host("h3", zone="b", used=9)]
    policy = {
        "name": "matchmaking",
        "requirement": 'zone == "b" and free_memory >= 4 * GiB + memory',
        "rank": "-free_memory",
    }
    assert decide(hosts, [vm()], policy) == {"vm1": "h3"}
    decision = place({"schema_version": 1, "hosts": hosts}, [vm(memory=15)], policy)
    codes = [reason["code"] for reason in decision["unplaced"][0]["explanation"]["rejected"][0]["reasons"]]
    assert codes == ["requirement"]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "name.__class__",
        "[].append(1)",
        "2 ** 99999999",
        "(lambda: 1)()",
        "[x for x in tags]",
        "free_disk > 1",
        "f'{name}'",
        "free_memory >",
        "1 if True else 2",
        "9" * 400,
        "(" * 400,
        "-" * 100 + "1",
        "1 " * 600,
        "'a' % 3",
    ],
)
def test_an_expression_outside_the_language_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match=r"policy\.requirement"):
        decide([host("h1")], [vm()], {"name": "matchmaking", "requirement": text})


@pytest.mark.parametrize(
    ("text", "fulfilled"),
    [
        ("free_memory == 16 * GiB", True),
        ("vcpus * 8 <= free_vcpus", True),
        ("not (zone == 'b')", True),
        ("'ssd' in tags", True),
        ("'ssd' not in tags or zone in ['b', 'c']", False),
        ("cpu_percent < 50", False),
        ("not cpu_percent < 50", False),
        ("free_vcpus / 0 == 1", False),
        ("zone < 3", False),
        ("zone * 9999999999 == 1", False),
        ("1 < free_vcpus < 4", False),
    ],
)
def test_an_expression_is_judged_and_unknown_is_never_fulfilled(text: str, fulfilled: bool) -> None:
    hosts = [host("h1", zone="a", tags=["ssd"])]
    assert bool(decide(hosts, [vm()], {"name": "matchmaking", "requirement": text})) is fulfilled


@pytest.mark.parametrize(
    ("percent", "level"), [(0, 0), (30, 0), (30.1, 1), (70, 1), (70.1, 2), (95, 2), (95.1, 3), (100, 3)]
)
def test_the_levels_are_low_medium_high_full(percent: float, level: int) -> None:
    """S2.9 prints all as Low; C2 reads Low ≤ 30 < Medium ≤ 70 < High ≤ 95 < Full."""
    assert level_of(percent) == level


def test_load_levels_takes_the_host_whose_worst_level_stays_best() -> None:
    """S2.10: add the requirement to each node's load; the worst level decides, ties by the sum."""

    def loaded(name: str, cpu: float, io: float) -> dict[str, Any]:
        return host(name, load={"cpu_percent": cpu, "io_percent": io, "memory_percent": 10.0})

    want = vm(load={"cpu_percent": 10.0, "io_percent": 5.0})
    assert decide([loaded("h1", 10, 80), loaded("h2", 50, 60)], [want], "load_levels") == {"vm1": "h2"}
    assert decide([loaded("h1", 55, 65), loaded("h2", 50, 60)], [want], "load_levels") == {"vm1": "h2"}
    assert decide([loaded("h1", 65, 1), loaded("h2", 50, 60)], [want], "load_levels") == {"vm1": "h2"}


def test_a_full_host_gets_no_more_machines() -> None:
    busy = host("h1", load={"cpu_percent": 10.0, "io_percent": 96.0})
    decision = place({"schema_version": 1, "hosts": [busy]}, [vm()], "load_levels")
    reason = decision["unplaced"][0]["explanation"]["rejected"][0]["reasons"][0]
    assert (reason["code"], reason["short_by"]) == ("level_full", 1.0)


def test_a_load_nobody_measured_is_not_zero() -> None:
    # h2's I/O is unknown: that must not make it look better in I/O than h1, whose other loads are lower.
    h1 = host("h1", load={"cpu_percent": 10.0, "io_percent": 10.0, "memory_percent": 10.0})
    h2 = host("h2", load={"cpu_percent": 40.0, "memory_percent": 10.0})
    assert decide([h2, h1], [vm()], "load_levels") == {"vm1": "h1"}


def test_anti_affinity_keeps_machines_apart_and_affinity_together() -> None:
    hosts = [host(f"h{n}", rack=f"r{n % 2}") for n in range(4)]

    def batch(count: int, **rule: Any) -> list[str]:
        state = {"schema_version": 1, "hosts": hosts, "groups": [{"name": "g", **rule}]}
        requests = [vm(f"v{n}", groups=["g"]) for n in range(count)]
        return [each["host"] for each in place(state, requests, "bin_packing")["placements"]]

    assert sorted(batch(5, rule="anti-affinity")) == ["h0", "h1", "h2", "h3"]
    assert len(set(batch(8, rule="affinity"))) == 1
    assert len(batch(3, rule="anti-affinity", scope="rack")) == 2
    assert len(batch(5, rule="anti-affinity", scope="rack", most=2)) == 4
    assert len(set(batch(5, rule="affinity"))) == 1
    assert len(batch(10, rule="anti-affinity", hard=False)) == 10
    assert len(set(batch(4, rule="anti-affinity", hard=False))) == 4
    assert len(set(batch(4, rule="affinity", hard=False))) == 1


def test_a_group_that_stands_together_goes_where_all_of_it_fits() -> None:
    # h1 is fuller and would be taken by the first machine alone, but has no room for all three.
    state = {
        "schema_version": 1,
        "hosts": [host("h1", used=12, used_vcpus=2), host("h2")],
        "groups": [{"name": "g", "rule": "affinity"}],
    }
    requests = [vm(f"v{n}", memory=2, groups=["g"]) for n in range(3)] + [vm("a", memory=2)]
    decision = place(state, requests, "bin_packing")
    assert {each["request"]: each["host"] for each in decision["placements"]} == {
        "v0": "h2",
        "v1": "h2",
        "v2": "h2",
        "a": "h1",
    }


@pytest.mark.parametrize("policy", sorted(NAMED))
def test_under_every_policy_a_group_that_stands_together_goes_where_all_of_it_fits(policy: str) -> None:
    # h1 comes first, but only has room for one of the two.
    state = {
        "schema_version": 1,
        "hosts": [host("h1", used=12), host("h2")],
        "groups": [{"name": "g", "rule": "affinity"}],
    }
    decision = place(state, [vm(f"v{n}", memory=3, groups=["g"]) for n in range(2)], policy, explain=True)
    assert {each["request"]: each["host"] for each in decision["placements"]} == {"v0": "h2", "v1": "h2"}
    why = decision["placements"][0]["explanation"]
    assert [each["host"] for each in why["ranked"]] == ["h2"]
    assert why["rejected"][0]["reasons"][0]["text"] == "not all machines of group g can stand there"


def test_a_host_passed_over_for_a_machine_that_is_excluded_there_says_so() -> None:
    state = {
        "schema_version": 1,
        "hosts": [host("h0"), host("h1")],
        "groups": [{"name": "one", "rule": "affinity"}],
    }
    requests = [vm("new0", groups=["one"]), vm("new1", groups=["one"], exclude=["h1"])]
    for each in place(state, requests, "balanced", explain=True)["placements"]:
        why = each["explanation"]
        assert (each["host"], [one["host"] for one in why["rejected"]]) == ("h0", ["h1"])
    codes = [
        each["explanation"]["rejected"][0]["reasons"][0]["code"]
        for each in place(state, requests, "balanced", explain=True)["placements"]
    ]
    assert codes == ["affinity", "excluded"]


def test_fault_domains_of_a_group_do_not_share_a_rack() -> None:
    hosts = [host(f"h{n}", rack=f"r{n // 2}") for n in range(4)]
    state = {"schema_version": 1, "hosts": hosts, "groups": [{"name": "g", "rule": "domains"}]}
    requests = [vm(f"v{n}", groups=["g"], domain=n % 2) for n in range(6)]
    decision = place(state, requests, "bin_packing")
    racks = {each["request"]: int(each["host"][1]) // 2 for each in decision["placements"]}
    assert len(racks) == 6
    assert {racks["v0"], racks["v2"], racks["v4"]} & {racks["v1"], racks["v3"], racks["v5"]} == set()
    third = place(state, [*requests, vm("w", groups=["g"], domain=2)], "bin_packing")
    why = third["unplaced"][0]["explanation"]["rejected"][0]["reasons"][0]
    assert why["code"] == "fault_domain"


def test_a_machine_bound_to_numa_nodes_takes_the_tightest_that_fit() -> None:
    numa = [{"vcpus_total": 8, "memory_total_bytes": 16 * GIB}, {"vcpus_total": 4, "memory_total_bytes": 8 * GIB}]
    state = {"schema_version": 1, "hosts": [host("h1", vcpus=12, memory=24, numa=numa)]}
    decision = place(state, [vm("a", 4, 4, numa_nodes=1), vm("b", 6, 4, numa_nodes=1)], "first_fit")
    assert {each["request"]: each["numa"] for each in decision["placements"]} == {"a": [1], "b": [0]}
    both = place(state, [vm("a", 8, 8, numa_nodes=2), vm("c", 4, 4, numa_nodes=1)], "first_fit")
    assert {each["request"]: each["numa"] for each in both["placements"]} == {"a": [1, 0], "c": [0]}
    assert not place(state, [vm("x", 8, 8, numa_nodes=2), vm("y", 5, 4, numa_nodes=1)], "first_fit")["fits"]
