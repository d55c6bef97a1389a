# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Placing: each rule that refuses a host, each policy's choice, batches as real packings, and the explanations."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import place

GIB = 2**30


def host(
    name: str, vcpus: object = 8, memory: object = 16, *, used_vcpus: int = 0, used: int = 0, **changes: Any
) -> dict[str, Any]:
    """Return a host; memory in GiB. A mapping for vcpus or memory is taken as it is."""
    return {
        "name": name,
        "vcpus": {"total": vcpus, "allocated": used_vcpus} if isinstance(vcpus, int) else vcpus,
        "memory": {"total_bytes": memory * GIB, "allocated_bytes": used * GIB} if isinstance(memory, int) else memory,
        **changes,
    }


def state(*hosts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"schema_version": 1, "generation": 3, "hosts": list(hosts), **changes}


def vm(name: str = "vm1", vcpus: int = 1, memory: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": name, "vcpus": vcpus, "memory_bytes": memory * GIB, **changes}


def where(decision: dict[str, Any]) -> dict[str, str]:
    return {placement["request"]: placement["host"] for placement in decision["placements"]}


def reasons(decision: dict[str, Any], name: str = "vm1") -> dict[str, list[str]]:
    why = next(each["explanation"] for each in decision["unplaced"] if each["request"] == name)
    return {each["host"]: [reason["code"] for reason in each["reasons"]] for each in why["rejected"]}


@pytest.mark.parametrize(
    ("one", "request_", "code", "short_by"),
    [
        (host("h1", live=False, error="libvirtd frozen"), vm(), "not_live", None),
        (host("h1", maintenance=True), vm(), "maintenance", None),
        (host("h1", zone="a"), vm(zone="b"), "wrong_zone", None),
        (host("h1"), vm(zone="b"), "wrong_zone", None),
        (host("h1"), vm(host="h2"), "pinned_elsewhere", None),
        (host("h1"), vm(exclude=["h1"]), "excluded", None),
        (host("h1"), vm(tags=["ssd"]), "tags_missing", None),
        (host("h1", vcpus=4, used_vcpus=3), vm(vcpus=2), "vcpus_short", 1),
        (host("h1", memory=4, used=3), vm(memory=3), "memory_short", 2 * GIB),
        (host("h1", memory={"total_bytes": 4 * GIB, "reserved_bytes": GIB}), vm(memory=4), "memory_short", GIB),
        (host("h1"), vm(disks=[{"pool": "fast", "size_bytes": 1}]), "pool_missing", None),
        (
            host("h1", pools={"p": {"total_bytes": 10, "allocated_bytes": 8}}),
            vm(disks=[{"pool": "p", "size_bytes": 2}, {"pool": "p", "size_bytes": 3}]),
            "pool_short",
            3,
        ),
        (
            host("h1", pools={"p": {"total_bytes": 10, "ratio": 0.5}}),
            vm(disks=[{"pool": "p", "size_bytes": 22}]),
            "pool_short",
            1,
        ),
        (
            host("h1", pools={"p": {"total_bytes": 10, "ratio": 0.5}}),
            vm(disks=[{"pool": "p", "size_bytes": 12, "overlay": False}]),
            "pool_short",
            2,
        ),
        (
            host("h1", numa=[{"vcpus_total": 4, "memory_total_bytes": 8 * GIB}] * 2),
            vm(vcpus=6, numa_nodes=1),
            "numa_short",
            1,
        ),
        (host("h1", load={"cpu_percent": 85.0}), vm(), "over_threshold", 5.0),
    ],
)
def test_a_host_is_refused_with_its_code_and_shortfall(
    one: dict[str, Any], request_: dict[str, Any], code: str, short_by: float | None
) -> None:
    decision = place(state(one), [request_], {"name": "first_fit", "threshold": 80})
    assert not decision["fits"]
    assert decision["placements"] == []
    assert reasons(decision) == {"h1": [code]}
    reason = decision["unplaced"][0]["explanation"]["rejected"][0]["reasons"][0]
    assert reason["short_by"] == short_by
    assert "h1" in decision["summary"]


@pytest.mark.parametrize(
    ("one", "request_"),
    [
        (host("h1", vcpus={"total": 2, "allocated": 15, "ratio": 8.0}), vm(vcpus=1)),
        (host("h1", memory={"total_bytes": 4 * GIB, "ratio": 1.5}), vm(memory=6)),
        (host("h1", pools={"p": {"total_bytes": 10, "ratio": 0.5}}), vm(disks=[{"pool": "p", "size_bytes": 20}])),
        (host("h1", zone="a"), vm(zone="a")),
        (host("h1", tags=["ssd", "gpu"]), vm(tags=["ssd"])),
    ],
)
def test_a_host_takes_what_its_ratios_allow(one: dict[str, Any], request_: dict[str, Any]) -> None:
    assert place(state(one), [request_], "first_fit")["fits"]


def test_the_threshold_is_on_the_measured_load_or_on_what_was_promised() -> None:
    policy = {"name": "first_fit", "threshold": 80}
    hosts = [host("h1", load={"cpu_percent": 80.0}), host("h2", used_vcpus=7), host("h3", load={"cpu_percent": 79.9})]
    assert where(place(state(*hosts), [vm()], policy)) == {"vm1": "h3"}


def test_every_reason_of_a_host_is_told_at_once() -> None:
    decision = place(state(host("h1", vcpus=1, memory=1, maintenance=True)), [vm(vcpus=2, memory=2)])
    assert reasons(decision) == {"h1": ["maintenance", "vcpus_short", "memory_short"]}


def test_the_nearest_miss_is_named_with_its_shortfall() -> None:
    hosts = [host("h1", used=15), host("h7", memory=8, used=3), host("h8", live=False)]
    why = place(state(*hosts), [vm(memory=6)])["unplaced"][0]["explanation"]
    assert why["text"].endswith("nearest h7: memory short by 1 GiB (6 GiB wanted, 5 GiB free)")
    by_code = {each["code"]: each for each in why["refusals"]}
    assert by_code["memory_short"]["hosts"] == ["h1", "h7"]
    assert by_code["memory_short"]["nearest"]["host"] == "h7"
    assert by_code["not_live"]["hosts"] == ["h8"]


def test_first_fit_takes_the_first_host_by_name_that_has_room() -> None:
    hosts = [host("h10"), host("h2"), host("h1", used=16)]
    assert where(place(state(*hosts), [vm()], "first_fit")) == {"vm1": "h2"}


def test_bin_packing_takes_the_fullest_host_that_has_room() -> None:
    hosts = [host("h1"), host("h2", used_vcpus=4, used=8), host("h3", used_vcpus=8, used=8)]
    assert where(place(state(*hosts), [vm()], "bin_packing")) == {"vm1": "h2"}


def test_equal_hosts_are_taken_in_the_order_of_their_names() -> None:
    assert where(place(state(host("h10"), host("h9")), [vm()], "bin_packing")) == {"vm1": "h9"}


def test_round_robin_goes_around_and_remembers_where_it_was() -> None:
    hosts = [host("h1"), host("h2", maintenance=True), host("h3")]
    first = place(state(*hosts), [vm("a"), vm("b"), vm("c")], "round_robin")
    assert where(first) == {"a": "h1", "b": "h3", "c": "h1"}
    assert first["cursor"] == "h1"
    second = place(state(*hosts, cursor=first["cursor"]), [vm("d")], "round_robin")
    assert where(second) == {"d": "h3"}


def test_round_robin_goes_on_after_a_host_that_is_gone() -> None:
    assert where(place(state(host("h1"), host("h3"), cursor="h2"), [vm()], "round_robin")) == {"vm1": "h3"}
    assert where(place(state(host("h1"), host("h3"), cursor="h9"), [vm()], "round_robin")) == {"vm1": "h1"}


def test_round_robin_ends_when_nothing_fits() -> None:
    decision = place(state(host("h1", used=16), host("h2", used=16)), [vm("a"), vm("b")], "round_robin")
    assert [each["request"] for each in decision["unplaced"]] == ["a", "b"]
    assert decision["cursor"] is None


@pytest.mark.parametrize("policy", ["first_fit", "round_robin", "bin_packing"])
def test_a_batch_is_a_real_packing_not_a_sum(policy: str) -> None:
    # 12 GiB are free in sum, but no host has 5.
    hosts = [host(f"h{n}", memory=4) for n in range(3)]
    decision = place(state(*hosts), [vm("big", memory=5)], policy)
    assert not decision["fits"]
    decision = place(state(*hosts), [vm(f"v{n}", memory=3) for n in range(4)], policy)
    assert len(set(where(decision).values())) == 3
    assert len(decision["unplaced"]) == 1


@pytest.mark.parametrize("policy", ["first_fit", "round_robin", "bin_packing"])
def test_all_or_nothing_places_none_unless_all_fit(policy: str) -> None:
    decision = place(state(host("h1", memory=4)), [vm("a", memory=3), vm("b", memory=3)], policy, all_or_nothing=True)
    assert decision["placements"] == []
    assert len(decision["unplaced"]) == 2
    assert decision["cursor"] is None
    assert "all or nothing" in decision["summary"]


def test_no_host_at_all_is_said_so() -> None:
    assert place(state(), [vm()])["summary"].endswith("vm1 cannot be placed: there are no hosts")
    assert place(state(), [])["fits"]


def test_a_pinned_machine_is_placed_before_one_that_could_take_its_room() -> None:
    hosts = [host("h1", memory=4), host("h2", memory=4)]
    decision = place(state(*hosts), [vm("a", memory=3), vm("z", memory=3, host="h1")], "first_fit")
    assert where(decision) == {"a": "h2", "z": "h1"}


def test_a_pin_to_an_unknown_host_says_so() -> None:
    assert "pinned to h9, which is not among the hosts" in place(state(host("h1")), [vm(host="h9")])["summary"]


def test_a_shared_pool_is_charged_once_for_all_its_hosts() -> None:
    pools = {"nfs": {"total_bytes": 10, "shared": True}}
    hosts = [host("h1", pools=pools), host("h2", pools=pools)]
    requests = [vm(name, disks=[{"pool": "nfs", "size_bytes": 6}]) for name in ("a", "b")]
    for policy in ("first_fit", "round_robin", "bin_packing"):
        assert len(place(state(*hosts), requests, policy)["placements"]) == 1


@pytest.mark.parametrize("policy", ["first_fit", "round_robin", "bin_packing"])
def test_the_terms_of_every_ranked_host_add_up_to_its_score(policy: str) -> None:
    hosts = [host(f"h{n}", used=n, used_vcpus=n) for n in range(6)]
    decision = place(state(*hosts), [vm("a"), vm("b", 2, 3)], policy, explain=True)
    for placement in decision["placements"]:
        why = placement["explanation"]
        assert why["chosen"] == placement["host"] == why["ranked"][0]["host"]
        scores = [each["score"] for each in why["ranked"]]
        assert scores == sorted(scores, reverse=True)
        for each in why["ranked"]:
            assert sum(each["terms"].values()) == pytest.approx(each["score"], abs=1e-12)
            assert 0 <= each["score"] <= 1


def test_explaining_does_not_change_the_decision() -> None:
    hosts = [host(f"h{n}", used=n % 5, used_vcpus=n % 3) for n in range(12)]
    requests = [vm(f"v{n}", 1 + n % 3, 1 + n % 4) for n in range(30)]
    for policy in ("first_fit", "round_robin", "bin_packing"):
        plain = place(state(*hosts), requests, policy)
        assert where(plain) == where(place(state(*hosts), requests, policy, explain=True))
        assert plain["generation"] == 3


def test_a_policy_is_data() -> None:
    hosts = [host("h1", used=2, used_vcpus=6), host("h2", used=12, used_vcpus=1)]
    mine = {"name": "memory_first", "version": "7", "scorers": {"memory_filled": 3, "vcpus_filled": 1}}
    decision = place(state(*hosts), [vm()], mine)
    assert where(decision) == {"vm1": "h2"}
    assert (decision["policy"], decision["policy_version"]) == ("memory_first", "7")


def test_choosing_among_the_best_is_seeded() -> None:
    hosts = [host(f"h{n}") for n in range(6)]
    requests = [vm(f"v{n}") for n in range(6)]

    def decide(seed: int) -> dict[str, str]:
        policy = {"name": "first_fit", "choose": {"among": 3, "seed": seed}}
        return where(place(state(*hosts), requests, policy))

    assert decide(1) == decide(1)
    assert set(decide(1).values()) <= {"h0", "h1", "h2"}
    assert len({tuple(decide(seed).items()) for seed in range(8)}) > 1
