# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machines are to move where, on hosts as `host_info` shows them: those that somebody names, or all of a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import SchemaError, list_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.drain import drain
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts import (
    ParseSize,
    homes_of,
    hosts_of_infos,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.placing import place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import DEFAULT_POLICY
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION


def moves(
    wanted: object,
    host_infos: object,
    parse_size: ParseSize,
    policy: object = DEFAULT_POLICY,
    *,
    vcpu_ratio: float = 8.0,
    memory_ratio: float = 1.0,
) -> dict[str, Any]:
    """Return `{moves, left}` for machines that are to leave their hosts.

    Each of `wanted` has `name` or `uuid`, and may have `to` (otherwise the policy chooses) and `from`. A move is
    `{vm, name, uuid, from, to, by, text}`; `by` is the host that carries it out. A machine that is where it is to be is
    no move, except for its host `from`, which may have something left of it. What cannot move is in `left`. Disks
    count nothing here: whether they must be copied shows when the machine is looked at. Raises SchemaError.
    """
    hosts = hosts_of_infos(host_infos, parse_size, vcpu_ratio=vcpu_ratio, memory_ratio=memory_ratio, disk_ratio=1.0)
    infos = {host["name"]: info for host, info, _path in hosts}
    found: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    for wish, path in list_of(wanted, "machines"):
        vm = _mapping(wish, path)
        label = str(vm.get("name") or vm.get("uuid") or "")
        if not label:
            raise SchemaError(path, "a name or a uuid is wanted")
        to, came_from = vm.get("to"), vm.get("from")
        homes = homes_of(vm, infos.values())
        sources = [home for home in homes if home[0] != to]
        if to is not None and to not in infos:
            left.append({"vm": label, "text": f"{label} cannot go to {to}: there is no such host"})
        elif not homes:
            left.append({"vm": label, "text": f"no host has the machine {label}"})
        elif sources:
            source, machine = sources[0]
            found.append(_move(label, machine, source, to))
            requests.append(_request(str(len(found) - 1), machine, to, [home[0] for home in sources], infos[source]))
        elif came_from in infos and came_from != to:
            # There already: its old host only looks whether an earlier run has left something.
            text = f"{label} is on {to} already"
            found.append({**_move(label, homes[0][1], str(came_from), to), "text": text})
    state = _state(hosts)
    decision = place(state, requests, policy, explain=True)
    for placed in decision["placements"]:
        move = found[int(placed["request"])]
        why = placed["explanation"]["text"].replace(placed["request"], move["vm"], 1)
        move |= {"to": placed["host"], "text": f"{move['vm']} goes from {move['from']} to {placed['host']}: {why}"}
    unplaced = {int(each["request"]): each["explanation"]["text"] for each in decision["unplaced"]}
    for number, text in unplaced.items():
        vm_name = found[number]["vm"]
        left.append({"vm": vm_name, "text": text.replace(str(number), vm_name, 1)})
    return {"moves": [move for number, move in enumerate(found) if number not in unplaced], "left": left}


def evacuation(
    host_infos: object,
    leaving: object,
    parse_size: ParseSize,
    policy: object = DEFAULT_POLICY,
    *,
    vcpu_ratio: float = 8.0,
    memory_ratio: float = 1.0,
) -> dict[str, Any]:
    """Return the plan of `drain` for hosts as `host_info` shows them; `machines` has its moves as `moves` takes them.

    Raises SchemaError.
    """
    hosts = hosts_of_infos(host_infos, parse_size, vcpu_ratio=vcpu_ratio, memory_ratio=memory_ratio, disk_ratio=1.0)
    infos = {host["name"]: info for host, info, _path in hosts}
    state = _state(hosts)
    known = {}
    for name, info in infos.items():
        for machine in _machines(info):
            known[str(machine["uuid"])] = machine
            plain = {"vcpus": machine["vcpus"], "memory_bytes": machine["memory_bytes"], "zone": info.get("zone")}
            state["vms"].append({"id": str(machine["uuid"]), "host": name, **plain})
    plan = drain(state, leaving, policy)
    named = [{**each, "name": known[each["vm"]]["name"], "uuid": each["vm"]} for each in plan["moves"]]
    return {
        **plan,
        "machines": [{key: each[key] for key in ("name", "uuid", "from", "to")} for each in named],
        "left": [
            {
                **each,
                "name": known[each["vm"]]["name"],
                "text": each["text"].replace(each["vm"], known[each["vm"]]["name"]),
            }
            for each in plan["left"]
        ],
    }


def _mapping(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(path, f"a mapping is wanted, not {value!r}")
    return value


def _machines(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(info.get("machines") or []) if info.get("live", True) else []


def _move(label: str, machine: Mapping[str, Any], source: str, to: object) -> dict[str, Any]:
    named = {"vm": label, "name": machine["name"], "uuid": machine["uuid"]}
    return {**named, "from": source, "to": to, "by": source, "text": ""}


def _request(
    identifier: str, machine: Mapping[str, Any], to: object, exclude: list[str], info: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": identifier,
        "vcpus": machine["vcpus"],
        "memory_bytes": machine["memory_bytes"],
        "zone": info.get("zone"),
        "host": to,
        "exclude": exclude,
    }


def _state(hosts: list[tuple[dict[str, Any], Any, str]]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "hosts": [host for host, _info, _path in hosts], "vms": []}
