"""What the fleet can still take: the hosts as the observer saw them, less all that is promised and reserved."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.models import Change, Cursor, Host, Move, Vm, Volume, Zone

Taken = dict[str, Any]


def hosts_of(session: Session, zone: Zone | None) -> Sequence[Host]:
    """Return the hosts of a zone, or all."""
    query = select(Host).order_by(Host.number)
    return session.scalars(query if zone is None else query.where(Host.zone_id == zone.id)).all()


def state(session: Session, zone: Zone | None = None, policy: str = "") -> dict[str, Any]:
    """Return the state that `placement` decides on; read in the transaction that reserves what was decided.

    Every row of a machine counts, whatever its state: it is the promise. What is not ours counts as last observed.
    """
    hosts = hosts_of(session, zone)
    answer: dict[str, Any] = {
        "schema_version": placement.SCHEMA_VERSION,
        "generation": session.scalar(select(func.max(Change.seq))) or 0,
        "hosts": list(of_hosts(session, hosts).values()),
    }
    if zone is not None and policy:
        row = session.get(Cursor, (zone.id, policy))
        if row is not None and any(host.name == row.value["host"] for host in hosts):
            answer["cursor"] = row.value["host"]
    return answer


def of_hosts(session: Session, hosts: Sequence[Host]) -> dict[str, dict[str, Any]]:
    """Return these hosts as the placement state has them, by name, in their order."""
    taken, shared = _taken(session, hosts)
    return {host.name: _host(host, taken[host.id], shared) for host in hosts}


def remember_cursor(session: Session, zone: Zone, policy: str, host: str | None) -> None:
    """Keep where a policy that goes round the hosts has come to."""
    if host is None:
        return
    row = session.get(Cursor, (zone.id, policy))
    if row is None:
        session.add(Cursor(zone_id=zone.id, policy=policy, value={"host": host}))
    else:
        row.value = {"host": host}


def _taken(session: Session, hosts: Sequence[Host]) -> tuple[dict[str, Taken], dict[tuple[str, str], int]]:
    """Return what our machines take by host id, and what they take of pools by (zone id, pool)."""
    taken: dict[str, Taken] = defaultdict(lambda: {"vcpus": 0, "memory_bytes": 0, "pools": defaultdict(int)})
    of_zone: dict[tuple[str, str], int] = defaultdict(int)
    zones = {host.zone_id for host in hosts}
    promised = func.coalesce(Vm.max_memory_bytes, Vm.memory_bytes)
    columns = (Vm.host_id, Vm.zone_id, Vm.vcpus, promised, Vm.disk_bytes, Vm.pool)
    for host_id, zone_id, vcpus, memory, disk, pool in session.execute(select(*columns).where(Vm.zone_id.in_(zones))):
        mine = taken[host_id]
        mine["vcpus"] += vcpus
        mine["memory_bytes"] += memory
        mine["pools"][pool] += disk
        of_zone[zone_id, pool] += disk
    coming = select(Move.target_id, Vm.vcpus, promised, Vm.disk_bytes, Vm.pool).join(Vm, Vm.id == Move.vm_id)
    for host_id, vcpus, memory, disk, pool in session.execute(coming.where(Vm.zone_id.in_(zones))):
        # Until it is there it takes room on both hosts; a shared pool has its disk once.
        there = taken[host_id]
        there["vcpus"] += vcpus
        there["memory_bytes"] += memory
        there["pools"][pool] += disk
    # Once it is made it is seen in its pool like all that is not a machine's; until then it is only promised.
    promises = select(Volume.host_id, Host.zone_id, Volume.size_bytes, Volume.pool).join(
        Host, Host.id == Volume.host_id
    )
    for host_id, zone_id, size, pool in session.execute(promises.where(Volume.state == "creating")):
        taken[host_id]["pools"][pool] += size
        of_zone[zone_id, pool] += size
    return taken, of_zone


def needs(vm: Vm) -> dict[str, Any]:
    """Return what a machine takes of a host, as a request or a machine of the placement state has it."""
    return {
        "vcpus": vm.vcpus,
        "memory_bytes": vm.promised_memory_bytes,
        "disks": [{"pool": vm.pool, "size_bytes": vm.disk_bytes, "overlay": True}],
        "zone": vm.zone.name,
    }


def shares(host: Host, pool: str) -> bool:
    """Tell whether a host's pool of that name is the same storage on all hosts of the zone that have it."""
    return any(each["name"] == pool and each.get("shared") for each in host.info.get("pools", []))


