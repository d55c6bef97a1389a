# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Traces: what is read of each kind, and what replaying them counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import (
    NAMED,
    SchemaError,
    rebalance,
    replay,
    replay_loads,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.traces import (
    Arrival,
    hosts_of_one_size,
    kind_of,
    most_at_once,
    read_loads_trace,
    read_machines_trace,
    read_requests_trace,
)

GIB = 2**30
HOSTS = "CPU1,RAM1,CPU2,RAM2\n8,16,8,16\n8,16,8,16\n"
RACKS = "host_id,rack_id\nhost-0,0\nhost-1,1\nhost-2,1\n"
REQUESTS = (
    "flavor_vcpus,flavor_ram,numa,strategy,group,domain\n8,16,2,,,\n4,8,1,fault_domain,0,1\n4,8,1,fault_domain,0,2\n"
)
MACHINES = (
    "name,cpu_milli,memory_mib,num_gpu,creation_time,deletion_time\n"
    "a,1000,1024,0,10,20\nb,1000,1024,0,20,30\nc,1000,1024,1,20,30\nd,2000,1024,0,25,\n"
)
LOADS = "vm0,vm1\n10,80\n20,90.5\n"


def arrival(name: str, start: float | None = None, end: float | None = None, memory: int = 1) -> Arrival:
    return Arrival({"id": name, "vcpus": 1, "memory_bytes": memory * GIB}, start, end)


