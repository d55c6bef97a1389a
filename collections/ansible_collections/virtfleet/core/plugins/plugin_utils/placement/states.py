# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States made from states: hosts closed or lost, machines gone or moved."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing


def closed(state: State, names: Collection[str]) -> State:
    """Return the state with some hosts closed to machines, as in maintenance."""
    hosts = tuple(replace(host, maintenance=True) if host.name in names else host for host in state.hosts)
    return replace(state, hosts=hosts)


def with_hosts_lost(state: State, names: Collection[str]) -> State:
    """Return the state with some hosts down; what stood there is still listed there."""
    hosts = tuple(replace(host, live=False, error="lost") if host.name in names else host for host in state.hosts)
    return replace(state, hosts=hosts)


def without_machines(state: State, ids: Collection[str]) -> State:
    """Return the state without some machines; what they took is free."""
    if not ids:
        return state
    standing = Standing(state)
    return as_it_stands(standing, without={number for number, vm in enumerate(standing.vms) if vm.id in ids})


def after(state: object, plan: dict[str, Any]) -> State:
    """Return the state after a plan of this library was carried out on it. Raises SchemaError."""
    standing = Standing(read_state(state))
    number_of = {vm.id: number for number, vm in enumerate(standing.vms)}
    for move in plan["moves"]:
        standing.move(number_of[move["vm"]], standing.fleet.index[move["to"]])
    return as_it_stands(standing)


def as_it_stands(standing: Standing, *, without: Collection[int] = ()) -> State:
    """Return a standing as a state; the machines in `without` (numbers) are left out, and what they took is free."""
    fleet = standing.fleet
    gone = [standing.claims[number] for number in without]
    for claim in gone:
        fleet.release(claim)
    hosts = tuple(
        replace(
            host,
            vcpus_allocated=fleet.vcpus_usable[number] - fleet.vcpus_free[number],
            memory_allocated_bytes=fleet.memory_usable[number] - fleet.memory_free[number],
            pools={
                name: replace(pool, allocated_bytes=max(0, pool.total_bytes - fleet.pool_free[name][number]))
                for name, pool in host.pools.items()
            },
            numa=tuple(
                replace(
                    node,
                    vcpus_allocated=node.vcpus_total - vcpus,
                    memory_allocated_bytes=node.memory_total_bytes - memory,
                )
                for node, (vcpus, memory) in zip(host.numa, fleet.numa_free[number], strict=True)
            ),
        )
        for number, host in enumerate(fleet.hosts)
    )
    for claim in gone:
        fleet.take(claim)
    vms = tuple(
        replace(vm, host=fleet.hosts[standing.host_of(number)].name, numa=standing.claims[number].numa or vm.numa)
        for number, vm in enumerate(standing.vms)
        if number not in without
    )
    return replace(standing.state, hosts=hosts, vms=vms)
