"""Storage pools of the hosts, as the observer last saw them, with what is promised of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from virtfleet.models import Host, Zone
from virtfleet.services import capacity
from virtfleet.services.lookup import find


def query(session: Session, *, host: str | None = None, zone: str | None = None) -> Select[Host]:
    """Return what selects the hosts whose pools are asked for. Raises Problem `not_found`."""
    found = select(Host)
    if host is not None:
        found = found.where(Host.id == find(session, Host, "host", host).id)
    if zone is not None:
        found = found.where(Host.zone_id == find(session, Zone, "zone", zone).id)
    return found


def of(session: Session, hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """Return the pools of hosts, in their order; sizes are bytes, None where libvirt tells none (a stopped pool)."""
    known = {host["name"]: host for host in capacity.state(session)["hosts"]} if hosts else {}
    promised = {
        (host.name, pool["name"]): pool for host in hosts for pool in capacity.figures(known[host.name])["pools"]
    }
    return [
        {
            "name": pool["name"],
            "host": host.name,
            "zone": host.zone.name,
            "type": pool.get("type"),
            "path": pool.get("path"),
            "active": bool(pool["active"]),
            "shared": bool(pool.get("shared")),
            "capacity_bytes": pool.get("capacity_bytes"),
            "available_bytes": pool.get("available_bytes"),
            "allocated_bytes": promised.get((host.name, pool["name"]), {}).get("allocated_bytes"),
            "free_bytes": promised.get((host.name, pool["name"]), {}).get("free_bytes"),
            "host_state": host.state,
            "observed_at": host.observed_at,
        }
        for host in hosts
        for pool in host.info.get("pools", [])
    ]
