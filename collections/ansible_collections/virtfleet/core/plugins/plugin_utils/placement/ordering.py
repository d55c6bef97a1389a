# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting moves into an order in which each can be done: batches that run side by side, and no capacity ever exceeded.

In a batch every target has room for all that comes while nothing has left yet, so it does not matter which move of a
batch ends first. A move that cannot go directly goes by way of a third host.
"""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Claim
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.n_plus_one import Watch
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing

Step = tuple[int, int]
"""A machine and the host it goes to."""


def in_batches(
    standing: Standing, goal: dict[int, int], *, per_host: int, keep_n_plus_one: bool
) -> list[list[Step]] | None:
    """Return batches that bring the machines of `goal` (machine → host) there, or None when no order was found.

    `standing` is used for trying and ends up where the batches lead. A host takes part in at most `per_host` moves of
    a batch. With `keep_n_plus_one`, N+1 holds after every single move.
    """
    waiting = {vm: host for vm, host in goal.items() if standing.host_of(vm) != host}
    watch = Watch(standing) if keep_n_plus_one else None
    batches: list[list[Step]] = []
    detours = 0
    while waiting:
        batch = _next_batch(standing, waiting, per_host, watch)
        if not batch:
            detour = _detour(standing, waiting, watch) if detours <= len(goal) else None
            if detour is None:
                return None
            detours += 1
            batch = [detour]
        batches.append(batch)
        for vm, host in batch:
            if waiting.get(vm) == host:
                del waiting[vm]
    return batches


def _next_batch(standing: Standing, waiting: dict[int, int], per_host: int, watch: Watch | None) -> list[Step]:
    """Choose moves that fit together and make them: all arrive before anything leaves."""
    busy: dict[int, int] = {}
    batch: list[Step] = []
    fleet = standing.fleet
    held: list[Claim] = []
    for vm, target in sorted(waiting.items()):
        source = standing.host_of(vm)
        if busy.get(source, 0) >= per_host or busy.get(target, 0) >= per_host or not standing.fits(vm, target):
            continue
        old = standing.claims[vm]
        standing.move(vm, target)
        if watch is not None:
            watch.moved(source, target)
            if not watch.holds():
                standing.move_back(vm, old)
                watch.moved(source, target)
                continue
        # Its old place stays taken until the batch is over.
        fleet.hold(old)
        held.append(old)
        busy[source] = busy.get(source, 0) + 1
        busy[target] = busy.get(target, 0) + 1
        batch.append((vm, target))
    for old in held:
        fleet.unhold(old)
    if watch is not None:
        watch.moved(*busy)
        # The packing behind N+1 is not exact: it may succeed while old places are held and fail when they are free.
        # The first move was judged with none held.
        while len(batch) > 1 and not watch.holds():
            (vm, target), old = batch.pop(), held.pop()
            standing.move_back(vm, old)
            watch.moved(old.host, target)
    return batch


def _detour(standing: Standing, waiting: dict[int, int], watch: Watch | None) -> Step | None:
    """Find a machine that can wait on a third host, the smallest first: it makes room where it stands."""
    order = sorted(waiting, key=lambda vm: (standing.moved_bytes(vm), vm))
    targets = set(waiting.values())
    for vm in order:
        source = standing.host_of(vm)
        if source not in targets:
            continue
        # Hosts nobody waits for first, so that the detour does not stand in another's way.
        for host in sorted(standing.fleet.everyone, key=lambda each: (each in targets, each)):
            if host in (source, waiting[vm]) or not standing.fits(vm, host):
                continue
            old = standing.claims[vm]
            standing.move(vm, host)
            if watch is not None:
                watch.moved(source, host)
                if not watch.holds():
                    standing.move_back(vm, old)
                    watch.moved(source, host)
                    continue
            return vm, host
    return None
