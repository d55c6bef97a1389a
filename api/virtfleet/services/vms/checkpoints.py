"""Checkpoints of machines, from which on their changes are noted: made and deleted by jobs, listed as last seen."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, names
from virtfleet.errors import Problem, not_found
from virtfleet.ids import new_id
from virtfleet.models import Checkpoint, Job, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions


def all_of(session: Session, vm: Vm) -> Sequence[Checkpoint]:
    """Return a machine's checkpoints as they were last seen, oldest first."""
    return session.scalars(
        select(Checkpoint).where(Checkpoint.vm_id == vm.id).order_by(Checkpoint.made_at, Checkpoint.id)
    ).all()


def create(session: Session, who: Principal, vm: Vm, name: str | None, description: str | None) -> tuple[Job, str]:
    """Make the job that makes a checkpoint; return it and the checkpoint's name. Raises Problem.

    Without a name it is called after the moment.
    """
    actions.require_ready(vm)
    if vm.state != "running":
        text = f"Vm {vm.name!r} is {vm.state}: only the changes of one that runs can be noted."
        raise Problem("conflict", text, "Start it first.")
    chosen = names.check(name or clock.now().strftime("checkpoint-%Y%m%d-%H%M%S"), "checkpoint")
    if any(row.name == chosen for row in all_of(session, vm)):
        text = f"Vm {vm.name!r} has a checkpoint {chosen!r} already."
        raise Problem("already_exists", text, f"Choose another name: virtfleet vm checkpoint list {vm.name}.")
    wanted = {"name": chosen, **({"description": description} if description is not None else {})}
    return _submit(session, who, vm, wanted, "present"), chosen


def delete(session: Session, who: Principal, vm: Vm, name: str) -> Job:
    """Make the job that deletes a checkpoint; the one before it then notes what it did. Raises Problem."""
    actions.require_ready(vm)
    if not any(row.name == name for row in all_of(session, vm)):
        raise not_found("checkpoint", name)
    return _submit(session, who, vm, {"name": name}, "absent")


def _submit(session: Session, who: Principal, vm: Vm, wanted: Mapping[str, Any], state: str) -> Job:
    variables = {
        "virtfleet_vms": [actions.reference(vm)],
        "virtfleet_checkpoint": dict(wanted),
        "virtfleet_state": state,
    }
    context = {"checkpoint": wanted["name"]}
    job = actions.submit(session, who, "vm.checkpoint", [vm], variables=variables, context=context)
    ledger.audit(session, who, "vm.checkpoint", vm.id, job.id)
    return job


def record(session: Session, vm: Vm, seen: Sequence[Mapping[str, Any]]) -> None:
    """Write down which checkpoints a machine has."""
    session.execute(delete_rows(Checkpoint).where(Checkpoint.vm_id == vm.id))
    for each in seen:
        session.add(
            Checkpoint(
                id=new_id("chk"),
                vm_id=vm.id,
                name=each["name"],
                description=each.get("description") or "",
                parent=each.get("parent"),
                disks=list(each.get("disks") or []),
                made_at=datetime.fromisoformat(each["created_at"]),
                observed_at=clock.now(),
            )
        )
    session.flush()
