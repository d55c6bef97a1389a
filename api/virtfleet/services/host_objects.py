"""What libvirt keeps on a host beside machines and volumes (networks, filters, secrets): changed by jobs, told as seen.

A list is the host's as the observer last saw it; what a job has done meanwhile is written into it at the job's end.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job
from virtfleet.services import ledger
from virtfleet.services.auth import Principal

TOLD_AT = "told_at"
"""In a host's info: when a job last wrote into the lists, in seconds since the epoch. Older readings do not count."""
LISTS = ("networks", "nwfilters", "secrets")
"""The lists in a host's info that jobs write into."""


def submit(
    session: Session, who: Principal, host: Host, kind: str, *, key: str, variables: Mapping[str, Any], about: Any
) -> Job:
    """Make the job that changes one such thing; `key` names it among all that are locked, `about` at the job's end."""
    job = lifecycle.submit(
        session,
        kind,
        project_id=who.project_id,
        owner_id=who.user_id,
        host_ids=[host.id],
        variables=variables,
        subjects=[{"type": "host", "id": host.id, "name": host.name}],
        context={"about": about},
        exclusive=[f"{key}@{host.id}"],
        shared=lifecycle.host_slots([host.id]),
    )
    ledger.audit(session, who, kind, host.id, job.id)
    return job


def usable(what: str, check: Callable[[], Any]) -> Any:
    """Return what `check` returns. Raises Problem `invalid` for what a module would refuse; `what` is the field."""
    try:
        return check()
    except VirtfleetError as error:
        raise Problem("invalid", str(error), error.hint, errors=[{"field": what, "message": error.obstacle}]) from error


def told(session: Session, job: Job, outcome: Outcome) -> tuple[Host, Mapping[str, Any]] | None:
    """Return the host of a job that has done its work, and what the run says; None for any other."""
    host = session.get(Host, job.host_ids[0])
    found = outcome.result.get(host.name) if host is not None else None
    if host is None or outcome.state != "succeeded" or not found:
        return None
    return host, found


def note(session: Session, host: Host, name: str, items: list[Any]) -> None:
    """Write down what one of the lists of a host is now."""
    host.info = {**host.info, name: items, TOLD_AT: clock.now().timestamp()}
    host.generation += 1
    ledger.changed(session, "host", host.id, "updated", None, name=host.name, state=host.state)


def newer(known: Mapping[str, Any], read_at: float) -> dict[str, Any]:
    """Return what of a host's `known` info is newer than a reading that began at `read_at`, seconds since 1970."""
    if known.get(TOLD_AT, 0.0) <= read_at:
        return {}
    return {name: known[name] for name in (*LISTS, TOLD_AT) if name in known}
