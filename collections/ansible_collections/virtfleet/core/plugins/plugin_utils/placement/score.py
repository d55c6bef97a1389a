# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How evenly a fleet is loaded, as one number: 0 is perfectly even.

The score is the standard deviation (over the hosts, divided by their number) of the free share of memory plus that of
vCPUs promised per real CPU: Ganeti's hbal with `--ignore-dynu` on machines without local disks (hbal(1), "ALGORITHM").
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import level_word, loads
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import Standing


def judged_hosts(standing: Standing) -> list[int]:
    """Return the hosts that count: live, not in maintenance, with memory and CPUs."""
    hosts = standing.fleet.hosts
    return [
        number
        for number, host in enumerate(hosts)
        if standing.usable[number] and host.memory_total_bytes and host.vcpus_total
    ]


def free_memory_share(standing: Standing, number: int) -> float:
    """Return the free part of a host's memory, reserve taken off."""
    return standing.fleet.memory_free[number] / standing.fleet.hosts[number].memory_total_bytes


def vcpu_share(standing: Standing, number: int) -> float:
    """Return the vCPUs promised per real CPU of a host; those reserved for the host itself count as promised."""
    fleet, host = standing.fleet, standing.fleet.hosts[number]
    return (fleet.vcpus_usable[number] - fleet.vcpus_free[number] + host.vcpus_reserved) / host.vcpus_total


def deviation(values: list[float]) -> float:
    """Return the standard deviation of all the values; 0 when there are none."""
    if not values:
        return 0.0
    mean = sum(values) / len(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def terms_of(standing: Standing) -> dict[str, float]:
    """Return the score's terms."""
    judged = judged_hosts(standing)
    return {
        "free_memory": deviation([free_memory_share(standing, number) for number in judged]),
        "vcpus": deviation([vcpu_share(standing, number) for number in judged]),
    }


def score(state: object) -> dict[str, Any]:
    """Return how uneven a fleet is: `score`, its `terms`, and each host's shares. Raises SchemaError.

    Each host has its `loads` too, as numbers and as levels (S2.8): what was measured, else what is promised; I/O that
    nobody measured is unknown and left out.
    """
    standing = Standing(read_state(state))
    terms = terms_of(standing)
    hosts = [
        {
            "host": standing.fleet.hosts[number].name,
            "memory_percent": 100.0 * (1.0 - free_memory_share(standing, number)),
            "vcpus_per_cpu": vcpu_share(standing, number),
            "machines": len(standing.on[number]),
            "loads": {
                name: {"percent": percent, "level": level_word(percent)}
                for name, percent in loads(standing.fleet, None, number).items()
            },
        }
        for number in judged_hosts(standing)
    ]
    total = terms["free_memory"] + terms["vcpus"]
    return {
        "schema_version": SCHEMA_VERSION,
        "generation": standing.state.generation,
        "score": total,
        "terms": terms,
        "hosts": hosts,
        "summary": f"score {total:.4f}: free memory {terms['free_memory']:.4f} + vCPUs {terms['vcpus']:.4f}",
    }
