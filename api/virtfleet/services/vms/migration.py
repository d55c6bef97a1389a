"""Moving machines: where to, the room there reserved, the job written down; and that room given back at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, settings
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import PROGRESS, Revision
from virtfleet.models import Host, Image, Job, Move, Vm
from virtfleet.services import attachments, capacity, images, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find
from virtfleet.services.vms import creation

DEFAULT_TIMEOUT_SECONDS = 600.0
REST_SECONDS = 120.0
"""What a job gets besides the migrations themselves."""


@dataclass(frozen=True)
class Way:
    """How machines are moved. Bandwidth is bytes a second, times are seconds; None leaves the choice to libvirt."""

    live: bool = True
    copy_storage: bool = True
    bandwidth_bytes: int | None = None
    max_downtime: float | None = None
    auto_converge: bool = False
    post_copy: bool = False
    timeout: float = DEFAULT_TIMEOUT_SECONDS

    def variables(self) -> dict[str, Any]:
        """Return it as the playbooks take it."""
        given: dict[str, Any] = {
            "virtfleet_live": self.live,
            "virtfleet_copy_storage": self.copy_storage,
            "virtfleet_auto_converge": self.auto_converge,
            "virtfleet_post_copy": self.post_copy,
            "virtfleet_timeout": self.timeout,
            "virtfleet_progress_file": PROGRESS,
        }
        if self.bandwidth_bytes is not None:
            given["virtfleet_bandwidth"] = format_size(self.bandwidth_bytes)
        if self.max_downtime is not None:
            given["virtfleet_max_downtime"] = self.max_downtime
        return given


@dataclass(frozen=True)
class Step:
    """One machine's move; `explanation` is why it goes there."""

    vm: Vm
    target: Host
    explanation: Mapping[str, Any]


def migrate(
    session: Session, who: Principal, vm: Vm, *, host: str | None, came_from: str | None, way: Way
) -> tuple[Job, Step]:
    """Reserve room for a machine on another host, and make the job that moves it there. Raises Problem.

    Without `host` placement chooses. `came_from`, when given, must be the host that the machine is on.
    """
    if came_from is not None and find(session, Host, "host", came_from).id != vm.host_id:
        raise Problem(
            "conflict",
            f"Vm {vm.name!r} is not on host {came_from!r} but on {vm.host.name!r}.",
            f"Name that one: virtfleet vm migrate {vm.name} --from {vm.host.name}.",
            host=vm.host.name,
        )
    if reason := why_not(session, vm):
        raise Problem("not_ready", reason, "See: virtfleet vm show, virtfleet host show.")
    pin = find(session, Host, "host", host) if host is not None else None
    if pin is not None and pin.id == vm.host_id:
        raise Problem("conflict", f"Vm {vm.name!r} is on host {pin.name!r} already.", "Name another host, or none.")
    if pin is not None and pin.zone_id != vm.zone_id:
        text = f"Host {pin.name!r} is not in zone {vm.zone.name!r}, where vm {vm.name!r} and its network are."
        raise Problem("invalid", text, "Choose a host of that zone.", errors=[{"field": "host", "message": "zone"}])
    step = _place(session, vm, pin)
    job = submit(session, who, "vm.migrate", [step], way)
    job.context = {**job.context, "pinned": pin is not None}
    ledger.audit(session, who, "vm.migrate", vm.id, job.id)
    return job, step


def preflight(session: Session, who: Principal, vm: Vm, *, copy_storage: bool) -> Job:
    """Make the job that finds out which of the zone's hosts could take a machine. Raises Problem."""
    if reason := why_not(session, vm):
        raise Problem("not_ready", reason, "See: virtfleet vm show, virtfleet host show.")
    rows = capacity.hosts_of(session, vm.zone)
    job = lifecycle.submit(
        session,
        "vm.preflight",
        project_id=vm.project_id,
        owner_id=who.user_id,
        host_ids=[vm.host_id, *(host.id for host in rows if host.id != vm.host_id)],
        variables={
            "virtfleet_vms": [{"name": vm.libvirt_name, "uuid": vm.uuid}],
            "virtfleet_copy_storage": copy_storage,
        },
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name}],
        exclusive=[f"vm:{vm.id}"],
    )
    ledger.audit(session, who, "vm.preflight", vm.id, job.id)
    return job


def why_not(session: Session, vm: Vm) -> str | None:
    """Return why a machine cannot be moved now, as a sentence, or None."""
    if vm.state in ("building", "deleting", "missing"):
        return f"Vm {vm.name!r} is {vm.state}."
    if vm.host.state != "up":
        return f"Host {vm.host.name!r}, where vm {vm.name!r} is, does not answer."
    if reason := attachments.why_it_stays(session, vm):
        return reason
    move = session.get(Move, vm.id)
    if move is not None:
        target = session.get_one(Host, move.target_id)
        if session.get_one(Job, move.job_id).kind == "vm.mend":
            return (
                f"The migration of vm {vm.name!r} to {target.name!r} was broken off, and job {move.job_id} clears up."
            )
        return f"Vm {vm.name!r} is on its way to host {target.name!r} already, by job {move.job_id}."
    return None


def _place(session: Session, vm: Vm, pin: Host | None, exclude: Sequence[str] = ()) -> Step:
    state = capacity.state(session, vm.zone)
    request = {
        **capacity.needs(vm),
        **({"disks": []} if capacity.shares(vm.host, vm.pool) else {}),
        "id": vm.name,
        "host": pin.name if pin is not None else None,
        "exclude": [vm.host.name, *exclude],
    }
    decision = placement.place(state, [request], creation.named(vm.policy), explain=True)
    if not decision["fits"]:
        raise creation.no_room(decision)
    placed = decision["placements"][0]
    target = session.scalars(select(Host).where(Host.name == placed["host"])).one()
    return Step(vm, target, placed["explanation"])


