"""Volumes: made, grown, copied, wiped and deleted by jobs. Machines get them as disks by `vms.disks`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.units import about, format_size
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from virtfleet import names, settings
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.jobs import kinds, lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import UNFINISHED, Attachment, Host, Job, Vm, Volume
from virtfleet.services import attachments, capacity, cleanups, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find
from virtfleet.services.vms import disks

LONG_SECONDS = 1800.0
"""How long copying or wiping a volume may take."""
REST_SECONDS = 120.0


@dataclass(frozen=True)
class NewVolume:
    """The request: where is said by a host, by a machine, or else by the volume (`source`) that is to be copied."""

    name: str | None = None
    size_bytes: int | None = None
    host: str | None = None
    vm: str | None = None
    pool: str | None = None
    format: str | None = None
    shareable: bool = False
    source: str | None = None


def query(session: Session, who: Principal, *, host: str | None = None, vm: str | None = None) -> Select[Volume]:
    """Return what selects the volumes that the caller may see. Raises Problem `not_found` for a host or machine."""
    found = select(Volume)
    if host is not None:
        found = found.where(Volume.host_id == find(session, Host, "host", host).id)
    if vm is not None:
        mine = select(Attachment.volume_id).where(Attachment.vm_id == find(session, Vm, "vm", vm, who).id)
        found = found.where(Volume.id.in_(mine))
    return found if who.admin else found.where(Volume.project_id == who.project_id)


def create(session: Session, who: Principal, new: NewVolume) -> tuple[Job, Volume]:
    """Write a volume down and make the job that makes it, empty or as a copy. Raises Problem, such as `no_capacity`."""
    identifier = new_id("vol")
    name = names.check(new.name, "volume") if new.name is not None else identifier
    if session.scalar(select(Volume.id).where(Volume.project_id == who.project_id, Volume.name == name)) is not None:
        raise Problem("already_exists", f"There is a volume {name!r} already.", "Choose another name.")
    source = find(session, Volume, "volume", new.source, who) if new.source is not None else None
    holders = _copyable(source) if source is not None else []
    host, pool, why = _place(session, who, new, source)
    size = max(new.size_bytes or 0, source.size_bytes if source is not None else 0)
    if source is not None and new.size_bytes is not None and new.size_bytes < source.size_bytes:
        text = f"Volume {source.name!r} has {format_size(source.size_bytes)}, and a copy cannot be smaller."
        raise Problem("invalid", text, "Leave the size away.", errors=[{"field": "size", "message": "too small"}])
    room = _require_room(session, host, pool, size)
    row = Volume(
        id=identifier,
        name=name,
        host_id=host.id,
        pool=pool,
        volume=identifier,
        format=_format(host, pool, new, source),
        size_bytes=size,
        shareable=new.shareable,
        explanation={
            "chosen": host.name,
            "text": f"{why} Of {about(room[1])} in its pool {pool}, {about(room[0])} were free.",
        },
        project_id=who.project_id,
        owner_id=who.user_id,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    wanted = {**_reference(row), "size": format_size(size), "format": row.format}
    if source is None:
        job = _submit(session, who, row, "volume.create", {"virtfleet_volumes": [wanted]})
    else:
        original = _reference(source)
        variables: dict[str, Any] = {"virtfleet_volume": original, "virtfleet_clones": [wanted]}
        origin = None if _reaches(host, source) else source.host
        if origin is not None:
            original["host"] = origin.name
            variables["virtfleet_targets"] = host.name
        also = [attachments.lock(source), *(f"vm:{vm.id}" for vm in holders)]
        job = _submit(session, who, row, "volume.clone", variables, also=also, origin=origin)
    ledger.changed(session, "volume", row.id, "created", row.project_id, name=name, state=row.state)
    return job, row


def grow(session: Session, who: Principal, volume: Volume, *, size_bytes: int | None, grow_by_bytes: int | None) -> Job:
    """Make the job that grows a volume: as a disk of the machine that has it, or where it lies. Raises Problem."""
    attachments.require_ready(volume)
    size = size_bytes if size_bytes is not None else volume.size_bytes + (grow_by_bytes or 0)
    if size < volume.size_bytes:
        text = f"Volume {volume.name!r} has {format_size(volume.size_bytes)}, and a volume never shrinks."
        hint = "Make a smaller one, and copy the files inside a machine."
        raise Problem("invalid", text, hint, errors=[{"field": "size", "message": "smaller than it is"}])
    if len(volume.attachments) > 1:
        attachments.require_free(volume, "Detach it from all but one: the others would not see that it grew.")
    if volume.attachments:
        vm = volume.attachments[0].vm
        return disks.change(session, who, vm, volume.serial, size_bytes=size, grow_by_bytes=None, io=None)
    _require_room(session, volume.host, volume.pool, size - volume.size_bytes)
    wanted = {**_reference(volume), "size": format_size(size)}
    return _submit(session, who, volume, "volume.resize", {"virtfleet_volumes": [wanted]})


def wipe(session: Session, who: Principal, volume: Volume) -> Job:
    """Make the job that empties a volume. Raises Problem `in_use` with the machines that have it."""
    attachments.require_ready(volume)
    attachments.require_free(volume, "Detach it first.")
    wanted = {**_reference(volume), "size": format_size(volume.size_bytes), "format": volume.format}
    return _submit(session, who, volume, "volume.wipe", {"virtfleet_volumes": [wanted]})


def delete(session: Session, who: Principal, volume: Volume) -> Job:
    """Make the job that deletes a volume. Raises Problem `in_use` with the machines that have it."""
    attachments.require_free(volume, "Detach it first.")
    last = session.get(Job, volume.job_id) if volume.job_id else None
    if volume.state == "deleting" and last is not None and last.state in UNFINISHED:
        return last
    if volume.state == "creating":
        attachments.require_ready(volume)
    return _remove(session, who, volume, cleanup=False)


def _remove(session: Session, who: Principal, volume: Volume, *, cleanup: bool) -> Job:
    volume.state = "deleting"
    attachments.tell(session, volume)
    variables = {"virtfleet_volumes": [_reference(volume)]}
    return _submit(session, who, volume, "volume.delete", variables, context={"cleanup": cleanup})


def _reference(volume: Volume) -> dict[str, str]:
    return {"name": volume.volume, "pool": volume.pool}


def _place(session: Session, who: Principal, new: NewVolume, source: Volume | None) -> tuple[Host, str, str]:
    """Return the host, the pool and why it is that host. Raises Problem."""
    if new.vm is not None:
        vm = find(session, Vm, "vm", new.vm, who)
        host, pool, why = vm.host, vm.pool, f"Vm {vm.name} is on host"
        if new.host is not None and find(session, Host, "host", new.host).id != host.id:
            raise Problem("conflict", f"Vm {vm.name!r} is on host {host.name!r}.", "Leave host away.", host=host.name)
    elif new.host is not None:
        host, why = find(session, Host, "host", new.host), "It was asked for on host"
        pool = source.pool if source is not None and source.host_id == host.id else settings.load().pool
        if host.maintenance:
            raise Problem("not_ready", f"Host {host.name!r} is in maintenance.", "Choose another host.")
    elif source is not None:
        host, pool, why = source.host, source.pool, f"Volume {source.name}, which it is a copy of, lies on host"
    else:
        hint = "Give a host, or the vm that is going to have the volume."
        raise Problem("invalid", "It is not said where the volume is to lie.", hint)
    for needed in {host, source.host} if source is not None and not _reaches(host, source) else {host}:
        if needed.state != "up":
            hint = "Choose another one, or wait until it is back."
            raise Problem("not_ready", f"Host {needed.name!r} does not answer.", hint)
    return host, names.check(new.pool or pool, "pool"), f"{why} {host.name}."


def _reaches(host: Host, volume: Volume) -> bool:
    """Tell whether a host has a volume in a pool of its own, or in one that it shares with the volume's host."""
    shared = all(capacity.shares(each, volume.pool) for each in (host, volume.host))
    return host.id == volume.host_id or (shared and host.zone_id == volume.host.zone_id)


