"""What becomes of the machines' rows when their jobs end. Runs inside the transaction that closes the job."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.jobs import kinds
from virtfleet.jobs.kinds import Outcome, Revision
from virtfleet.models import Job, Secret, Vm
from virtfleet.services import images, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import (
    actions,
    backups,
    checkpoints,
    cloning,
    creation,
    disks,
    mending,
    migration,
    nics,
    resizing,
    restoring,
    snapshots,
)

STATES = {"running": "running", "stopped": "stopped", "present": "stopped", "paused": "paused", "crashed": "crashed"}
"""What the module says of a machine, in the words of the rows."""


def _vms(session: Session, job: Job) -> Iterator[tuple[str, Vm]]:
    for libvirt_name, identifier in job.context["vms"].items():
        vm = session.get(Vm, identifier)
        if vm is not None:
            yield libvirt_name, vm


def _item(outcome: Outcome, vm: Vm) -> Mapping[str, Any] | None:
    """Return what the run says of this machine."""
    for result in outcome.result.values():
        for item in (result or {}).get("vms") or []:
            if item.get("uuid") == vm.uuid or (not item.get("uuid") and item.get("name") == vm.libvirt_name):
                return dict(item)
    return None


def tell(session: Session, vm: Vm) -> None:
    """Count a change of a machine, and tell watchers."""
    vm.generation += 1
    ledger.changed(session, "vm", vm.id, "updated", vm.project_id, name=vm.name, state=vm.state)


def _forget(session: Session, vm: Vm) -> None:
    """Remove the row; with it the machine's addresses and secrets go."""
    ledger.changed(session, "vm", vm.id, "deleted", vm.project_id, name=vm.name)
    session.execute(delete(Secret).where(Secret.vm_id == vm.id))
    session.delete(vm)
    session.flush()