def submit(
    session: Session,
    who: Principal,
    kind: str,
    steps: Sequence[Step],
    way: Way,
    *,
    staying: Sequence[str] = (),
    subjects: Sequence[Mapping[str, Any]] = (),
) -> Job:
    """Reserve the targets' room and make the job that moves machines, in the order given."""
    hosts = list(dict.fromkeys([*(step.vm.host_id for step in steps), *(step.target.id for step in steps)]))
    moves = [reference(step.vm, step.vm.host, step.target) for step in steps]
    ratios = [creation.vcpu_ratio(step.target) for step in steps]
    needs = list(dict.fromkeys(job_id for step in steps for job_id in _bases(session, who, step)))
    job = lifecycle.submit(
        session,
        kind,
        project_id=steps[0].vm.project_id,
        owner_id=who.user_id,
        host_ids=hosts,
        variables={
            "virtfleet_vms": moves,
            **way.variables(),
            **({"virtfleet_staying": list(staying)} if staying else {}),
            "virtfleet_vcpu_ratio": max(ratios),
            "virtfleet_memory_ratio": settings.load().memory_ratio,
        },
        subjects=[*subjects, *({"type": "vm", "id": step.vm.id, "name": step.vm.name} for step in steps)],
        context={
            "vms": {step.vm.libvirt_name: step.vm.id for step in steps},
            "explanations": {step.vm.id: dict(step.explanation) for step in steps},
        },
        exclusive=[f"vm:{step.vm.id}" for step in steps],
        shared=lifecycle.host_slots(hosts),
        needs=needs,
    )
    job.timeout = max(job.timeout, way.timeout * len(steps) + REST_SECONDS)
    for step in steps:
        session.add(Move(vm_id=step.vm.id, job_id=job.id, target_id=step.target.id))
        step.vm.job_id = job.id
    session.flush()
    return job


def reference(vm: Vm, source: Host, target: Host) -> dict[str, str]:
    """Return a machine on its way as the playbooks take it."""
    return {"name": vm.libvirt_name, "uuid": vm.uuid, "from": source.name, "to": target.name}


def elsewhere(session: Session, vm: Vm, job: Job, item: Mapping[str, Any]) -> Revision | None:
    """Return how a migration whose target turned out to be unfit goes to the next best host; None when none is left.

    What the refused hosts were refused for joins the explanation. A target that somebody named is not replaced.
    """
    move = session.get(Move, vm.id)
    reasons = (item.get("verdict") or {}).get("reasons")
    if not reasons or item.get("on") != "source" or job.context.get("pinned", True) or move is None:
        return None
    refused = session.get_one(Host, move.target_id)
    tried = {**job.context.get("refused", {}), refused.name: reasons}
    session.delete(move)
    session.flush()
    try:
        step = _place(session, vm, None, exclude=list(tried))
    except Problem:
        return None
    told = f"{refused.name} cannot take it: {'; '.join(reason['text'] for reason in reasons)}"
    others = [each for each in step.explanation["rejected"] if each["host"] not in tried]
    explanation = {
        **step.explanation,
        "text": f"{step.explanation['text']}; {told}",
        "rejected": [*others, *({"host": name, "reasons": why} for name, why in tried.items())],
    }
    job.context = {**job.context, "refused": tried, "explanations": {vm.id: explanation}}
    session.add(Move(vm_id=vm.id, job_id=job.id, target_id=step.target.id))
    session.flush()
    owner = Principal(job.owner_id, "", job.project_id, "", frozenset())
    hosts = (vm.host_id, step.target.id)
    ratio = creation.vcpu_ratio(step.target)
    moves = [reference(vm, vm.host, step.target)]
    return Revision(
        reason=f"{told}. Vm {vm.name} goes to {step.target.name} instead.",
        host_ids=hosts,
        variables={**job.variables, "virtfleet_vms": moves, "virtfleet_vcpu_ratio": ratio},
        exclusive=(f"vm:{vm.id}",),
        shared=tuple(lifecycle.host_slots(hosts)),
        needs=tuple(_bases(session, owner, step)),
    )


def _bases(session: Session, who: Principal, step: Step) -> list[str]:
    """Return the job that brings the base of the machine's disk to the target, if one is needed."""
    image = session.get(Image, step.vm.image_id) if step.vm.image_id else None
    if image is None or capacity.shares(step.target, step.vm.pool):
        return []
    needed = images.ensure_copy(session, who, image, step.target, step.vm.pool, shared=False)
    return [needed] if needed else []


def settle(session: Session, vm: Vm, job: Job, item: Mapping[str, Any] | None) -> bool:
    """Note where a machine is after its move, and give back the room that was kept for it; False when it had none.

    Of a machine of which the run can say nothing the row stays as it is: the observer sees where it is.
    """
    move = session.get(Move, vm.id)
    if move is None or move.job_id != job.id:
        return False
    if item is not None and (not item.get("failed") or item.get("on") == "target"):
        vm.host_id = move.target_id
        vm.explanation = job.context["explanations"].get(vm.id, vm.explanation)
        vm.observed_at = clock.now()
    session.delete(move)
    session.flush()
    session.refresh(vm)
    return True
