"""Migrations that were broken off: where the machine is then, and what is left of it on the other host.

The source's libvirt leads a migration. So one whose run was ended may go on, or have come to its end, and nobody has
said which. A job of its own (`vm.mend`) ends it, clears up, and says where the machine is. Until then it keeps the
machine to itself: it goes before the jobs that wait for the machine already, and is tried until it is done. As soon as
it is certain that the machine is where it was, the machine is free again, also while the other host does not answer;
what is left there is removed when it does.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.jobs import claim, lifecycle
from virtfleet.jobs.kinds import Outcome, Revision
from virtfleet.models import Host, Job, Move, Vm
from virtfleet.services.vms import migration

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 120.0
"""How long it rests after a try that failed: twice as long each time."""
NOT_BEGUN = ("host_unreachable", "host_frozen")
"""Codes of a first run that could not even look; when it had begun something it says `on`, too."""


def is_wanted(job: Job, outcome: Outcome, vm: Vm, item: Mapping[str, Any] | None) -> bool:
    """Tell whether a migration's run leaves open where the machine is, or has left something of it on its target.

    `item` is what the run says of the machine.
    """
    if job.attempt == 0 or (item is not None and not item.get("failed")):
        return False
    first = job.attempt == 1
    if item is None:
        stayed = {each["vm"] for result in outcome.result.values() for each in (result or {}).get("left") or []}
        return not (first and vm.libvirt_name in stayed)
    if "on" not in item:
        return not (first and (item.get("error") or {}).get("code") in NOT_BEGUN)
    return item["on"] != "source" or not item.get("cleaned", True)


def begin(session: Session, vm: Vm, job: Job, error: Mapping[str, Any] | None) -> Job:
    """Make the job that clears up after a migration's job; `error` is what the machine's row is to say afterwards."""
    move = session.get_one(Move, vm.id)
    target = session.get_one(Host, move.target_id)
    mending = lifecycle.submit(
        session,
        "vm.mend",
        project_id=vm.project_id,
        owner_id=job.owner_id,
        host_ids=[vm.host_id, target.id],
        variables={"virtfleet_vms": [migration.reference(vm, vm.host, target)]},
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name}],
        context={
            "vms": {vm.libvirt_name: vm.id},
            "source": vm.host_id,
            "target": target.id,
            "migration": job.id,
            "explanation": job.context["explanations"].get(vm.id),
            "error": dict(error) if error else None,
        },
        exclusive=[f"vm:{vm.id}"],
        shared=lifecycle.host_slots([vm.host_id, target.id]),
        first=True,
    )
    move.job_id = mending.id
    if vm.job_id == job.id:
        vm.job_id = mending.id
    vm.error = {
        "code": "mending",
        "message": f"Its migration to host {target.name} was broken off (job {job.id}). Job {mending.id} finds out "
        "where it is and clears up; no other job touches the machine until then.",
        "hint": f"See: virtfleet job get {mending.id}.",
    }
    session.flush()
    return mending


def holds(session: Session, vm: Vm, job: Job) -> bool:
    """Tell whether the machine is still kept for this job."""
    move = session.get(Move, vm.id)
    return move is not None and move.job_id == job.id


def settle(session: Session, vm: Vm, job: Job, on: str | None) -> None:
    """Note on which side a machine is (None: nobody knows, the row stays as it is), and free it for other jobs."""
    if on == "target":
        vm.host_id = job.context["target"]
        vm.explanation = job.context["explanation"] or vm.explanation
    if on is not None:
        vm.error = job.context["error"]
        vm.observed_at = clock.now()
    session.delete(session.get_one(Move, vm.id))
    claim.give_way(session, job)
    session.flush()
    session.refresh(vm)


def say_why(vm: Vm, error: Mapping[str, Any] | None) -> None:
    """Add to the machine's error why the last try failed."""
    if vm.error is not None and vm.error.get("code") == "mending" and error:
        known = vm.error["message"].partition(" The last try: ")[0]
        vm.error = {**vm.error, "message": f"{known} The last try: {error['message']}"}


def again(session: Session, vm: Vm, job: Job, outcome: Outcome) -> Revision:
    """Return how the job is to be tried once more, after a rest."""
    pause = min(FIRST_PAUSE_SECONDS * 2 ** min(job.attempt - 1, 10), LONGEST_PAUSE_SECONDS)
    target = session.get_one(Host, job.context["target"])
    # Once freed, it may have gone elsewhere: what is left on the target is then seen from there.
    source = vm.host if vm.host_id != target.id else session.get_one(Host, job.context["source"])
    mine = holds(session, vm, job)
    lock = f"vm:{vm.id}"
    why = (outcome.error or {}).get("message", "")
    rest = "it is tried again" if mine else f"the machine is free, and what is left on {target.name} is removed later"
    return Revision(
        reason=f"{why.rstrip('.')}: {rest} after {pause:g} s.",
        host_ids=(source.id, target.id),
        variables={**job.variables, "virtfleet_vms": [migration.reference(vm, source, target)]},
        exclusive=(lock,) if mine else (),
        # A shared lock of one has no place in the line: others need not wait for it while it rests.
        shared=(*lifecycle.host_slots([source.id, target.id]), *(() if mine else ((lock, 1),))),
        not_before=clock.after(pause),
    )