def _format(host: Host, pool: str, new: NewVolume, source: Volume | None) -> str:
    """Return the format: raw where several machines write, or the pool has no files. Raises Problem `invalid`."""
    if source is not None and not _reaches(host, source):
        wanted = "raw" if new.shareable else new.format or source.format
        if wanted != source.format:
            text = f"A copy from another host keeps the format of its original, {source.format}."
            hint = f"Copy it on host {source.host.name!r} first, or leave the format and shareable away."
            raise Problem("invalid", text, hint, errors=[{"field": "format", "message": f"must be {source.format}"}])
        return wanted
    logical = any(each["name"] == pool and each.get("type") == "logical" for each in host.info.get("pools", []))
    raw = new.shareable or logical
    if raw and new.format == "qcow2":
        reason = "that several machines share" if new.shareable else f"in pool {pool!r}"
        errors = [{"field": "format", "message": "must be raw"}]
        raise Problem("invalid", f"A volume {reason} must be raw.", "Leave the format away.", errors=errors)
    return "raw" if raw else new.format or (source.format if source is not None else "qcow2")


def _require_room(session: Session, host: Host, pool: str, more_bytes: int) -> tuple[int, int]:
    """Return the free and all bytes of a pool. Raises Problem: `invalid` for one that there is not, `no_capacity`."""
    known = {each["name"]: each for each in capacity.of_host(session, host)["pools"]}
    if pool not in known:
        text = f"Host {host.name!r} has no active pool {pool!r}."
        hint = f"It has {', '.join(sorted(known)) or 'none'}: virtfleet pool list --host {host.name}."
        raise Problem("invalid", text, hint, errors=[{"field": "pool", "message": "unknown"}])
    free, total = known[pool]["free_bytes"], known[pool]["total_bytes"]
    if more_bytes > free:
        text = f"Pool {pool!r} of host {host.name!r} has {about(free)} left, and {about(more_bytes)} are wanted."
        raise Problem("no_capacity", text, "Ask for less, choose another pool, or delete volumes.")
    return free, total


