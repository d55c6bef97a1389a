"""Hosts: registered by their libvirt URI, discovered by a job, watched by the observer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from virtfleet import clock, host_uris, names
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.jobs import kinds, lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import UNFINISHED, Host, Job, Move, Network, Vm, Zone
from virtfleet.services import host_secrets, ledger, zones
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find

SHARED_POOLS = "virtfleet_shared_pools"
VARIABLES: dict[str, Callable[[Any], bool]] = {
    SHARED_POOLS: lambda value: (
        isinstance(value, list) and all(isinstance(each, str) and names.NAME.fullmatch(each) for each in value)
    ),
    "ansible_host": lambda value: isinstance(value, str) and host_uris.is_host(value),
    "ansible_port": lambda value: isinstance(value, int) and 0 < value < 65536,
    "ansible_user": lambda value: isinstance(value, str) and bool(host_uris.USER.fullmatch(value)),
}
"""The inventory variables that a host may have, and what each may be."""


@dataclass(frozen=True)
class HostUpdate:
    """What may be changed of a host; None leaves a value as it is. Memory is bytes."""

    maintenance: bool | None = None
    zone: str | None = None
    reserved_vcpus: int | None = None
    reserved_memory_bytes: int | None = None
    vcpu_ratio: float | None = None


def register(
    session: Session,
    who: Principal,
    *,
    uri: str,
    name: str | None = None,
    zone: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[Host, Job]:
    """Make a host known, and a job that looks at it. Raises Problem."""
    uri = host_uris.check(uri)
    name = names.check(name or host_uris.name_from(uri), "host")
    given = _check_variables(variables or {})
    for column, value, what in ((Host.name, name, "name"), (Host.uri, uri, "URI")):
        if session.scalar(select(Host.id).where(column == value)) is not None:
            raise Problem(
                "already_exists", f"There is a host with the {what} {value!r} already.", "See: virtfleet host list."
            )
    row = Host(
        id=new_id("hst"),
        number=ledger.next_number(session, "host"),
        name=name,
        uri=uri,
        zone_id=zones.ensure(session, who, zone or zones.DEFAULT_ZONE).id,
        variables=given,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    ledger.changed(session, "host", row.id, "created", None, name=name)
    job = discover(session, who, row)
    ledger.audit(session, who, "host.create", row.id, job.id)
    return row, job


def _check_variables(given: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        rule = VARIABLES.get(key)
        if rule is None:
            raise Problem(
                "invalid",
                "A host cannot have such a variable.",
                f"Allowed are {', '.join(sorted(VARIABLES))}.",
                errors=[{"field": "variables", "message": "unknown name"}],
            )
        if not rule(value):
            raise Problem(
                "invalid",
                f"The variable {key} cannot have this value.",
                "Give a list of pool names." if key == SHARED_POOLS else "Give an address, a port or a user's name.",
                errors=[{"field": f"variables.{key}", "message": "not usable"}],
            )
    return dict(given)


def discover(session: Session, who: Principal, host: Host) -> Job:
    """Make a job that reads what the host has."""
    return lifecycle.submit(
        session,
        "host.discover",
        project_id=who.project_id,
        owner_id=who.user_id,
        host_ids=[host.id],
        variables={"virtfleet_shared_pools": host.variables.get(SHARED_POOLS, [])},
        subjects=[{"type": "host", "id": host.id, "name": host.name}],
        exclusive=[f"discover:{host.id}"],
    )


def update(session: Session, who: Principal, host: Host, change: HostUpdate) -> Host:
    """Change a host's maintenance flag, zone or reserves. Raises Problem `in_use` for a zone change with machines."""
    if change.maintenance is not None:
        host.maintenance = change.maintenance
    if change.zone is not None and change.zone != host.zone.name:
        zone = find(session, Zone, "zone", change.zone)
        if _count(session, host):
            raise Problem("in_use", f"Host {host.name!r} has machines.", "Move or delete them, then change its zone.")
        host.zone_id = zone.id
    if change.reserved_vcpus is not None:
        host.reserved_vcpus = change.reserved_vcpus
    if change.reserved_memory_bytes is not None:
        host.reserved_memory_bytes = change.reserved_memory_bytes
    if change.vcpu_ratio is not None:
        host.vcpu_ratio = change.vcpu_ratio
    host.generation += 1
    session.flush()
    session.refresh(host)
    ledger.audit(session, who, "host.update", host.id)
    ledger.changed(session, "host", host.id, "updated", None, name=host.name)
    return host


def _count(session: Session, host: Host) -> int:
    here = session.scalar(select(func.count()).select_from(Vm).where(Vm.host_id == host.id)) or 0
    return here + (session.scalar(select(func.count()).select_from(Move).where(Move.target_id == host.id)) or 0)


def remove(session: Session, who: Principal, host: Host) -> None:
    """Forget a host that has no machines of ours and no work under way. Nothing on the host changes."""
    if machines := _count(session, host):
        raise Problem("in_use", f"Host {host.name!r} has {machines} machines.", "Delete or move them first.")
    open_jobs = select(Job.id).where(Job.state.in_(UNFINISHED))
    busy = [job_id for job_id in session.scalars(open_jobs) if host.id in _hosts_of(session, job_id)]
    if busy:
        raise Problem("in_use", f"The job {busy[0]} works on host {host.name!r}.", "Wait for its end, or cancel it.")
    host_secrets.drop_values(session, host)
    session.delete(host)
    ledger.audit(session, who, "host.delete", host.id)
    ledger.changed(session, "host", host.id, "deleted", None, name=host.name)


def _hosts_of(session: Session, job_id: str) -> list[str]:
    job = session.get(Job, job_id)
    return list(job.host_ids) if job else []


@kinds.finisher("host.discover")
def discovered(session: Session, job: Job, outcome: Outcome) -> None:
    """Write down what the job found."""
    host = session.get(Host, job.host_ids[0]) if job.host_ids else None
    if host is None:
        return
    found = (outcome.result.get(host.name) or {}).get("host") or {}
    if outcome.state == "succeeded" and found.get("live"):
        machines = found.pop("machines", [])
        host.info = found
        host.unmanaged = _unmanaged(session, machines, host.unmanaged)
        host.state, host.error, host.observed_at = "up", None, clock.now()
        _first_network(session, host, found)
    elif outcome.state == "failed":
        host.state = "down"
        host.error = found.get("msg") or (outcome.error or {}).get("message") or "it did not answer"
    host.generation += 1
    ledger.changed(session, "host", host.id, "updated", None, name=host.name, state=host.state)


def _unmanaged(session: Session, machines: list[dict[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what machines without a row take. The pools' share is the observer's to work out."""
    uuids = [machine["uuid"] for machine in machines]
    ours = set(session.scalars(select(Vm.uuid).where(Vm.uuid.in_(uuids))))
    foreign = [machine for machine in machines if machine["uuid"] not in ours]
    return {
        **before,
        "vcpus": sum(machine["vcpus"] for machine in foreign),
        "memory_bytes": sum(machine["memory_bytes"] for machine in foreign),
    }


def _first_network(session: Session, host: Host, info: Mapping[str, Any]) -> None:
    """Give a zone without networks the one that libvirt itself brings along, so that machines have one."""
    if session.scalar(select(Network.id).where(Network.zone_id == host.zone_id).limit(1)) is not None:
        return
    for network in info.get("networks", []):
        if network["name"] == "default" and network["active"]:
            row = Network(id=new_id("net"), name="default", zone_id=host.zone_id, kind="nat", source="default", dns=[])
            session.add(row)
            session.flush()
            ledger.changed(session, "network", row.id, "created", None, name="default")
