# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over the placement library. They only hand values over; each is documented in the YAML file of its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts import (
    place_machines,
    state_of_hosts,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.moving import evacuation as plan_evacuation
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.moving import moves as plan_moves


def place(machines: object, hosts: object, policy: object = placement.DEFAULT_POLICY, **options: Any) -> dict[str, Any]:
    """Decide where machines go on the hosts that `host_info` describes."""
    return place_machines(machines, hosts, parse_size, policy, **options)


HOST_OPTIONS = frozenset({"vcpu_ratio", "memory_ratio", "disk_ratio", "groups", "machines"})


def _over_hosts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a state as one that takes a list of `host_info` values, too."""

    def over(fleet: object, *values: Any, **options: Any) -> Any:
        about_hosts = {name: options.pop(name) for name in HOST_OPTIONS.intersection(options)}
        if not isinstance(fleet, Mapping):
            return function(state_of_hosts(fleet, parse_size, **about_hosts), *values, **options)
        for name in sorted(about_hosts):
            raise placement.SchemaError(name, "a state has it in itself; this is for host_info values")
        return function(fleet, *values, **options)

    return over


def moves(machines: object, hosts: object, policy: object = placement.DEFAULT_POLICY, **options: Any) -> dict[str, Any]:
    """Decide where machines move to on the hosts that `host_info` describes."""
    return plan_moves(machines, hosts, parse_size, policy, **options)


def evacuation(hosts: object, leaving: object, policy: object = placement.DEFAULT_POLICY, **options: Any) -> Any:
    """Plan the moves that empty hosts, as `host_info` describes them."""
    return plan_evacuation(hosts, leaving, parse_size, policy, **options)


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a library function as a filter: what is wrong with its input becomes the filter's error."""

    def wrapped(*values: Any, **options: Any) -> Any:
        try:
            return function(*values, **options)
        except (placement.SchemaError, TypeError) as error:
            raise AnsibleFilterError(f"virtfleet.core.{name}: {error}") from error

    return wrapped


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "place": place,
    "moves": moves,
    "evacuation": evacuation,
    "rebalance": _over_hosts(placement.rebalance),
    "consolidate": _over_hosts(placement.consolidate),
    "drain": _over_hosts(placement.drain),
    "capacity": _over_hosts(placement.capacity),
    "what_if": _over_hosts(placement.what_if),
    "score": _over_hosts(placement.score),
    "explain": placement.explain,
    "scale": placement.scale,
}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {name: _filter(name, function) for name, function in FUNCTIONS.items()}
