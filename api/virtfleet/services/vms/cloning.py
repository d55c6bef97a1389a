"""Machines like others: with copies of their disks, on the host where those are, or with new ones, placed anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem, not_found
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import ATTEMPT
from virtfleet.models import Job, Move, Snapshot, Vm
from virtfleet.services import addresses, capacity, ledger, secrets
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions, creation, wanted
from virtfleet.services.vms.wanted import NewVm

TIMEOUT_SECONDS = 3600.0
"""How long copying the disks may take."""
REST_SECONDS = 900.0
"""What a job gets besides: a copy by libvirt cannot be broken off, and is undone after its end."""
SHAPE = ("topology", "io")
"""What of a machine's spec a fresh one like it gets, beside its sizes."""


@dataclass(frozen=True)
class NewClone:
    """The request. `mode` is full, linked or fresh; None leaves the choice to what the source has."""

    name: str
    mode: str = "full"
    snapshot: str | None = None
    delete_source: bool = False
    address: str | None = None
    ssh_keys: Sequence[str] | None = None
    user_data: str | None = field(default=None, repr=False)
    wait_for: str | None = None
    start: bool = True


def clone(session: Session, who: Principal, source: Vm, new: NewClone) -> tuple[Job, Vm]:
    """Reserve a machine like `source` and make the job that makes it. Raises Problem.

    Problems: `conflict` when the source runs and its disks would be copied, `invalid`, `not_found`, `not_ready`,
    `already_exists`, and `no_capacity` with the reasons.
    """
    actions.require_ready(source)
    like = _like(session, source, new)
    wanted.check(like)
    if new.mode == "fresh":
        job, made = creation.create(session, who, like)
        _remember_source(job, source, new)
        ledger.audit(session, who, "vm.clone", source.id, job.id)
        return job, made[0]
    _refuse_what_cannot_be_copied(session, source, new)
    number = ledger.next_number(session, "vm")
    (name,) = creation.choose_names(session, who, like, [number])
    explanation = _placed(session, source, new, name)
    vm = _reserve(session, who, source, new, number=number, name=name, explanation=explanation)
    job = _submit(session, who, source, vm, new)
    ledger.audit(session, who, "vm.clone", vm.id, job.id)
    ledger.changed(session, "vm", vm.id, "created", vm.project_id, name=vm.name, state=vm.state)
    return job, vm


def _like(session: Session, source: Vm, new: NewClone) -> NewVm:
    """Return the source as a request for a new machine."""
    fresh = new.mode == "fresh"
    if fresh and source.image_id is None:
        text = f"The disk of vm {source.name!r} lies over no image that a new one could be made from."
        raise Problem("invalid", text, "Make a full clone, or create a machine with an image of your choice.")
    user_data = new.user_data
    if user_data is None and fresh:
        user_data = _user_data_of(session, source)
    network = source.addresses[0].network.name if source.addresses else wanted.NO_NETWORK
    return NewVm(
        name=new.name,
        flavor=source.flavor_id,
        vcpus=source.vcpus,
        memory_bytes=source.memory_bytes,
        max_vcpus=source.max_vcpus,
        max_memory_bytes=source.max_memory_bytes,
        disk_bytes=source.disk_bytes,
        image=source.image_id,
        zone=source.zone.name,
        pool=source.pool,
        network=network,
        address=new.address,
        policy=creation.named(source.policy),
        ssh_keys=_keys(source, new),
        user_data=user_data,
        wait_for=new.wait_for,
        start=new.start,
        settings={name: source.spec[name] for name in SHAPE if source.spec.get(name)},
    )


def _keys(source: Vm, new: NewClone) -> list[str]:
    given = (source.spec.get("cloud_init") or {}).get("ssh_keys") if new.ssh_keys is None else new.ssh_keys
    return [key.strip() for key in given or []]


def _user_data_of(session: Session, source: Vm) -> str | None:
    """Return the user data that the source was made with: a machine with new disks does the same once more."""
    kept = (source.spec.get("cloud_init") or {}).get("user_data_src")
    if not isinstance(kept, Mapping):
        return None
    try:
        return secrets.reveal(session, str(kept["$secret"])).decode()
    except LookupError:
        return None


def _refuse_what_cannot_be_copied(session: Session, source: Vm, new: NewClone) -> None:
    if session.get(Move, source.id) is not None:
        raise Problem("not_ready", f"Vm {source.name!r} is on its way to another host.", "Wait for the end of its job.")
    kept = None
    if new.snapshot is not None:
        kept = session.scalar(select(Snapshot).where(Snapshot.vm_id == source.id, Snapshot.name == new.snapshot))
        if kept is None:
            raise not_found("snapshot", new.snapshot)
    if source.state in ("running", "paused") and (kept is None or kept.mode != "external"):
        text = f"Vm {source.name!r} is {source.state}, and a copy of disks that are written to meanwhile is broken."
        hint = "Stop it first, name an external snapshot of it, or make a fresh one like it."
        raise Problem("conflict", text, hint)
    further = [each["serial"] for each in _own_disks(source)]
    if new.mode == "linked" and (source.image_id is None or further):
        which = f"The disk {further[0]!r}" if further else "The disk"
        text = f"{which} of vm {source.name!r} lies over no image that both could share."
        raise Problem("invalid", text, "Make a full clone.", errors=[{"field": "mode", "message": "no image to share"}])


def _own_disks(source: Vm) -> list[dict[str, Any]]:
    """Return the further disks that a clone gets copies of; the others are used by both."""
    return [each for each in source.attached if not (each["read_only"] or each["shareable"])]


