"""Snapshots of machines: made, gone back to, deleted by jobs; listed from what the last of them saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, names
from virtfleet.errors import Problem, not_found
from virtfleet.ids import new_id
from virtfleet.models import Job, Snapshot, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions

TIMEOUT_SECONDS = 600.0
EXPORT_SECONDS = 3600.0
REST_SECONDS = 60.0


@dataclass(frozen=True)
class NewSnapshot:
    """The request; None leaves the choice to the host. `keep`: how many to keep of those that begin with `prefix`."""

    name: str | None = None
    mode: str = "auto"
    memory: bool | None = None
    quiesce: bool = False
    description: str | None = None
    prefix: str | None = None
    keep: int | None = None


def all_of(session: Session, vm: Vm) -> Sequence[Snapshot]:
    """Return a machine's snapshots as they were last seen, oldest first."""
    return session.scalars(
        select(Snapshot).where(Snapshot.vm_id == vm.id).order_by(Snapshot.made_at, Snapshot.id)
    ).all()


def create(session: Session, who: Principal, vm: Vm, new: NewSnapshot) -> tuple[Job, str]:
    """Make the job that makes a snapshot; return it and the snapshot's name. Raises Problem.

    Without a name it is called after the moment. With `keep`, the oldest that begin with `prefix` go after it is made.
    """
    actions.require_ready(vm)
    if (new.keep is None) != (new.prefix is None):
        raise Problem("invalid", "Which snapshots are to be kept is said by half.", "Give both prefix and keep.")
    moment = clock.now().strftime("%Y%m%d-%H%M%S")
    name = names.check(new.name or f"{new.prefix or 'snapshot-'}{moment}", "snapshot")
    if new.prefix is not None and not name.startswith(new.prefix):
        raise Problem("invalid", f"The name {name!r} does not begin with {new.prefix!r}.", "Leave the name out.")
    if new.name is not None and any(row.name == name for row in all_of(session, vm)):
        text = f"Vm {vm.name!r} has a snapshot {name!r} already."
        raise Problem("already_exists", text, f"Choose another name: virtfleet vm snapshot list {vm.name}.")
    wanted: dict[str, Any] = {"name": name, "mode": new.mode, "quiesce": new.quiesce}
    if new.memory is not None:
        wanted["memory"] = new.memory
    if new.description is not None:
        wanted["description"] = new.description
    if new.prefix is not None and new.keep is not None:
        wanted["retain"] = {"prefix": new.prefix, "count": new.keep}
    return _submit(session, who, vm, "vm.snapshot", wanted, state="present"), name


def revert(session: Session, who: Principal, vm: Vm, name: str) -> Job:
    """Make the job that brings a machine back to a snapshot. Raises Problem."""
    actions.require_ready(vm)
    return _submit(session, who, vm, "vm.revert", {"name": _known(session, vm, name).name})


def export(
    session: Session, who: Principal, vm: Vm, name: str, *, pool: str | None, volume: str | None
) -> tuple[Job, dict[str, str]]:
    """Make the job that brings out what a machine's disks held at a snapshot. Raises Problem.

    Returns it and where that will lie: the pool, and how the volumes' names begin.
    """
    actions.require_ready(vm)
    found = _known(session, vm, name)
    if found.mode == "internal" and vm.state in ("running", "paused"):
        text = f"Vm {vm.name!r} is {vm.state}, and the snapshot lies inside the disks that it writes to."
        raise Problem("conflict", text, "Stop it first; external snapshots can be exported while it runs.")
    where = {
        "pool": names.check(pool, "pool") if pool is not None else vm.pool,
        "name": _export_name(who, vm, name, volume),
    }
    more = {"virtfleet_export_pool": where["pool"], "virtfleet_export_name": where["name"]}
    return _submit(session, who, vm, "vm.export", {"name": name}, more=more, timeout=EXPORT_SECONDS), where


def _export_name(who: Principal, vm: Vm, name: str, volume: str | None) -> str:
    """Return how the volumes' names begin: volumes have no owners, so only an administrator may choose any name."""
    own = f"{volume_prefix(vm.libvirt_name, vm.uuid)}export-"
    wanted = names.check(volume, "volume") if volume is not None else name
    return wanted if who.admin and volume is not None else f"{own}{wanted}"


def delete(session: Session, who: Principal, vm: Vm, name: str, *, children: str) -> Job:
    """Make the job that deletes a snapshot; those made after it are kept, deleted too, or forbid it. Raises Problem."""
    actions.require_ready(vm)
    wanted = {"name": _known(session, vm, name).name, "children": children}
    return _submit(session, who, vm, "vm.snapshot", wanted, state="absent")


def _known(session: Session, vm: Vm, name: str) -> Snapshot:
    found = session.scalar(select(Snapshot).where(Snapshot.vm_id == vm.id, Snapshot.name == name))
    if found is None:
        raise not_found("snapshot", name)
    return found


def _submit(
    session: Session,
    who: Principal,
    vm: Vm,
    kind: str,
    wanted: Mapping[str, Any],
    *,
    state: str | None = None,
    more: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Job:
    variables = {
        "virtfleet_vms": [actions.reference(vm)],
        "virtfleet_snapshot": dict(wanted),
        **({"virtfleet_state": state} if state else {}),
        **(more or {}),
        "virtfleet_timeout": timeout,
    }
    job = actions.submit(session, who, kind, [vm], variables=variables, context={"snapshot": wanted["name"]})
    job.timeout = max(job.timeout, timeout + REST_SECONDS)
    ledger.audit(session, who, kind, vm.id, job.id)
    return job


def record(session: Session, vm: Vm, seen: Sequence[Mapping[str, Any]]) -> None:
    """Write down which snapshots a machine has."""
    session.execute(delete_rows(Snapshot).where(Snapshot.vm_id == vm.id))
    for each in seen:
        plain = {key: each[key] for key in ("name", "mode", "memory", "state", "parent", "current")}
        session.add(
            Snapshot(
                id=new_id("snp"),
                vm_id=vm.id,
                **plain,
                description=each.get("description") or "",
                disks=list(each.get("disks") or []),
                made_at=datetime.fromisoformat(each["created_at"]),
                observed_at=clock.now(),
            )
        )
    session.flush()