def _host(host: Host, taken: Taken, shared: dict[tuple[str, str], int]) -> dict[str, Any]:
    chosen = settings.load()
    info, foreign = host.info, host.unmanaged
    up = host.state == "up" and bool(info)
    pools = {}
    for pool in info.get("pools", []):
        if not pool["active"]:
            continue
        name = pool["name"]
        ours = shared[host.zone_id, name] if pool.get("shared") else taken["pools"][name]
        pools[name] = {
            "total_bytes": pool["capacity_bytes"],
            # Foreign files take what they really take; the disks of our machines what they may grow to.
            "allocated_bytes": _used_by_others(pool, foreign) + int(ours * chosen.disk_ratio),
            "ratio": chosen.disk_ratio,
            "shared": bool(pool.get("shared")),
        }
    load = (info.get("load") or {}).get("cpu_percent")
    return {
        "name": host.name,
        "zone": host.zone.name,
        "live": up,
        "error": None if up else host.error or "nothing was heard of it yet",
        "maintenance": host.maintenance,
        "vcpus": {
            "total": info.get("vcpus", {}).get("total", 0),
            "allocated": taken["vcpus"] + foreign.get("vcpus", 0),
            "reserved": host.reserved_vcpus,
            "ratio": host.vcpu_ratio if host.vcpu_ratio is not None else chosen.vcpu_ratio,
        },
        "memory": {
            "total_bytes": info.get("memory", {}).get("total_bytes", 0),
            "allocated_bytes": taken["memory_bytes"] + foreign.get("memory_bytes", 0),
            "reserved_bytes": host.reserved_memory_bytes,
            "ratio": chosen.memory_ratio,
        },
        "pools": pools,
        "load": {} if load is None else {"cpu_percent": load},
    }


def _used_by_others(pool: dict[str, Any], foreign: dict[str, Any]) -> int:
    known = foreign.get("pools", {})
    return int(known[pool["name"]] if pool["name"] in known else pool["allocation_bytes"])


def of_host(session: Session, host: Host) -> dict[str, Any]:
    """Return what one host has, has promised, keeps back and has left."""
    return figures(of_hosts(session, [host])[host.name])


def figures(host: dict[str, Any]) -> dict[str, Any]:
    """Return total, allocated, reserved and free of a host of the placement state."""
    vcpus, memory = host["vcpus"], host["memory"]
    usable_vcpus = int(vcpus["total"] * vcpus["ratio"]) - vcpus["reserved"]
    usable_bytes = int(memory["total_bytes"] * memory["ratio"]) - memory["reserved_bytes"]
    return {
        "vcpus": {**vcpus, "free": max(0, usable_vcpus - vcpus["allocated"])},
        "memory": {**memory, "free_bytes": max(0, usable_bytes - memory["allocated_bytes"])},
        "pools": [
            {"name": name, **pool, "free_bytes": max(0, pool["total_bytes"] - pool["allocated_bytes"])}
            for name, pool in sorted(host["pools"].items())
        ],
    }


def report(session: Session, zone: Zone | None) -> dict[str, Any]:
    """Return the capacity of the fleet or of a zone: the sum, and each host's share. A host that is down adds none."""
    hosts = [
        {"host": each["name"], "zone": each["zone"], "live": each["live"], "maintenance": each["maintenance"]}
        | figures(each)
        for each in state(session, zone)["hosts"]
    ]
    usable = [host for host in hosts if host["live"] and not host["maintenance"]]
    seen: set[tuple[str, str]] = set()
    pools: dict[str, dict[str, int]] = {}
    for host in usable:
        for pool in host["pools"]:
            if pool["shared"] and (host["zone"], pool["name"]) in seen:
                continue
            seen.add((host["zone"], pool["name"]))
            total = pools.setdefault(pool["name"], {"total_bytes": 0, "allocated_bytes": 0, "free_bytes": 0})
            for key in total:
                total[key] += pool[key]
    return {
        "zone": zone.name if zone else None,
        "hosts_usable": len(usable),
        "vcpus": {
            key: sum(host["vcpus"][key] for host in usable) for key in ("total", "allocated", "reserved", "free")
        },
        "memory": {
            key: sum(host["memory"][key] for host in usable)
            for key in ("total_bytes", "allocated_bytes", "reserved_bytes", "free_bytes")
        },
        "pools": [{"name": name, **pool} for name, pool in sorted(pools.items())],
        "hosts": hosts,
    }