def test_the_kinds_are_told_apart_by_their_first_lines() -> None:
    assert [kind_of(text) for text in (REQUESTS, MACHINES, LOADS)] == ["requests", "machines", "loads"]
    assert kind_of("a,b\n1,x") == "loads"
    for text in ("", "a,b", "a,b\nc,d", "a,b\n1,2,3", "group1|uuid|preferred||\n\nnode|1|2", '{"schema_version": 1}'):
        assert kind_of(text) is None


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (
            lambda: read_machines_trace(MACHINES + "a,1,1,0,1,2\n"),
            "machines, line 6: 'a' was given before, at machines, line 2",
        ),
        (lambda: read_machines_trace(MACHINES + "\n\ne,x,1,0,1,2\n"), "machines, line 8: cpu_milli is a number"),
        (
            lambda: read_machines_trace(MACHINES + "e,1,1e300,0,1,2\n"),
            "machines, line 6: memory_mib is a number from 0 to",
        ),
        (lambda: read_machines_trace(MACHINES + f"{'x' * 200_000},1,1,0,1,2\n"), "machines, line 6: field larger"),
        (lambda: read_machines_trace(MACHINES + ",1,1,0,1,2\n"), "machines, line 6: a text is wanted"),
        (lambda: read_machines_trace("name,cpu_milli\n"), "machines: there is no column 'creation_time'"),
        (
            lambda: read_requests_trace(REQUESTS + "0,1,1,,,\n", HOSTS, RACKS),
            "requests, line 5: flavor_vcpus is a number from 1",
        ),
        (
            lambda: read_requests_trace(REQUESTS + "1,1,99,,,\n", HOSTS, RACKS),
            "requests, line 5: numa is a number from 0 to 64",
        ),
        (lambda: read_requests_trace(REQUESTS + "1,1,1,near,1,\n", HOSTS, RACKS), "requests, line 5: one of affinity"),
        (lambda: read_requests_trace(REQUESTS, HOSTS + "8,1e18,8,16\n", RACKS), "hosts, line 4: RAM1 is a number"),
        (lambda: read_requests_trace(REQUESTS, HOSTS, "host_id\n"), "racks: there is no column 'rack_id'"),
        (lambda: read_loads_trace(LOADS + "1\n"), "loads, line 4: 2 loads from 0"),
        (lambda: read_loads_trace(LOADS + "\n\n1,x\n"), "loads, line 6: 2 loads from 0"),
        (lambda: read_loads_trace("a,a\n1,2\n"), "loads, line 1: two columns have one name"),
        (lambda: read_loads_trace("a,b\n"), "loads: a line of names and at least one"),
    ],
)
def test_a_wrong_line_of_a_trace_is_refused_with_its_number(read: Callable[[], object], says: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read()
    assert str(caught.value).startswith(says)


def test_requests_bring_numa_nodes_racks_and_groups() -> None:
    state, arrivals = read_requests_trace(REQUESTS, HOSTS, RACKS)
    assert [host["rack"] for host in state["hosts"]] == ["0", "1"]
    assert state["hosts"][0]["vcpus"]["total"] == 16
    assert arrivals[0].request["numa_nodes"] == 2
    assert arrivals[2].request["domain"] == 2
    assert state["groups"] == [{"name": "fault_domain-0", "rule": "domains", "scope": "rack"}]
    answer = replay(state, arrivals, "bin_packing")
    assert (answer["machines_at_once"], answer["rejected"]) == (3, [])
    fullest = read_state(answer["fullest"])
    racks = {vm.id: fullest.hosts[int(vm.host[-1])].rack for vm in fullest.vms}
    assert racks["r1"] != racks["r2"]


def test_machines_come_and_go_and_those_with_a_gpu_stay_out() -> None:
    arrivals, left_out = read_machines_trace(MACHINES)
    assert [(each.start, each.end) for each in arrivals] == [(10.0, 20.0), (20.0, 30.0), (25.0, None)]
    assert left_out == 1
    # a leaves when b comes.
    assert most_at_once(arrivals) == 2


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (MACHINES.replace("a,1000", "a,many"), "machines, line 2"),
        (MACHINES.replace("b,1000,1024,0,20", "b,1000,1024,0,-20"), "machines, line 3"),
        (MACHINES.replace("d,2000,1024,0,25,", "d,nan,1024,0,25,"), "machines, line 5"),
        (MACHINES.replace("memory_mib", "memory"), "machines"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(text: str, where: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read_machines_trace(text)
    assert caught.value.path == where


def test_wrong_requests_and_loads_are_refused() -> None:
    with pytest.raises(SchemaError, match="requests, line 3: one of affinity, anti-affinity, fault_domain is wanted"):
        read_requests_trace(REQUESTS.replace("fault_domain,0,1", "nearby,0,1"), HOSTS, RACKS)
    for text in ("a", "a,b\n1", "a,b\n1,x", "a,a\n1,2"):
        with pytest.raises(SchemaError, match="loads"):
            read_loads_trace(text)


def test_who_leaves_makes_room_for_who_comes() -> None:
    state = hosts_of_one_size(1, 2, 2 * GIB)
    answer = replay(state, [arrival("a", 0, 10, 2), arrival("b", 10, 20, 2), arrival("c", 15, 20, 2)])
    assert [each["request"] for each in answer["rejected"]] == ["c"]
    assert "memory short" in answer["rejected"][0]["text"]
    assert (answer["machines_at_once"], answer["hosts_used"], answer["hosts_touched"]) == (1, 1, 1)
    together = replay(state, [arrival("a", 0, 10, 2), arrival("b", 10, 20, 2)], at_once=True)
    assert len(together["rejected"]) == 1


@pytest.mark.parametrize("policy", sorted(NAMED))
def test_every_policy_replays_and_the_fullest_moment_is_a_state_to_plan_on(policy: str) -> None:
    state = hosts_of_one_size(3, 4, 8 * GIB)
    arrivals = [arrival(f"v{n}", float(n), float(n + 6), 2) for n in range(12)]
    answer = replay(state, arrivals, policy)
    assert (answer["rejected"], answer["machines_at_once"]) == ([], 6)
    fullest = read_state(answer["fullest"])
    assert sum(host.memory_allocated_bytes for host in fullest.hosts) == 12 * GIB
    assert rebalance(answer["fullest"])["score_after"] <= rebalance(answer["fullest"])["score_before"]


def test_machines_that_stand_already_count_and_stay() -> None:
    state: dict[str, Any] = hosts_of_one_size(2, 4, 8 * GIB)
    state["vms"] = [{"id": "old", "host": "host-1", "vcpus": 1, "memory_bytes": 8 * GIB}]
    answer = replay(state, [arrival("a", 1, 2, 4)], "first_fit")
    assert (answer["hosts_used"], answer["hosts_touched"]) == (2, 1)
    with pytest.raises(SchemaError, match="requests"):
        replay(state, [arrival("a"), arrival("a")])


def test_loads_on_the_border_do_not_flap() -> None:
    border = [80.0 if sample % 2 else 20.0 for sample in range(200)]
    calm = replay_loads({"vm0": border}, 300.0)
    assert calm["actions"] == 0
    hasty = replay_loads({"vm0": border}, 300.0, {"up_seconds": 0, "down_seconds": 0, "cooldown_seconds": 0})
    assert hasty["flaps"] > 100


def test_a_lasting_overload_is_answered_once() -> None:
    answer = replay_loads({"vm0": [10.0] * 5 + [90.0] * 20}, 300.0)
    assert (answer["actions"], answer["flaps"], answer["slowest_seconds"]) == (1, 0, 300.0)