def _copyable(source: Volume) -> list[Vm]:
    """Return the machines that have a volume which is to be copied. Raises Problem `conflict` when one may write."""
    attachments.require_ready(source)
    holders = [each.vm for each in source.attachments]
    busy = [vm.name for vm in holders if vm.state != "stopped"]
    if busy:
        text = f"Volume {source.name!r} is a disk of {', '.join(busy)}, and a copy of what is written to is broken."
        raise Problem("conflict", text, "Stop the machine or detach the volume first.", vms=busy)
    return holders


def _submit(
    session: Session,
    who: Principal,
    volume: Volume,
    kind: str,
    variables: Mapping[str, Any],
    *,
    context: Mapping[str, Any] | None = None,
    also: Sequence[str] = (),
    origin: Host | None = None,
) -> Job:
    hosts = [volume.host_id, *([origin.id] if origin is not None else [])]
    long = kind in ("volume.clone", "volume.wipe")
    job = lifecycle.submit(
        session,
        kind,
        project_id=volume.project_id,
        owner_id=who.user_id,
        host_ids=hosts,
        variables={**variables, **({"virtfleet_timeout": LONG_SECONDS} if long else {})},
        subjects=[{"type": "volume", "id": volume.id, "name": volume.name}],
        context={"volume": volume.id, **(context or {})},
        exclusive=[attachments.lock(volume), *also],
        shared=lifecycle.host_slots(hosts),
    )
    if long:
        job.timeout = max(job.timeout, LONG_SECONDS + REST_SECONDS)
    volume.job_id = job.id
    ledger.audit(session, who, kind, volume.id, job.id)
    session.flush()
    return job


@kinds.finisher("volume.create")
@kinds.finisher("volume.clone")
def created(session: Session, job: Job, outcome: Outcome) -> None:
    """Keep the volume that was made; what is left of one that could not be is removed by a job of its own."""
    volume = session.get(Volume, job.context["volume"])
    if volume is None:
        return
    if outcome.state == "succeeded":
        _learn(volume, outcome)
        volume.state, volume.error = "ready", None
        attachments.tell(session, volume)
    elif job.started_at is None:
        _forget(session, volume)
    else:
        volume.error = _error(job, outcome)
        _clean_up(session, volume)


@kinds.finisher("volume.resize")
@kinds.finisher("volume.wipe")
def changed(session: Session, job: Job, outcome: Outcome) -> None:
    """Note what became of a volume."""
    volume = session.get(Volume, job.context["volume"])
    if volume is not None:
        _learn(volume, outcome)
        volume.error = None if outcome.state == "succeeded" else _error(job, outcome)
        attachments.tell(session, volume)


@kinds.finisher("volume.delete")
def deleted(session: Session, job: Job, outcome: Outcome) -> None:
    """Forget the volume that is gone; one that is not can be used as before."""
    volume = session.get(Volume, job.context["volume"])
    if volume is None:
        return
    if outcome.state == "succeeded":
        _forget(session, volume)
        return
    volume.error = _error(job, outcome)
    if not job.context.get("cleanup"):
        volume.state = "ready"
    attachments.tell(session, volume)


def _learn(volume: Volume, outcome: Outcome) -> None:
    """Note the size that a run tells of."""
    for result in outcome.result.values():
        for item in (result or {}).get("volumes") or []:
            size = (item.get("volume") or {}).get("capacity_bytes")
            if not item.get("failed") and isinstance(size, int) and size > 0:
                volume.size_bytes = size


def _error(job: Job, outcome: Outcome) -> dict[str, Any] | None:
    return dict(outcome.error) if outcome.error else job.error


def _clean_up(session: Session, volume: Volume) -> Job:
    owner = Principal(volume.owner_id, "", volume.project_id, "", frozenset())
    return _remove(session, owner, volume, cleanup=True)


def _forget(session: Session, volume: Volume) -> None:
    ledger.changed(session, "volume", volume.id, "deleted", volume.project_id, name=volume.name)
    session.delete(volume)
    session.flush()


def retry_cleanups() -> int:
    """Try again to remove what is left on hosts that answer; for the controller. Returns how many jobs were made."""
    return cleanups.retry(Volume, "creating", lambda session, rows: [_clean_up(session, row) for row in rows])