def error_of(job: Job, outcome: Outcome, item: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return why a machine failed: what the run says of it, or of itself."""
    if item is not None and item.get("failed"):
        error = item.get("error") or {}
        return {"code": error.get("code", "task_failed"), "message": item.get("msg", ""), "hint": error.get("hint", "")}
    return dict(outcome.error) if outcome.error else job.error


@kinds.finisher("vm.create")
def created(session: Session, job: Job, outcome: Outcome) -> None:
    """Keep what was made; undo what was not, and all of it when that was asked for or the job was cancelled."""
    items = {vm.id: _item(outcome, vm) for _, vm in _vms(session, job)}
    if outcome.state == "failed" and any((result or {}).get("unplaced") for result in outcome.result.values()):
        job.error = {
            "code": "no_capacity",
            "message": f"Failed to place the machine: {(outcome.error or {}).get('message', '')}.",
            "hint": "Free some room on that host, or let placement choose another.",
        }
    made = {identifier for identifier, item in items.items() if item is not None and not item.get("failed")}
    undo_all = outcome.state == "cancelled" or (job.context.get("all_or_nothing", False) and len(made) < len(items))
    left = []
    for _, vm in list(_vms(session, job)):
        item = items[vm.id]
        if vm.state == "deleting":
            continue  # somebody asked for its deletion meanwhile: that job does the rest
        if item is not None and vm.id in made and not undo_all:
            _keep(session, vm, item)
        elif _untouched(job, item):
            _miss(session, vm, error_of(job, outcome, item))
            _forget(session, vm)
        else:
            vm.error = error_of(job, outcome, item)
            left.append(vm)
    actions.clean_up(session, left)
    if made and outcome.state == "succeeded" and job.context.get("delete_source"):
        cloning.replace(session, job)


@kinds.finisher("vm.clone")
def cloned(session: Session, job: Job, outcome: Outcome) -> None:
    """Keep the clone, or undo it; its source is as it was, unless it was to be replaced."""
    source = session.get(Vm, job.subjects[1]["id"])
    for _, vm in list(_vms(session, job)):
        cloning.settle(vm, source, (_item(outcome, vm) or {}).get("disks") or [])
    created(session, job, outcome)


@kinds.reviser("vm.create")
def place_again(session: Session, job: Job, outcome: Outcome) -> Revision | None:
    """Try once more with what the failed run has taught: a host has less room than was thought, or lost its base."""
    vms = [vm for _, vm in _vms(session, job)]
    items = {vm.id: _item(outcome, vm) for vm in vms}
    failed = [item for item in items.values() if item is not None and item.get("failed")]
    if any(vm.state == "deleting" for vm in vms) or not all(item.get("cleaned") for item in failed):
        return None
    crowded = {name for result in outcome.result.values() for name in (result or {}).get("unplaced") or []}
    if crowded and not failed and not job.context.get("pinned"):
        moving = [vm for vm in vms if vm.libvirt_name in crowded]
        if not creation.place_elsewhere(session, moving):
            return None
        reason = f"{', '.join(vm.name for vm in moving)} did not fit where it was to go, and was placed again."
    elif failed and all((item.get("error") or {}).get("code") == "image_missing" for item in failed):
        for vm in vms:
            _miss(session, vm, (items[vm.id] or {}).get("error"))
        reason = "The base of the image had vanished from the pool, and is copied there again."
    else:
        return None
    owner = Principal(job.owner_id, "", job.project_id, "", frozenset())
    needs, variables, shared = creation.run_of(session, owner, vms, str(job.context["wait_for"]))
    return Revision(
        reason=reason,
        host_ids=tuple(resource.removeprefix("host:") for resource, _ in shared),
        variables=variables,
        exclusive=tuple(f"vm:{vm.id}" for vm in vms),
        shared=tuple(shared),
        needs=tuple(needs),
    )


def _keep(session: Session, vm: Vm, item: Mapping[str, Any]) -> None:
    vm.state = STATES.get(item.get("state", ""), "unknown")
    vm.seen_addresses = [str(address) for address in item.get("addresses") or []]
    vm.error = None
    vm.observed_at = clock.now()
    tell(session, vm)


def _untouched(job: Job, item: Mapping[str, Any] | None) -> bool:
    """Tell whether nothing of the machine is on its host: never begun, or made undone by the run itself."""
    if item is None:
        # A first attempt that ended at placement has made nothing, either.
        return job.started_at is None or ((job.error or {}).get("code") == "no_capacity" and job.attempt == 1)
    return bool(item.get("failed") and item.get("cleaned"))


def _miss(session: Session, vm: Vm, error: Mapping[str, Any] | None) -> None:
    if error and error.get("code") == "image_missing" and vm.image_id:
        # The pool lost its copy: whoever comes next has it made anew.
        images.forget_copy(session, vm.image_id, vm.host, vm.pool)


@kinds.finisher("vm.delete")
def deleted(session: Session, job: Job, outcome: Outcome) -> None:
    """Forget the machine that is gone; one that is not stays, and says why."""
    for _, vm in list(_vms(session, job)):
        if outcome.state == "succeeded":
            _forget(session, vm)
            continue
        vm.error = error_of(job, outcome, _item(outcome, vm))
        if not job.context.get("cleanup"):
            vm.state = "unknown"  # the observer knows better when it next sees the host
        tell(session, vm)


def _changed(session: Session, job: Job, outcome: Outcome) -> None:
    for _, vm in list(_vms(session, job)):
        item = _item(outcome, vm)
        if item is not None and not item.get("failed"):
            _keep(session, vm, {"addresses": vm.seen_addresses, **item})
        elif outcome.state != "succeeded":
            vm.error = error_of(job, outcome, item)
            tell(session, vm)


for _kind in sorted(set(actions.KINDS.values())):
    kinds.finisher(_kind)(_changed)


@kinds.finisher("vm.resize")
def resized(session: Session, job: Job, outcome: Outcome) -> None:
    """Keep what was changed; what was not is not reserved any longer."""
    for _, vm in list(_vms(session, job)):
        item = _item(outcome, vm)
        machine = item is not None and not item.get("failed")
        disk = any((result or {}).get("disk") for result in outcome.result.values())
        if outcome.state != "succeeded":
            resizing.take_back(vm, job.context, machine=not machine, disk=not disk)
            vm.error = error_of(job, outcome, item)
        if machine and item is not None:
            error = vm.error if outcome.state != "succeeded" else None
            _keep(session, vm, {**item, "addresses": item.get("addresses") or vm.seen_addresses})
            vm.error = error
        else:
            tell(session, vm)


@kinds.finisher("vm.disk")
def disk_settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note what became of a disk."""
    for _, vm in list(_vms(session, job)):
        result = _of_device(outcome, "disks", "serial", job.context["serial"])
        disks.settle(vm, job.context, result)
        if outcome.state != "succeeded":
            vm.error = error_of(job, outcome, None)
        tell(session, vm)


@kinds.finisher("vm.nic")
def nic_settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note what became of a network card."""
    for _, vm in list(_vms(session, job)):
        result = _of_device(outcome, "nics", "mac", job.context["mac"])
        nics.settle(session, vm, job.context, done=result is not None)
        if outcome.state != "succeeded":
            vm.error = error_of(job, outcome, None)
        tell(session, vm)


def _of_device(outcome: Outcome, kind: str, key: str, value: str) -> Mapping[str, Any] | None:
    """Return what the run says of a device that it has dealt with; None when it failed."""
    for result in outcome.result.values():
        for item in (result or {}).get(kind) or []:
            if (item.get("item") or {}).get(key) == value and not item.get("failed") and not item.get("skipped"):
                return dict(item)
    return None


@kinds.finisher("vm.migrate")
@kinds.finisher("host.evacuate")
def moved(session: Session, job: Job, outcome: Outcome) -> None:
    """Note where each machine is now."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm)
        if mending.holds(session, vm, job) and mending.is_wanted(job, outcome, vm, item):
            mending.begin(session, vm, job, error_of(job, outcome, item) if outcome.state == "failed" else None)
            tell(session, vm)
            continue
        if not migration.settle(session, vm, job, item):
            continue
        if item is not None and not item.get("failed"):
            vm.state = STATES.get((item.get("vm") or {}).get("state", ""), vm.state)
            vm.error = None
            checkpoints.record(session, vm, [])  # libvirt does not take them along
        elif outcome.state != "succeeded":
            vm.error = error_of(job, outcome, item)
        tell(session, vm)


@kinds.reviser("vm.migrate")
def go_elsewhere(session: Session, job: Job, outcome: Outcome) -> Revision | None:
    """Try the next best host when the one that placement chose cannot take the machine."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm)
        if item is not None and item.get("failed") and vm.state != "deleting":
            return migration.elsewhere(session, vm, job, item)
    return None


@kinds.reviser("vm.mend")
def mend_again(session: Session, job: Job, outcome: Outcome) -> Revision | None:
    """Try again until it is done; the machine is free as soon as it is certain that it is where it was."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm) or {}
        if item.get("on") == "nowhere":
            return None
        if mending.holds(session, vm, job):
            if item.get("on") == "source":
                mending.settle(session, vm, job, "source")
            else:
                mending.say_why(vm, error_of(job, outcome, item))
            tell(session, vm)
        return mending.again(session, vm, job, outcome)
    return None


@kinds.finisher("vm.mend")
def mended(session: Session, job: Job, outcome: Outcome) -> None:
    """Note where the machine is, and free it; also when somebody gave it up: then the observer sees where it is."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm)
        if not mending.holds(session, vm, job):
            continue
        if outcome.state == "succeeded" and item is not None:
            mending.settle(session, vm, job, item["on"])
            if vm.state != "deleting":
                vm.state = STATES.get((item.get("vm") or {}).get("state", ""), vm.state)
        else:
            mending.settle(session, vm, job, None)
            vm.error = error_of(job, outcome, item)
        tell(session, vm)


@kinds.finisher("vm.snapshot")
@kinds.finisher("vm.revert")
@kinds.finisher("vm.export")
def snapshots_settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note which snapshots a machine has, and its state."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm)
        if item is not None and not item.get("failed"):
            snapshots.record(session, vm, item.get("snapshots") or [])
            if job.kind == "vm.revert":
                checkpoints.record(session, vm, [])  # QEMU cannot go back while there are any
            vm.state = STATES.get((item.get("vm") or {}).get("state", ""), vm.state)
            vm.error = None
        elif outcome.state != "succeeded":
            vm.error = error_of(job, outcome, item)
        tell(session, vm)


@kinds.finisher("vm.checkpoint")
def checkpoints_settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note which checkpoints a machine has."""
    for _, vm in list(_vms(session, job)):
        item = _of_machine(outcome, vm)
        if item is not None and not item.get("failed"):
            checkpoints.record(session, vm, item.get("checkpoints") or [])
            vm.error = None
        elif outcome.state != "succeeded":
            vm.error = error_of(job, outcome, item)
        tell(session, vm)


@kinds.finisher("vm.backup")
def backed_up(session: Session, job: Job, outcome: Outcome) -> None:
    """Note which backup was made, and which were deleted."""
    item = backups.told(outcome)
    failed = item is None or bool(item.get("failed"))
    if item is not None and not failed:
        backups.record(session, job, item)
    for _, vm in list(_vms(session, job)):
        vm.error = error_of(job, outcome, item) if failed and outcome.state != "succeeded" else None
        tell(session, vm)


@kinds.finisher("vm.restore")
def restored(session: Session, job: Job, outcome: Outcome) -> None:
    """Note how the machine is that was restored; a new one that could not be made is removed."""
    item = backups.told(outcome)
    for _, vm in list(_vms(session, job)):
        if item is not None and not item.get("failed"):
            disks_now = (item.get("vm") or {}).get("disks") or []
            if vm.state == "building":
                restoring.settle(vm, job, disks_now)
            else:
                backups.settle(vm, disks_now)
                checkpoints.record(session, vm, [])  # the disks are others now
            vm.state = STATES.get((item.get("vm") or {}).get("state", ""), "unknown")
            vm.error = None
            vm.observed_at = clock.now()
            tell(session, vm)
        elif vm.state == "building" and job.started_at is None:
            _forget(session, vm)
        else:
            vm.error = error_of(job, outcome, item)
            if vm.state == "building":
                actions.clean_up(session, [vm])
            else:
                tell(session, vm)


def _of_machine(outcome: Outcome, vm: Vm) -> Mapping[str, Any] | None:
    """Return what a run that worked off a list of machines says of this one; each came with its UUID."""
    for result in outcome.result.values():
        for item in (result or {}).get("vms") or []:
            if (item.get("item") or {}).get("uuid") == vm.uuid:
                return dict(item)
    return None


def of_job(session: Session, job: Job) -> list[Vm]:
    """Return the machines of a job that (still) have rows."""
    identifiers = [subject["id"] for subject in job.subjects if subject["type"] == "vm"]
    return list(session.scalars(select(Vm).where(Vm.id.in_(identifiers)).order_by(Vm.number)))
