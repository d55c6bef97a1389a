"""What is done with machines that exist: power, deletion, and the clean-up of what a failed job left."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.models import UNFINISHED, Job, Move, Vm
from virtfleet.services import cleanups, ledger
from virtfleet.services.auth import Principal

KINDS = {
    **{name: f"vm.{name}" for name in ("start", "stop", "reboot", "pause", "resume", "save")},
    "reset": "vm.reboot",
}
"""What can be done with a machine's power, and the kind of job that does it: a reset is a reboot without patience."""
ACTIONS = tuple(KINDS)
OBEYING = ("stop", "reboot")
"""What a machine is asked for, and may take its time over."""
DEFAULT_GRACE_SECONDS = 60.0
LONGEST_GRACE_SECONDS = 3600.0


def act(
    session: Session, who: Principal, vm: Vm, action: str, *, force: bool = False, grace: float | None = None
) -> Job:
    """Make the job that does one of ACTIONS with a machine. Raises Problem.

    `grace` is how many seconds a clean stop or reboot may take; `force` cuts the power after that.
    """
    if action not in ACTIONS:
        raise Problem("invalid", "There is no such action.", f"Use one of {', '.join(ACTIONS)}.")
    if grace is not None and action not in OBEYING:
        raise Problem("invalid", f"Nothing is waited for with {action}.", "Leave grace away.")
    if force and action not in OBEYING:
        raise Problem("invalid", f"There is nothing to force with {action}.", "Leave force away.")
    require_ready(vm)
    variables: dict[str, Any] = {"virtfleet_vms": [reference(vm)]}
    timeout = None
    if action == "reset":
        variables |= {"virtfleet_force": True, "virtfleet_grace": 0.0}
    elif action in OBEYING:
        patience = DEFAULT_GRACE_SECONDS if grace is None else min(max(grace, 0.0), LONGEST_GRACE_SECONDS)
        variables |= {"virtfleet_force": force, "virtfleet_grace": patience}
        timeout = patience + 60.0
    job = submit(session, who, KINDS[action], [vm], variables=variables, context={"before": vm.state})
    if timeout is not None:
        job.timeout = max(job.timeout, timeout + 60.0)
        variables["virtfleet_timeout"] = timeout
        job.variables = dict(variables)
    ledger.audit(session, who, f"vm.{action}", vm.id, job.id)
    return job


def require_ready(vm: Vm) -> None:
    """Refuse to touch a machine that is not there, or only half. Raises Problem `not_ready`."""
    if vm.state in ("building", "deleting", "missing"):
        raise Problem(
            "not_ready",
            f"Vm {vm.name!r} is {vm.state}.",
            "Its host no longer has it: delete it." if vm.state == "missing" else "Wait for the end of its job.",
        )


def delete(session: Session, who: Principal, vm: Vm) -> tuple[Job, list[str]]:
    """Make the job that deletes a machine; a creation under way is cancelled first.

    Returns the job and further jobs to ring for.

    A machine whose creation had not begun is gone when this returns; the job is the cancelled one then.
    """
    to_ring: list[str] = []
    making = session.get(Job, vm.job_id) if vm.job_id else None
    identifier, name, project_id = vm.id, vm.name, vm.project_id
    if making is not None and making.state in UNFINISHED and making.kind == "vm.delete":
        return making, []
    if vm.state == "building" and making is not None and making.state in UNFINISHED and len(making.subjects) == 1:
        to_ring = lifecycle.cancel(session, making)
        session.flush()
        if session.get(Vm, identifier) is None:
            ledger.audit(session, who, "vm.delete", identifier, making.id)
            return making, to_ring
    vm.state = "deleting"
    vm.generation += 1
    variables = {"virtfleet_vms": [reference(vm)]}
    job = submit(session, who, "vm.delete", [vm], variables=variables, context={"cleanup": False})
    ledger.audit(session, who, "vm.delete", identifier, job.id)
    ledger.changed(session, "vm", identifier, "updated", project_id, name=name, state="deleting")
    return job, to_ring


def clean_up(session: Session, vms: Sequence[Vm]) -> list[Job]:
    """Make the jobs that remove what is left of machines that could not be made; they are tried until it is done."""
    jobs = []
    for vm in vms:
        vm.state = "deleting"
        vm.generation += 1
        owner = Principal(vm.owner_id, "", vm.project_id, "", frozenset())
        variables = {"virtfleet_vms": [reference(vm)]}
        jobs.append(submit(session, owner, "vm.delete", [vm], variables=variables, context={"cleanup": True}))
        ledger.changed(session, "vm", vm.id, "updated", vm.project_id, name=vm.name, state=vm.state)
    return jobs


def retry_cleanups() -> int:
    """Try again to clean up on hosts that answer; for the controller. Returns how many jobs were made."""
    return cleanups.retry(Vm, "building", clean_up)


def hosts_of(session: Session, vms: Sequence[Vm]) -> list[str]:
    """Return the ids of the hosts on which machines may be when a job begins: one that is on its way has two."""
    bound_for = select(Move.target_id).where(Move.vm_id.in_([vm.id for vm in vms])).order_by(Move.target_id)
    return list(dict.fromkeys([*(vm.host_id for vm in vms), *session.scalars(bound_for)]))


def reference(vm: Vm) -> dict[str, str]:
    """Return what names the machine beyond doubt: another one of that name is not touched."""
    return {"name": vm.libvirt_name, "uuid": vm.uuid}


def submit(
    session: Session,
    who: Principal,
    kind: str,
    vms: Sequence[Vm],
    *,
    variables: dict[str, Any],
    context: dict[str, Any],
    also: Sequence[str] = (),
) -> Job:
    """Make a job that works on machines where they are, one at a time on each of them, and of what else is `also`."""
    hosts = hosts_of(session, vms)
    job = lifecycle.submit(
        session,
        kind,
        project_id=vms[0].project_id,
        owner_id=who.user_id,
        host_ids=hosts,
        variables=variables,
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name} for vm in vms],
        context={**context, "vms": {vm.libvirt_name: vm.id for vm in vms}},
        exclusive=[*(f"vm:{vm.id}" for vm in vms), *also],
        shared=lifecycle.host_slots(hosts),
    )
    for vm in vms:
        vm.job_id = job.id
    session.flush()
    return job
