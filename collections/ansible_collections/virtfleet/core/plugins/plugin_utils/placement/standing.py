# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who stands where: a fleet with its machines, which can be moved one by one, and what each machine needs."""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Claim, Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request, State, Vm

GIB = 2**30


def request_of(vm: Vm) -> Request:
    """Return what a machine needs wherever it stands, as a request."""
    return Request(
        id=vm.id,
        vcpus=vm.vcpus,
        memory_bytes=vm.memory_bytes,
        disks=vm.disks,
        zone=vm.zone,
        exclude=vm.exclude,
        groups=vm.groups,
        domain=vm.domain,
        tags=vm.tags,
        numa_nodes=len(vm.numa),
    )


class Standing:
    """A fleet and its machines. Machines have numbers, in the order of their ids, as hosts have."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.fleet = Fleet(state)
        self.vms: list[Vm] = list(state.vms)
        self.needs = [request_of(vm) for vm in state.vms]
        self.claims: list[Claim] = [self.fleet.claim_of(vm) for vm in state.vms]
        self.on: list[set[int]] = [set() for _host in state.hosts]
        for number, claim in enumerate(self.claims):
            self.on[claim.host].add(number)
        self.usable = [host.live and not host.maintenance for host in state.hosts]

    def host_of(self, vm: int) -> int:
        """Return the number of the host a machine stands on."""
        return self.claims[vm].host

    def fits(self, vm: int, host: int) -> bool:
        """Tell whether a machine could stand on another host, all rules kept, as if it had left its own."""
        claim = self.claims[vm]
        if claim.host == host:
            return True
        fleet, need = self.fleet, self.needs[vm]
        # The cheap refusals first: this is asked very often.
        if fleet.vcpus_free[host] < need.vcpus or fleet.memory_free[host] < need.memory_bytes:
            return False
        if not self.usable[host] or not fleet.is_eligible(fleet.hosts[host], need):
            return False
        if need.groups or need.disks:
            # A group's rule and a shared pool see the machine leave its host.
            fleet.release(claim)
            fits = bool(fleet.with_room(need, [host]))
            fleet.take(claim)
            return fits
        return bool(fleet.with_room(need, [host])) if need.numa_nodes else True

    def move(self, vm: int, host: int) -> None:
        """Move a machine. The caller has seen that it fits."""
        old = self.claims[vm]
        self.fleet.release(old)
        self.claims[vm] = self.fleet.claim(host, self.needs[vm])
        self.on[old.host].discard(vm)
        self.on[host].add(vm)

    def add(self, need: Request, claim: Claim) -> None:
        """Add a machine that is not in the state, with what it takes of which host."""
        self.fleet.take(claim)
        self.on[claim.host].add(len(self.vms))
        self.claims.append(claim)
        self.needs.append(need)
        self.vms.append(
            Vm(
                id=need.id,
                host=self.fleet.hosts[claim.host].name,
                vcpus=need.vcpus,
                memory_bytes=need.memory_bytes,
                disks=need.disks,
                zone=need.zone,
                groups=need.groups,
                domain=need.domain,
                tags=need.tags,
                exclude=need.exclude,
                numa=claim.numa,
            )
        )

    def move_back(self, vm: int, claim: Claim) -> None:
        """Undo a move: the machine has again exactly what it had."""
        now = self.claims[vm]
        self.fleet.release(now)
        self.fleet.take(claim)
        self.claims[vm] = claim
        self.on[now.host].discard(vm)
        self.on[claim.host].add(vm)

    def is_movable(self, vm: int) -> bool:
        """Tell whether a plan may move a machine: nothing holds it, and its host answers."""
        return self.vms[vm].movable and self.vms[vm].stays is None and self.fleet.hosts[self.claims[vm].host].live

    def moved_bytes(self, vm: int) -> int:
        """Return what moving a machine carries over: its memory, and its disks that are not in a shared pool."""
        pools = self.fleet.hosts[self.claims[vm].host].pools
        disks = sum(
            disk.size_bytes for disk in self.vms[vm].disks if disk.pool not in pools or not pools[disk.pool].shared
        )
        return self.vms[vm].memory_bytes + disks
