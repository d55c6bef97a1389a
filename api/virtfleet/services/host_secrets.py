"""Secrets that a host's libvirt keeps for volumes, Ceph, iSCSI, TLS and virtual TPMs: kept and forgotten by jobs.

A value goes the way of all secrets: encrypted here, a file that only the attempt sees, and then libvirt's.
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.secret_usage import check_usage
from sqlalchemy import delete
from sqlalchemy.orm import Session

from virtfleet.errors import not_found
from virtfleet.jobs import kinds
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job, Secret
from virtfleet.services import host_objects, secrets
from virtfleet.services.auth import Principal


def of(host: Host) -> list[dict[str, Any]]:
    """Return which secrets a host keeps, `{uuid, usage, usage_id}`, as they were last seen."""
    return list(host.info.get("secrets") or [])


def keep(session: Session, who: Principal, host: Host, wanted: Mapping[str, Any], value: str | None) -> Job:
    """Make the job that keeps a secret, or changes the one that is for that use. Raises Problem.

    `wanted` is as module secret takes it; what is None in it, and a `value` that is, stays as it is.
    """
    usage, usage_id = wanted["usage"], wanted["usage_id"]
    host_objects.usable("usage_id", lambda: check_usage(usage, usage_id))
    given = {key: each for key, each in wanted.items() if each is not None}
    if value is not None:
        kept = secrets.keep(session, who, _purpose(host, usage, usage_id), value)
        given["value_src"] = {"$secret": kept}
    return _submit(session, who, host, "secret.define", given)


def forget(session: Session, who: Principal, host: Host, uuid: str) -> Job:
    """Make the job that has libvirt forget a secret; it fails while a machine or a pool needs it. Raises Problem."""
    found = next((each for each in of(host) if each["uuid"] == uuid.lower()), None)
    if found is None:
        raise not_found("host secret", uuid)
    return _submit(session, who, host, "secret.remove", {key: found[key] for key in ("usage", "usage_id")})


def _submit(session: Session, who: Principal, host: Host, kind: str, secret: Mapping[str, Any]) -> Job:
    about = {key: secret[key] for key in ("usage", "usage_id")}
    key = f"secret:{about['usage']}:{about['usage_id']}"
    variables = {"virtfleet_secret": dict(secret)}
    return host_objects.submit(session, who, host, kind, key=key, variables=variables, about=about)


def _purpose(host: Host, usage: str, usage_id: str) -> str:
    return f"{usage}:{usage_id}@{host.id}"


def drop_values(session: Session, host: Host) -> None:
    """Forget the values that were ever given for a host: it is no longer ours, and none of them can be replayed."""
    session.execute(delete(Secret).where(Secret.purpose.endswith(f"@{host.id}")))


@kinds.finisher("secret.define")
@kinds.finisher("secret.remove")
def settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note which secrets there are now. What libvirt has forgotten is forgotten here, too."""
    told = host_objects.told(session, job, outcome)
    if told is None:
        return
    host, found = told
    about, now = job.context["about"], found.get("secret")
    others = [each for each in of(host) if {**each, "uuid": None} != {**about, "uuid": None}]
    kept = [{"uuid": now["uuid"], **about}] if now else []
    order = sorted([*others, *kept], key=lambda each: (each["usage"], each["usage_id"]))
    host_objects.note(session, host, "secrets", order)
    if now is None:
        session.execute(delete(Secret).where(Secret.purpose == _purpose(host, **about)))
