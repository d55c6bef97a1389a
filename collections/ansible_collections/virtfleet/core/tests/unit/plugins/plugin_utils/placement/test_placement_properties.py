# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What holds for every input: capacities and rules at every step, the order of the input, plans on their own results.

The checks replay decisions on plain dicts and share no code with the library.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import (
    NAMED,
    capacity,
    consolidate,
    drain,
    export_htools,
    import_htools,
    place,
    rebalance,
    score,
    what_if,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import after as carried_out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GIB = 2**30

SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Ledger:
    """Who stands where and what is free, counted anew from the plain state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.hosts = {host["name"]: host for host in state["hosts"]}
        self.groups = {group["name"]: group for group in state.get("groups", [])}
        self.vms = {vm["id"]: dict(vm) for vm in state.get("vms", [])}
        self.extra: list[tuple[str, dict[str, Any]]] = []

    def on(self, name: str) -> list[dict[str, Any]]:
        return [vm for vm in self.vms.values() if vm["host"] == name] + [vm for at, vm in self.extra if at == name]

    def over(self) -> list[str]:
        """Return what is promised more often than it is there."""
        problems = []
        for name, host in self.hosts.items():
            machines = self.on(name)
            memory = sum(vm["memory_bytes"] for vm in machines)
            vcpus = sum(vm["vcpus"] for vm in machines)
            if memory > host["memory"]["total_bytes"] - host["memory"].get("reserved_bytes", 0):
                problems.append(f"memory of {name}")
            if vcpus > int(host["vcpus"]["total"] * host["vcpus"].get("ratio", 1.0)):
                problems.append(f"vCPUs of {name}")
            for pool, facts in host.get("pools", {}).items():
                disks = [disk for vm in machines for disk in vm.get("disks", []) if disk["pool"] == pool]
                if sum(disk["size_bytes"] for disk in disks) > facts["total_bytes"]:
                    problems.append(f"pool {pool} of {name}")
        return problems

    def surplus(self) -> int:
        """Return how many machines break a hard anti-affinity rule."""
        count = 0
        for name, group in self.groups.items():
            if group.get("rule") != "anti-affinity" or not group.get("hard", True):
                continue
            for host in self.hosts:
                there = sum(1 for vm in self.on(host) if name in vm.get("groups", []))
                count += max(0, there - group.get("most", 1))
        return count

    def apart(self) -> int:
        """Return how many places a hard affinity group stands in beyond the first."""
        count = 0
        for name, group in self.groups.items():
            if group.get("rule") == "affinity" and group.get("hard", True):
                places = {vm["host"] for vm in self.vms.values() if name in vm.get("groups", [])}
                places |= {at for at, vm in self.extra if name in vm.get("groups", [])}
                count += max(0, len(places) - 1)
        return count

    def mixed(self) -> int:
        """Return how many fault domains of a group share a rack with another, beyond the first there."""
        count = 0
        for name, group in self.groups.items():
            if group.get("rule") == "domains":
                there: dict[str, set[int]] = {}
                for host in self.hosts:
                    domains = {vm.get("domain", 0) for vm in self.on(host) if name in vm.get("groups", [])}
                    there.setdefault(self.hosts[host].get("rack") or host, set()).update(domains)
                count += sum(max(0, len(domains) - 1) for domains in there.values())
        return count

    def broken(self) -> tuple[int, int, int]:
        """Return how much each kind of rule is broken."""
        return self.surplus(), self.apart(), self.mixed()

    def survives(self, lost: str) -> bool:
        """Tell whether the machines of a host find room on the others, trying every way."""
        free = {
            name: [host["memory"]["total_bytes"], int(host["vcpus"]["total"] * host["vcpus"].get("ratio", 1.0))]
            for name, host in self.hosts.items()
            if name != lost
        }
        for name, left in free.items():
            for vm in self.on(name):
                left[0] -= vm["memory_bytes"]
                left[1] -= vm["vcpus"]
        return self._all_fit(sorted(self.on(lost), key=lambda vm: -vm["memory_bytes"]), list(free.values()))

    def _all_fit(self, vms: list[dict[str, Any]], free: list[list[int]]) -> bool:
        if not vms:
            return True
        vm, rest = vms[0], vms[1:]
        for left in free:
            if left[0] >= vm["memory_bytes"] and left[1] >= vm["vcpus"]:
                left[0] -= vm["memory_bytes"]
                left[1] -= vm["vcpus"]
                fits = self._all_fit(rest, free)
                left[0] += vm["memory_bytes"]
                left[1] += vm["vcpus"]
                if fits:
                    return True
        return False


@st.composite
def clusters(draw: st.DrawFn, *, rules: bool = True, tiny: bool = False) -> dict[str, Any]:
    hosts = []
    for number in range(draw(st.integers(1, 4 if tiny else 6))):
        host: dict[str, Any] = {
            "name": f"h{number}",
            "vcpus": {"total": draw(st.sampled_from([4, 8, 16])), "ratio": draw(st.sampled_from([1.0, 2.0]))},
            "memory": {"total_bytes": draw(st.sampled_from([8, 16, 32])) * GIB},
        }
        if rules:
            host["zone"] = draw(st.sampled_from(["a", "a", "b"]))
            host["rack"] = draw(st.sampled_from([None, "r1", "r2"]))
            host["tags"] = draw(st.sampled_from([[], ["ssd"]]))
            host["memory"]["reserved_bytes"] = draw(st.sampled_from([0, GIB]))
            host["maintenance"] = draw(st.sampled_from([False, False, False, True]))
            host["pools"] = {"p": {"total_bytes": draw(st.sampled_from([50, 100])) * GIB}}
        hosts.append(host)
    groups = []
    if rules:
        groups = [
            {"name": "apart", "rule": "anti-affinity", "most": draw(st.integers(1, 2))},
            {"name": "near", "rule": "affinity", "hard": False},
            {"name": "one", "rule": "affinity", "hard": True},
            {"name": "fault", "rule": "domains"},
        ]
    state: dict[str, Any] = {"schema_version": 1, "hosts": hosts, "vms": [], "groups": groups}
    for number in range(draw(st.integers(0, 16))):
        vm = {"id": f"v{number}", "host": draw(st.sampled_from(hosts))["name"], **draw(machines(rules=rules))}
        state["vms"].append(vm)
        ledger = Ledger(state)
        if ledger.over() or any(ledger.broken()):
            state["vms"].pop()
    return state


@st.composite
def machines(draw: st.DrawFn, *, rules: bool = True) -> dict[str, Any]:
    vm: dict[str, Any] = {
        "vcpus": draw(st.sampled_from([1, 1, 2, 4])),
        "memory_bytes": draw(st.sampled_from([1, 2, 3, 4, 8])) * GIB,
    }
    if rules:
        vm["groups"] = draw(st.sampled_from([[], [], [], ["apart"], ["near"], ["one"], ["fault"]]))
        vm["domain"] = draw(st.integers(0, 1))
        vm["tags"] = draw(st.sampled_from([[], [], ["ssd"]]))
        vm["exclude"] = draw(st.sampled_from([[], [], ["h0"]]))
        vm["disks"] = draw(st.sampled_from([[], [{"pool": "p", "size_bytes": 10 * GIB}]]))
    return vm


@st.composite
def requests(draw: st.DrawFn, state: dict[str, Any]) -> list[dict[str, Any]]:
    names = [host["name"] for host in state["hosts"]]
    answer = []
    for number in range(draw(st.integers(0, 12))):
        request = {"id": f"new{number}", **draw(machines())}
        request["zone"] = draw(st.sampled_from([None, None, "a", "b"]))
        request["host"] = draw(st.sampled_from([None, None, None, names[0]]))
        request["exclude"] += draw(st.sampled_from([[], [], [names[-1]]]))
        answer.append(request)
    return answer


@SETTINGS
@given(data=st.data(), policy=st.sampled_from(sorted(NAMED)), whole=st.booleans())
def test_a_placed_batch_never_breaks_a_capacity_or_a_rule(data: st.DataObject, policy: str, whole: bool) -> None:
    state = data.draw(clusters())
    wanted = data.draw(requests(state))
    decision = place(state, wanted, policy, all_or_nothing=whole)
    by_id = {request["id"]: request for request in wanted}
    placed = {each["request"]: each["host"] for each in decision["placements"]}
    missing = {each["request"] for each in decision["unplaced"]}
    assert set(placed) | missing == set(by_id)
    assert not set(placed) & missing
    assert decision["fits"] is (not missing)
    if whole:
        assert not placed or not missing
    ledger = Ledger(state)
    for name, host in placed.items():
        request = by_id[name]
        facts = ledger.hosts[host]
        assert not facts["maintenance"]
        assert request["zone"] in (None, facts["zone"])
        assert request["host"] in (None, host)
        assert host not in request["exclude"]
        assert set(request["tags"]) <= set(facts["tags"])
        assert not request["disks"] or "p" in facts["pools"]
        ledger.extra.append((host, request))
    assert ledger.over() == []
    assert ledger.broken() == (0, 0, 0)


@SETTINGS
@given(data=st.data(), policy=st.sampled_from(sorted(NAMED)))
def test_the_order_of_the_input_does_not_matter(data: st.DataObject, policy: str) -> None:
    state = data.draw(clusters())
    wanted = data.draw(requests(state))
    shuffled = {
        **state,
        "hosts": data.draw(st.permutations(state["hosts"])),
        "vms": data.draw(st.permutations(state["vms"])),
        "groups": data.draw(st.permutations(state["groups"])),
    }
    other = data.draw(st.permutations(wanted))
    assert place(state, wanted, policy, explain=True) == place(shuffled, other, policy, explain=True)
    assert rebalance(state) == rebalance(shuffled)
    assert consolidate(state) == consolidate(shuffled)
    names = [host["name"] for host in state["hosts"]][:2]
    assert drain(state, names, policy) == drain(shuffled, names[::-1], policy)
    assert what_if(state, {"lose_hosts": names, "add_vms": wanted}, policy) == what_if(
        shuffled, {"add_vms": other, "lose_hosts": names[::-1]}, policy
    )
    flavors = [{"name": "f", "vcpus": 1, "memory_bytes": GIB}]
    assert capacity(state, flavors) == capacity(shuffled, flavors)
    assert score(state) == score(shuffled)


@SETTINGS
@given(data=st.data(), policy=st.sampled_from(sorted(NAMED)))
def test_explaining_changes_nothing_and_every_score_is_the_sum_of_its_terms(data: st.DataObject, policy: str) -> None:
    state = data.draw(clusters())
    wanted = data.draw(requests(state))
    plain, explained = place(state, wanted, policy), place(state, wanted, policy, explain=True)
    assert [(each["request"], each["host"]) for each in plain["placements"]] == [
        (each["request"], each["host"]) for each in explained["placements"]
    ]
    for each in [*explained["placements"], *explained["unplaced"]]:
        why = each["explanation"]
        hosts = {one["host"] for one in why["ranked"]} | {one["host"] for one in why["rejected"]}
        assert hosts == {host["name"] for host in state["hosts"]}
        assert len(why["ranked"]) + len(why["rejected"]) == len(hosts)
        assert why["chosen"] is None or why["chosen"] in {one["host"] for one in why["ranked"]}
        for ranked in why["ranked"]:
            assert sum(ranked["terms"].values()) == pytest.approx(ranked["score"], abs=1e-9)
        for rejected in why["rejected"]:
            assert rejected["reasons"]
            assert all(reason["text"] for reason in rejected["reasons"])


def replay(state: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Run a plan batch by batch on a copy; within a batch all machines arrive before any leaves."""
    state = copy.deepcopy(state)
    ledger = Ledger(state)
    surplus, apart, mixed = ledger.broken()
    number = 0
    while number < len(plan["moves"]):
        batch = [move for move in plan["moves"] if move["batch"] == plan["moves"][number]["batch"]]
        ledger.extra = [(move["to"], ledger.vms[move["vm"]]) for move in batch]
        assert ledger.over() == []
        assert ledger.surplus() <= surplus
        assert ledger.mixed() <= mixed
        ledger.extra = []
        for move in batch:
            vm = ledger.vms[move["vm"]]
            assert vm["host"] == move["from"] != move["to"]
            target = ledger.hosts[move["to"]]
            assert not target.get("maintenance")
            assert vm.get("zone") in (None, target.get("zone"))
            assert set(vm.get("tags", ())) <= set(target.get("tags", ()))
            assert move["to"] not in vm.get("exclude", ())
            vm["host"] = move["to"]
            assert ledger.surplus() <= surplus
        number += len(batch)
        assert ledger.apart() <= apart
        surplus, apart, mixed = ledger.broken()
    for vm in state["vms"]:
        vm["host"] = ledger.vms[vm["id"]]["host"]
    return state


@SETTINGS
@given(state=clusters(rules=False, tiny=True), kind=st.sampled_from(["rebalance", "consolidate", "drain"]))
def test_n_plus_one_is_kept_after_every_single_move(state: dict[str, Any], kind: str) -> None:
    plans = {"rebalance": rebalance, "consolidate": consolidate, "drain": lambda each: drain(each, ["h0"])}
    plan = plans[kind](state)
    if kind == "drain":
        state["hosts"][0]["maintenance"] = True
    ledger = Ledger(state)
    watched = {name: host for name, host in ledger.hosts.items() if not host.get("maintenance")}
    ledger.hosts = watched
    if kind != "drain" and not plan["n_plus_one"]["before"]:
        return
    for move in plan["moves"]:
        ledger.vms[move["vm"]]["host"] = move["to"]
        if plan["n_plus_one"]["after"]:
            assert all(ledger.survives(name) for name in watched), move


@SETTINGS
@given(state=clusters(), policy=st.sampled_from(sorted(NAMED)), rule=st.sampled_from(["fewest_hosts", "volume_ratio"]))
def test_a_plan_on_its_own_result_is_empty(state: dict[str, Any], policy: str, rule: str) -> None:
    assert rebalance(carried_out(state, rebalance(state)))["moves"] == []
    assert consolidate(carried_out(state, plan := consolidate(state, rule)), rule)["moves"] == [], plan["moves"]
    names = [state["hosts"][0]["name"]]
    assert drain(carried_out(state, drain(state, names, policy)), names, policy)["moves"] == []


@st.composite
def numa_fleets(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    node = {"vcpus_total": 8, "memory_total_bytes": 16 * GIB}
    hosts = [
        {"name": f"h{n}", "vcpus": {"total": 16}, "memory": {"total_bytes": 32 * GIB}, "numa": [node, node]}
        for n in range(draw(st.integers(1, 3)))
    ]
    wanted = [
        {"id": f"v{n}", **draw(machines(rules=False)), "numa_nodes": draw(st.integers(0, 2))}
        for n in range(draw(st.integers(0, 14)))
    ]
    return {"schema_version": 1, "hosts": hosts}, wanted


@SETTINGS
@given(fleet=numa_fleets(), policy=st.sampled_from(sorted(NAMED)))
def test_no_numa_node_is_promised_twice(fleet: tuple[dict[str, Any], list[dict[str, Any]]], policy: str) -> None:
    state, wanted = fleet
    by_id = {request["id"]: request for request in wanted}
    taken: dict[tuple[str, int], list[int]] = {}
    for each in place(state, wanted, policy)["placements"]:
        request, nodes = by_id[each["request"]], each["numa"]
        assert len(nodes) == len(set(nodes)) == request["numa_nodes"]
        for node in nodes:
            at = taken.setdefault((each["host"], node), [0, 0])
            at[0] += -(-request["vcpus"] // len(nodes))
            at[1] += -(-request["memory_bytes"] // len(nodes))
    assert all(vcpus <= 8 and memory <= 16 * GIB for vcpus, memory in taken.values())


def n_plus_one_by_sum(state: dict[str, Any], lost: str) -> bool:
    """Tell whether a host's loss could be absorbed as far as the sum of memory says: needed, though not enough."""
    ledger = Ledger(state)
    others = [host for name, host in ledger.hosts.items() if name != lost and not host.get("maintenance")]
    free = sum(h["memory"]["total_bytes"] - sum(vm["memory_bytes"] for vm in ledger.on(h["name"])) for h in others)
    return sum(vm["memory_bytes"] for vm in ledger.on(lost)) <= free


@SETTINGS
@given(state=clusters())
def test_a_rebalance_keeps_every_rule_never_worsens_and_is_done_once(state: dict[str, Any]) -> None:
    plan = rebalance(state)
    after = replay(state, plan)
    assert plan["score_after"] <= plan["score_before"] + 1e-9 or Ledger(state).surplus() > 0
    assert score(after)["score"] == pytest.approx(plan["score_after"], abs=1e-9)
    assert carried_out(state, plan) == read_state(after)
    again = rebalance(after)
    assert again["moves"] == []
    assert again["summary"]
    if plan["n_plus_one"]["before"]:
        assert plan["n_plus_one"]["after"]
        assert all(n_plus_one_by_sum(after, host["name"]) for host in after["hosts"] if not host.get("maintenance"))


@SETTINGS
@given(state=clusters(), data=st.data())
def test_a_drain_empties_its_hosts_or_says_why_not(state: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from([host["name"] for host in state["hosts"]]), unique=True, max_size=2))
    plan = drain(state, names)
    after = replay(state, plan)
    staying = {vm["id"] for vm in after["vms"] if vm["host"] in names}
    assert staying == {each["vm"] for each in plan["left"]}
    assert all(each["text"] for each in plan["left"])
    # Only a machine that waits on a third host may be moved more than once.
    assert {move["vm"] for move in plan["moves"]} <= {vm["id"] for vm in state["vms"] if vm["host"] in names}


@SETTINGS
@given(state=clusters(), rule=st.sampled_from(["fewest_hosts", "volume_ratio"]))
def test_a_consolidation_keeps_every_rule_and_never_uses_more_hosts(state: dict[str, Any], rule: str) -> None:
    plan = consolidate(state, rule)
    after = replay(state, plan)
    used = {vm["host"] for vm in after["vms"]}
    busy = {host["name"] for host in state["hosts"] if not host.get("maintenance")}
    assert len(used & busy) == plan["hosts_after"] <= plan["hosts_before"]
    assert not used & set(plan["freed"])
    if plan["n_plus_one"]["before"]:
        assert plan["n_plus_one"]["after"]


@SETTINGS
@given(state=clusters(rules=False))
def test_a_state_goes_through_an_htools_file_and_back(state: dict[str, Any]) -> None:
    first, notes = import_htools(export_htools(state))
    assert notes == []
    assert score(first)["score"] == pytest.approx(score(state)["score"], abs=1e-12)
    assert import_htools(export_htools(first)) == (first, [])
