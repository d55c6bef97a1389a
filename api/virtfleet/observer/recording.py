"""Writes what is seen into the rows: one short transaction for many hosts, and only what is new."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from virtfleet.models import UNFINISHED, Host, Job, Vm
from virtfleet.observer import reconcile
from virtfleet.observer.reconcile import Sightings, VmChange, VmRow
from virtfleet.observer.views import View
from virtfleet.services import host_objects, ledger

FRESH = timedelta(seconds=2)
"""A row that says nothing new and was observed so recently is not written again."""
MOST_PARAMETERS = 20_000
"""Beyond so many UUIDs it is cheaper to read all machines than to name those that are meant."""
SHARED_POOLS = "virtfleet_shared_pools"
"""The host variable that says which pools are the same storage on every host of the zone."""


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a host answers; if not, why not, as a sentence. `answered_at` is None when it never did."""

    state: Literal["up", "down"]
    error: str | None
    answered_at: datetime | None


@dataclass(frozen=True, slots=True)
class _HostRow:
    id: str
    name: str
    zone_id: str
    variables: dict[str, Any]
    state: str
    error: str | None
    observed_at: datetime | None
    info: dict[str, Any]
    unmanaged: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Vm:
    """What of a machine's row only concerns the writing."""

    row: VmRow
    name: str
    project_id: str
    zone_id: str
    observed_at: datetime | None


def record(session: Session, now: datetime, statuses: Mapping[str, Status], views: Mapping[str, View]) -> None:
    """Write down the hosts in `statuses` and the machines that they have or should have.

    `views` holds every host that answers, also those not in `statuses`: where else a machine is matters as well.
    """
    hosts = _hosts(session, statuses)
    marked = {host.id: _marked(views[host.id], host) for host in hosts if host.id in views}
    known = {**views, **marked}
    seen = reconcile.sightings(views)
    vms = _vms(session, statuses, marked)
    _write_vms(session, [vm for vm in vms if _concerns(vm.row, statuses, seen)], known, seen)
    ours = {vm.row.uuid for vm in vms}
    for host in hosts:
        figures = None
        if (view := marked.get(host.id)) is not None:
            rows = [vm.row for vm in vms if vm.zone_id == host.zone_id]
            taken = reconcile.taken_by_ours(host.id, view, rows, known)
            info = {**view.info, **host_objects.newer(host.info, view.report.at.timestamp())}
            figures = {"info": info, "unmanaged": reconcile.unmanaged(view, ours, taken)}
        _write_host(session, now, host, statuses[host.id], figures)


def _hosts(session: Session, wanted: Collection[str]) -> list[_HostRow]:
    columns = (
        *(Host.id, Host.name, Host.zone_id, Host.variables),
        *(Host.state, Host.error, Host.observed_at, Host.info, Host.unmanaged),
    )
    return [_HostRow(*row) for row in session.execute(select(*columns).where(Host.id.in_(wanted)))]


def _marked(view: View, host: _HostRow) -> View:
    """Return the view with the shared pools marked: that is asserted by people, libvirt cannot know it."""
    shared = host.variables.get(SHARED_POOLS) or ()
    pools = [{**pool, "shared": pool["name"] in shared} for pool in view.info["pools"]]
    return View({**view.info, "pools": pools}, view.latest, view.report, view.earlier)


def _vms(session: Session, host_ids: Collection[str], views: Mapping[str, View]) -> list[_Vm]:
    """Return the machines that the hosts should have, those that they do have, and those that share their pools."""
    query = select(
        *(Vm.id, Vm.uuid, Vm.host_id, Vm.state, Vm.pool, Vm.disk_bytes, Job.state, Job.ended_at),
        *(Vm.name, Vm.project_id, Vm.zone_id, Vm.observed_at),
    ).outerjoin(Job, Job.id == Vm.job_id)
    uuids = {uuid for view in views.values() for uuid in view.latest.machines}
    if len(uuids) + len(host_ids) < MOST_PARAMETERS:
        shared = {pool["name"] for view in views.values() for pool in view.info["pools"] if pool["shared"]}
        query = query.where(or_(Vm.host_id.in_(host_ids), Vm.uuid.in_(uuids), Vm.pool.in_(shared)))
    found = []
    for values in session.execute(query):
        identifier, uuid, host_id, state, pool, disk_bytes, job_state, ended_at, *rest = values
        busy = job_state in UNFINISHED
        found.append(_Vm(VmRow(identifier, uuid, host_id, state, pool, disk_bytes, busy, ended_at), *rest))
    return found


def _concerns(row: VmRow, hosts: Collection[str], seen: Sightings) -> bool:
    return row.host_id in hosts or any(sighting.host_id in hosts for sighting in seen.get(row.uuid, ()))


def _write_vms(session: Session, vms: list[_Vm], views: Mapping[str, View], seen: Sightings) -> None:
    fresh = []
    for vm in vms:
        change = reconcile.vm_change(vm.row, views, seen)
        there = reconcile.standing(vm.row, seen)
        if change is not None:
            _change_vm(session, vm, change, there.at if there is not None else None)
            continue
        at_home = there is not None and there.host_id == vm.row.host_id
        if there is not None and at_home and (vm.observed_at is None or there.at - vm.observed_at >= FRESH):
            fresh.append({"vm": vm.row.id, "seen_at": there.at})
    if fresh:
        # Seen again is no change: `updated_at` and the generation stay.
        statement = update(Vm.__table__).where(Vm.__table__.c.id == bindparam("vm"))  # type: ignore[arg-type]
        values = {"observed_at": bindparam("seen_at"), "updated_at": Vm.__table__.c.updated_at}
        session.execute(statement.values(values), fresh)


def _change_vm(session: Session, vm: _Vm, change: VmChange, seen_at: datetime | None) -> None:
    values: dict[str, Any] = {"state": change.state, "host_id": change.host_id, "generation": Vm.generation + 1}
    if seen_at is not None:
        values["observed_at"] = seen_at
    # The row may have changed hands since it was read, where transactions run side by side.
    same = (Vm.id == vm.row.id, Vm.state == vm.row.state, Vm.host_id == vm.row.host_id)
    if session.execute(update(Vm).where(*same).values(**values).returning(Vm.id)).first() is None:
        return
    ledger.changed(session, "vm", vm.row.id, "updated", vm.project_id, name=vm.name, state=change.state)


def _write_host(
    session: Session, now: datetime, host: _HostRow, status: Status, figures: dict[str, Any] | None
) -> None:
    """Write the host's row; `figures` are the new {info, unmanaged} of a host that answers."""
    values: dict[str, Any] = {"state": status.state, "error": status.error}
    if status.answered_at is not None:
        values["observed_at"] = status.answered_at
    news = (host.state, host.error) != (status.state, status.error)
    if figures is not None:
        values |= figures
        news |= host.unmanaged != figures["unmanaged"]
        news |= reconcile.visible(host.info) != reconcile.visible(figures["info"])
    fresh = host.observed_at is not None and now - host.observed_at < FRESH
    if not news and (figures is None or fresh):
        return
    if news:
        values["generation"] = Host.generation + 1
        ledger.changed(session, "host", host.id, "updated", None, name=host.name, state=status.state)
    else:
        values["updated_at"] = Host.updated_at
    session.execute(update(Host).where(Host.id == host.id).values(**values))
