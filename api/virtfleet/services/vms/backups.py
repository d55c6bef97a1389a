"""Backups of machines: made, deleted and restored by jobs; listed from what these told, also of machines that are gone.

A job about a backup runs on the host whose pool has its files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import Session

from virtfleet import clock, names
from virtfleet.errors import Problem, not_found
from virtfleet.ids import new_id
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Backup, Job, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions

POOL = "backups"
TIMEOUT_SECONDS = 3600.0
REST_SECONDS = 120.0


@dataclass(frozen=True)
class NewBackup:
    """The request. `keep`: how many to keep of those that begin with `prefix`, or of all."""

    name: str | None = None
    kind: str = "full"
    quiesce: bool = False
    prefix: str | None = None
    keep: int | None = None


def query(who: Principal, vm: str | None = None) -> Select[Backup]:
    """Return what selects the backups that the caller may see.

    `vm` is the id, UUID or name of a machine, which may be gone: only its own then.
    """
    found = select(Backup)
    if vm is not None:
        found = found.where(or_(Backup.vm_id == vm, Backup.vm_uuid == vm.lower(), Backup.vm_name == vm))
    return found if who.admin else found.where(Backup.project_id == who.project_id)


def create(session: Session, who: Principal, vm: Vm, new: NewBackup) -> tuple[Job, str]:
    """Make the job that backs a machine up; return it and the backup's name. Raises Problem.

    Without a name it is called after the moment. With `keep` the oldest go after the new one was made.
    """
    actions.require_ready(vm)
    if new.prefix is not None and new.keep is None:
        raise Problem("invalid", "Which backups are to be kept is said by half.", "Give keep too.")
    moment = clock.now().strftime("%Y%m%d-%H%M%S")
    name = names.check(new.name or f"{new.prefix or 'backup-'}{moment}", "backup")
    if new.prefix is not None and not name.startswith(new.prefix):
        raise Problem("invalid", f"The name {name!r} does not begin with {new.prefix!r}.", "Leave the name out.")
    if session.scalar(select(Backup.id).where(Backup.vm_uuid == vm.uuid, Backup.name == name)) is not None:
        text = f"Vm {vm.name!r} has a backup {name!r} already."
        raise Problem("already_exists", text, f"Choose another name: virtfleet vm backups {vm.name}.")
    wanted: dict[str, Any] = {"name": name, "kind": new.kind, "quiesce": new.quiesce}
    if new.keep is not None:
        wanted["retain"] = {"prefix": new.prefix or "", "count": new.keep}
    variables = {"virtfleet_backup": wanted, "virtfleet_backup_pool": POOL, "virtfleet_state": "present"}
    hosts = actions.hosts_of(session, [vm])
    work = Work("vm.backup", actions.reference(vm), name, vm.project_id, hosts, variables)
    return submit(session, who, work, vm), name


def delete(session: Session, who: Principal, backup: Backup) -> Job:
    """Make the job that deletes a backup. Raises Problem `in_use` when an increment lies over it."""
    over = session.scalar(
        select(Backup.name).where(
            Backup.host_id == backup.host_id,
            Backup.pool == backup.pool,
            Backup.vm_uuid == backup.vm_uuid,
            Backup.parent == backup.name,
        )
    )
    if over is not None:
        raise Problem("in_use", f"Backup {over!r} lies over {backup.name!r}.", "Delete that one first.")
    variables = {"virtfleet_backup": {"name": backup.name}, "virtfleet_state": "absent"}
    vm = session.scalar(select(Vm).where(Vm.uuid == backup.vm_uuid))
    return submit(session, who, work_on("vm.backup", backup, variables), vm)


def restore_in_place(session: Session, who: Principal, backup: Backup, *, stop: bool, start: bool | None) -> Job:
    """Make the job that gives a machine the disks of a backup back. Raises Problem."""
    vm = session.scalar(select(Vm).where(Vm.uuid == backup.vm_uuid))
    if vm is None:
        text = f"The machine of backup {backup.name!r} is gone."
        raise Problem("not_found", text, "Restore it as a new machine: give a name.")
    actions.require_ready(vm)
    if vm.host_id != backup.host_id:
        text = f"Vm {vm.name!r} is on host {vm.host.name!r}, and the backup on {backup.host.name!r}."
        raise Problem("conflict", text, "Migrate it there, or restore it as a new machine: give a name.")
    wanted: dict[str, Any] = {"backup": backup.name, "stop": stop}
    if start is not None:
        wanted["start"] = start
    work = work_on("vm.restore", backup, {"virtfleet_restore": wanted})
    return submit(session, who, work, vm)


@dataclass(frozen=True)
class Work:
    """What a job about a backup is to do."""

    kind: str
    machine: dict[str, str]
    """The machine that is or was backed up, as the playbooks take it."""
    backup: str
    project_id: str
    host_ids: list[str]
    variables: dict[str, Any]


def work_on(kind: str, backup: Backup, variables: dict[str, Any]) -> Work:
    """Return what is to be done with a backup that is there."""
    machine = {"name": backup.libvirt_name, "uuid": backup.vm_uuid}
    given = {"virtfleet_backup_pool": backup.pool, **variables}
    return Work(kind, machine, backup.name, backup.project_id, [backup.host_id], given)


def submit(session: Session, who: Principal, work: Work, vm: Vm | None) -> Job:
    """Make a job about a backup; `vm` is the machine that it changes, if that has a row."""
    job = lifecycle.submit(
        session,
        work.kind,
        project_id=work.project_id,
        owner_id=who.user_id,
        host_ids=work.host_ids,
        variables={"virtfleet_vms": [work.machine], "virtfleet_timeout": TIMEOUT_SECONDS, **work.variables},
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name}] if vm is not None else [],
        context={"backup": work.backup, "vms": {vm.libvirt_name: vm.id} if vm is not None else {}},
        # Nobody deletes a backup while it is read, and none is made over it meanwhile.
        exclusive=[f"backups:{work.machine['uuid']}", *([f"vm:{vm.id}"] if vm is not None else [])],
        shared=lifecycle.host_slots(work.host_ids),
    )
    job.timeout = max(job.timeout, TIMEOUT_SECONDS + REST_SECONDS)
    if vm is not None:
        vm.job_id = job.id
    ledger.audit(session, who, work.kind, vm.id if vm is not None else work.machine["uuid"], job.id)
    session.flush()
    return job


def find(session: Session, who: Principal, identifier: str) -> Backup:
    """Return the backup of that id; names are unique within a machine only. Raises Problem `not_found`."""
    found = session.get(Backup, identifier)
    if found is None or (found.project_id != who.project_id and not who.admin):
        raise not_found("backup", identifier)
    return found


def record(session: Session, job: Job, item: Mapping[str, Any]) -> None:
    """Write down the backup that a job has made, and forget those that it has deleted."""
    wanted, host_id = item.get("item") or {}, job.host_ids[0]
    gone = delete_rows(Backup).where(Backup.vm_uuid == wanted.get("uuid"), Backup.pool == _pool(job))
    session.execute(gone.where(Backup.name.in_(list(item.get("deleted") or []))))
    made = item.get("backup")
    if not made:
        return
    vm = session.scalar(select(Vm).where(Vm.uuid == made["uuid"]))
    session.execute(gone.where(Backup.name == made["name"]))
    if vm is None:
        return
    session.add(
        Backup(
            id=new_id("bak"),
            name=made["name"],
            vm_id=vm.id,
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            libvirt_name=vm.libvirt_name,
            host_id=vm.host_id or host_id,
            pool=_pool(job),
            kind=made["kind"],
            parent=made["parent"],
            reason=item.get("reason"),
            quiesced=made["quiesced"],
            size_bytes=made["size_bytes"],
            disks=list(made["disks"]),
            shape={
                "vcpus": vm.vcpus,
                "memory_bytes": vm.memory_bytes,
                "max_vcpus": vm.max_vcpus,
                "max_memory_bytes": vm.max_memory_bytes,
                "pool": vm.pool,
                "flavor": vm.flavor,
                "image": vm.image,
                "networks": [address.network_id for address in vm.addresses],
                "ssh_keys": list((vm.spec.get("cloud_init") or {}).get("ssh_keys") or []),
            },
            project_id=vm.project_id,
            owner_id=job.owner_id,
            made_at=datetime.fromisoformat(made["created_at"]),
        )
    )
    session.flush()


def settle(vm: Vm, disks: Sequence[Mapping[str, Any]]) -> None:
    """Note what the volumes of a machine's disks are called now; in place, copies have taken the place of the old ones.

    `disks` is what the run says of them.
    """
    volumes = {disk.get("serial"): PurePosixPath(disk["source"]).name for disk in disks if disk.get("source")}
    vm.attached = [{**each, "volume": volumes.get(each["serial"], each["volume"])} for each in vm.attached]
    root = next((PurePosixPath(disk["source"]).name for disk in disks if disk.get("source")), None)
    if root is not None and vm.spec.get("disks"):
        first, *others = vm.spec["disks"]
        vm.spec = {**vm.spec, "disks": [{**first, "name": root}, *others]}


def _pool(job: Job) -> str:
    return str(job.variables.get("virtfleet_backup_pool", POOL))


def told(outcome: Outcome) -> Mapping[str, Any] | None:
    """Return what a run says of the one machine that it was about."""
    items = [item for result in outcome.result.values() for item in (result or {}).get("vms") or []]
    return dict(items[0]) if items else None