def _placed(session: Session, source: Vm, new: NewClone, name: str) -> dict[str, Any]:
    """Return why the clone goes to its source's host, which must have room for it. Raises Problem `no_capacity`."""
    request = {
        "id": name,
        "vcpus": source.vcpus,
        "memory_bytes": source.promised_memory_bytes,
        "disks": [
            {"pool": source.pool, "size_bytes": source.disk_bytes, "overlay": new.mode == "linked"},
            *(
                {"pool": each["pool"], "size_bytes": each["size_bytes"] or 0, "overlay": False}
                for each in _own_disks(source)
            ),
        ],
        "zone": source.zone.name,
        "host": source.host.name,
    }
    policy = creation.named(source.policy)
    decision = placement.place(capacity.state(session, source.zone, policy), [request], policy, explain=True)
    if not decision["fits"]:
        raise creation.no_room(decision)
    why = dict(decision["placements"][0]["explanation"])
    because = f"the disks of {source.name} are there and are copied inside their pool"
    return {**why, "text": f"{name} is made on {source.host.name}, because {because}; {why['text']}"}


def _reserve(
    session: Session,
    who: Principal,
    source: Vm,
    new: NewClone,
    *,
    number: int,
    name: str,
    explanation: dict[str, Any],
) -> Vm:
    same = ("flavor_id", "flavor", "image", "vcpus", "memory_bytes", "max_vcpus", "max_memory_bytes", "disk_bytes")
    vm = creation.new_row(
        session,
        who,
        source.host,
        number=number,
        name=name,
        # A full copy needs the image no more: it may go.
        image_id=source.image_id if new.mode == "linked" else None,
        pool=source.pool,
        policy=source.policy,
        explanation=explanation,
        **{column: getattr(source, column) for column in same},
    )
    for position, card in enumerate(source.addresses):
        addresses.reserve(session, vm, card.network, new.address if position == 0 else None, card.filter)
    secret = None
    if new.user_data is not None:
        secret = secrets.keep(session, who, "user_data", new.user_data, vm.id)
    vm.spec = _spec(source, vm, who, new, secret)
    session.flush()
    return vm


def _spec(source: Vm, vm: Vm, who: Principal, new: NewClone, secret: str | None) -> dict[str, Any]:
    """Return the machine as module `vm` takes it, for later changes: like the source, but for what is its own."""
    first = (source.spec.get("disks") or [{}])[0]
    return {
        **{key: value for key, value in source.spec.items() if key not in ("autostart", "links_down")},
        "name": vm.libvirt_name,
        "uuid": vm.uuid,
        "state": "running" if new.start else "present",
        "disks": [{**first, "name": f"{volume_prefix(vm.libvirt_name, vm.uuid)}root", "pool": vm.pool}],
        "networks": [creation.nic(address) for address in vm.addresses],
        "cloud_init": {
            "hostname": creation.host_name(vm.name),
            "ssh_keys": _keys(source, new),
            **({"user_data_src": {"$secret": secret}} if secret else {}),
        },
        "metadata": {**creation.metadata(vm, who), "attempt": ATTEMPT},
    }


def _submit(session: Session, who: Principal, source: Vm, vm: Vm, new: NewClone) -> Job:
    by_dhcp = any(address.address is None for address in vm.addresses)
    wait_for = new.wait_for or ("address" if by_dhcp and new.start else "running")
    own = ("name", "uuid", "networks", "cloud_init", "metadata", "state")
    job = lifecycle.submit(
        session,
        "vm.clone",
        project_id=vm.project_id,
        owner_id=who.user_id,
        host_ids=[source.host_id],
        variables={
            "virtfleet_vm": actions.reference(source),
            "virtfleet_clone": {
                **{name: vm.spec[name] for name in own},
                "mode": new.mode,
                **({"snapshot": new.snapshot} if new.snapshot is not None else {}),
            },
            "virtfleet_wait_for": wait_for,
            "virtfleet_timeout": TIMEOUT_SECONDS,
        },
        subjects=[{"type": "vm", "id": each.id, "name": each.name} for each in (vm, source)],
        context={"all_or_nothing": False, "wait_for": wait_for, "pinned": True, "vms": {vm.libvirt_name: vm.id}},
        exclusive=[f"vm:{vm.id}", f"vm:{source.id}"],
        shared=lifecycle.host_slots([source.host_id]),
    )
    job.timeout = max(job.timeout, TIMEOUT_SECONDS + REST_SECONDS)
    _remember_source(job, source, new)
    vm.job_id = job.id
    session.flush()
    return job


def _remember_source(job: Job, source: Vm, new: NewClone) -> None:
    if new.delete_source:
        job.context = {**job.context, "delete_source": source.id}


def settle(vm: Vm, source: Vm | None, disks: Sequence[Mapping[str, Any]]) -> None:
    """Note the further disks of a clone that was made: those of its own by their new names, the others are shared."""
    names = {disk["serial"]: disk["name"] for disk in disks}
    if source is not None:
        vm.attached = [{**each, "volume": names.get(each["serial"], each["volume"])} for each in source.attached]


def replace(session: Session, job: Job) -> None:
    """Delete the machine that a clone was to replace, now that the clone is there."""
    source = session.get(Vm, job.context["delete_source"])
    if source is not None and source.state not in ("building", "deleting", "missing"):
        actions.delete(session, Principal(job.owner_id, "", job.project_id, "", frozenset()), source)
