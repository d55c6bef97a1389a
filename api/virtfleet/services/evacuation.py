"""Emptying a host: a plan, one job for all its moves, and no new machines there meanwhile."""

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem
from virtfleet.models import Host, Job, Vm
from virtfleet.services import capacity, hosts, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.hosts import HostUpdate
from virtfleet.services.vms import creation
from virtfleet.services.vms.migration import Step, Way, submit, why_not


def evacuate(
    session: Session, who: Principal, host: Host, *, policy: str | Mapping[str, Any] | None, way: Way
) -> tuple[Job | None, dict[str, Any]]:
    """Put a host into maintenance, and make the job that moves its machines away; None when none can be moved.

    Returns the job and the plan `{summary, moves, left}`; `left` are the machines that must stay, with the reasons.
    Raises Problem `not_ready` for a host that does not answer, `invalid` for a policy that cannot be used.
    """
    if host.state != "up":
        text = f"Host {host.name!r} does not answer, so nothing can be moved away from it."
        raise Problem("not_ready", text, "Its machines go on when it is back.")
    if not host.maintenance:
        hosts.update(session, who, host, HostUpdate(maintenance=True))
    plan, vms, reasons = _plan(session, host, policy)
    known = {row.name: row for row in capacity.hosts_of(session, host.zone)}
    steps = [
        Step(vms[move["vm"]], known[move["to"]], {"chosen": move["to"], "text": _named(move["text"], vms)})
        for move in plan["moves"]
    ]
    left: list[dict[str, Any]] = [
        {"vm": vms[each["vm"]].name, "text": reasons.get(each["vm"]) or _named(each["text"], vms)}
        for each in plan["left"]
    ]
    if host.unmanaged.get("vcpus"):
        left.append({"vm": None, "text": f"{host.name} has machines that virtfleet does not manage; they stay."})
    shown = {
        "summary": _named(plan["summary"], vms),
        "moves": [{"vm": step.vm.name, "to": step.target.name, "text": step.explanation["text"]} for step in steps],
        "left": left,
    }
    job = None
    if steps:
        subject = {"type": "host", "id": host.id, "name": host.name}
        staying = [each["text"] for each in left]
        job = submit(session, who, "host.evacuate", steps, way, staying=staying, subjects=[subject])
    ledger.audit(session, who, "host.evacuate", host.id, job.id if job else None)
    return job, shown


def _plan(
    session: Session, host: Host, policy: str | Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Vm], dict[str, str]]:
    """Return the plan, the zone's machines by id, and why some of the host's cannot be moved now."""
    rows = session.scalars(select(Vm).where(Vm.zone_id == host.zone_id).order_by(Vm.number)).all()
    vms = {vm.id: vm for vm in rows}
    reasons = {vm.id: reason for vm in rows if vm.host_id == host.id and (reason := why_not(session, vm))}
    state = capacity.state(session, host.zone)
    state["vms"] = [
        {"id": vm.id, "host": vm.host.name, **capacity.needs(vm), "stays": reasons.get(vm.id)}
        for vm in rows
        if vm.host_id == host.id
    ]
    try:
        plan = placement.drain(state, [host.name], policy if policy is not None else placement.DEFAULT_POLICY)
    except placement.SchemaError as error:
        raise creation.unusable_policy(error) from error
    return plan, vms, reasons


def _named(text: str, vms: Mapping[str, Vm]) -> str:
    """Return a sentence of the plan with names in the place of ids."""
    for identifier, vm in vms.items():
        text = text.replace(identifier, vm.name)
    return text
