"""What the rows should say, from what is seen. Pure: rows and views in, changes out.

A machine is where it runs; else where it is paused; else where its row says, if it is defined there; else where it is
defined at all. So a machine that was migrated is followed, also when its definition was left behind, and also while its
old host is down. What a migration shows on its way is no state: see `is_settled`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from virtfleet.observer.views import Machine, View

LEFT_ALONE = ("building", "deleting")
"""States that belong to the services: a machine in one of them is on its way, and its job says how it went."""


@dataclass(frozen=True, slots=True)
class VmRow:
    """What a machine's row says. `busy`: an unfinished job holds it; `job_ended_at`: when the last one ended."""

    id: str
    uuid: str
    host_id: str
    state: str
    pool: str
    disk_bytes: int
    busy: bool = False
    job_ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class VmChange:
    """A machine's new state and host."""

    state: str
    host_id: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A machine on a host, and when that look began."""

    host_id: str
    machine: Machine
    at: datetime


Sightings = Mapping[str, list[Sighting]]


def sightings(views: Mapping[str, View]) -> dict[str, list[Sighting]]:
    """Return where each machine was last seen, by UUID. `views` are those of hosts that answer, by host id."""
    found: dict[str, list[Sighting]] = {}
    for host_id, view in sorted(views.items()):
        for uuid, machine in view.latest.machines.items():
            found.setdefault(uuid, []).append(Sighting(host_id, machine, view.latest.at))
    return found


def standing(row: VmRow, seen: Sightings) -> Sighting | None:
    """Return where the machine is, of all the places where it was seen."""

    def rank(sighting: Sighting) -> tuple[bool, bool, bool]:
        machine = sighting.machine
        return machine.state == "running", machine.active, sighting.host_id == row.host_id

    return max(seen.get(row.uuid, ()), key=rank, default=None)


def vm_change(row: VmRow, views: Mapping[str, View], seen: Sightings) -> VmChange | None:
    """Return what the machine's row should say instead, or None when it is right or not ours to change."""
    if row.state in LEFT_ALONE or row.busy:
        return None
    there = standing(row, seen)
    if there is not None:
        if not is_settled(row, there, views, seen):
            return None
        # The look may have begun before the job ended that changed the machine: the next one will tell.
        stale = row.job_ended_at is not None and there.at <= row.job_ended_at
        state = row.state if there.machine.state == "unknown" else there.machine.state
        change = VmChange(state, there.host_id)
        return None if stale or change == VmChange(row.state, row.host_id) else change
    if row.state != "missing" and is_gone(row, views.get(row.host_id)):
        return VmChange("missing", row.host_id)
    return None


def is_settled(row: VmRow, there: Sighting, views: Mapping[str, View], seen: Sightings) -> bool:
    """Tell whether a sighting is where the machine stays, not what a migration or a silent host makes it look like.

    - While its own host is silent, only a machine that runs elsewhere is elsewhere: a definition left behind by an
      earlier migration says nothing, and what is paused there may be about to be received.
    - A migration pauses the machine on both hosts for a moment. So a machine that is paused on a host which is not its
      own, or on two, counts as paused once a whole report of that host has said so as well.
    """
    elsewhere = there.host_id != row.host_id
    if elsewhere and row.host_id not in views:
        return there.machine.state == "running"
    if there.machine.state == "paused":
        active = [sighting for sighting in seen[row.uuid] if sighting.machine.active]
        if elsewhere or len(active) > 1:
            reported = views[there.host_id].report.machines.get(row.uuid)
            return reported is not None and reported.state == "paused"
    return True


def is_gone(row: VmRow, home: View | None) -> bool:
    """Tell whether the machine's host answers and has not had it in two reports in a row."""
    if home is None or home.earlier is None:
        return False
    looks = (home.latest, home.report, home.earlier)
    if any(row.uuid in look.machines for look in looks):
        return False
    return row.job_ended_at is None or home.earlier.at > row.job_ended_at


def unmanaged(view: View, ours: Collection[str], taken: Mapping[str, int]) -> dict[str, Any]:
    """Return what is taken on the host by what is not ours: {vcpus, memory_bytes, pools: {name: bytes}}.

    `ours` are the UUIDs of all machines that have a row, `taken` the bytes that our machines' disks take by pool. What
    else is in a pool (bases, seeds, files of others) takes room as well, each at its virtual size.
    """
    foreign = [machine for uuid, machine in view.latest.machines.items() if uuid not in ours]
    return {
        "vcpus": sum(machine.vcpus for machine in foreign),
        "memory_bytes": sum(machine.memory_bytes for machine in foreign),
        "pools": {
            pool["name"]: max(0, pool["provisioned_bytes"] - taken.get(pool["name"], 0))
            for pool in view.info["pools"]
            if pool["provisioned_bytes"] is not None
        },
    }


def taken_by_ours(host_id: str, view: View, rows: Iterable[VmRow], views: Mapping[str, View]) -> dict[str, int]:
    """Return the bytes by pool of the host that disks of our machines take.

    Only machines count that were seen when the pools were: what is reserved but not made yet is not in the pools. In a
    shared pool the disks of machines on other hosts lie as well.
    """
    shared = {pool["name"] for pool in view.info["pools"] if pool.get("shared")}
    taken: dict[str, int] = {}
    for row in rows:
        home = views.get(row.host_id)
        lies_here = row.host_id == host_id or row.pool in shared
        if lies_here and home is not None and row.uuid in home.report.machines:
            taken[row.pool] = taken.get(row.pool, 0) + row.disk_bytes
    return taken


def visible(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a host's figures is worth telling watchers: what it is and has, not how busy it is."""
    if not info:
        return {}
    return {
        **{
            key: info.get(key)
            for key in ("uuid", "kvm", "libvirt_version", "hypervisor_version", "nwfilters", "secrets")
        },
        # A lease is prolonged again and again.
        "networks": [{key: each[key] for key in each if key != "leases"} for each in info.get("networks") or []],
        "vcpus": info["vcpus"]["total"],
        # Where the kernel brings memory up lazily, the total creeps; nobody wants to hear of every page.
        "memory_gib": round(info["memory"]["total_bytes"] / 2**30),
        "pools": [[pool.get(key) for key in ("name", "active", "shared", "capacity_bytes")] for pool in info["pools"]],
    }
