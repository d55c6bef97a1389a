"""libvirt's network filters of a host: defined, changed and removed by jobs."""

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import nwfilter_rules
from sqlalchemy.orm import Session

from virtfleet.jobs import kinds
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Host, Job
from virtfleet.services import host_objects
from virtfleet.services.auth import Principal

NONE = "none"
"""The filter of a card that has none."""


def of(host: Host) -> list[str]:
    """Return the names of a host's filters as they were last seen."""
    return list(host.info.get("nwfilters") or [])


def check_name(name: str) -> str:
    """Return the name of a filter. Raises Problem `invalid` for what cannot be one."""
    return str(host_objects.usable("filter", lambda: nwfilter_rules.check_filter_name(name)))


def define(session: Session, who: Principal, host: Host, name: str, wanted: Mapping[str, Any]) -> Job:
    """Make the job that defines a filter, or changes the one of that name. Raises Problem.

    What is None in `wanted` stays as it is: with nothing in it, the job only tells the filter's rules.
    """
    check_name(name)
    given = {key: value for key, value in wanted.items() if value is not None}
    if "rules" in given:
        goal = f"define network filter {name}"
        host_objects.usable("rules", lambda: nwfilter_rules.checked(given["rules"], goal))
        given["rules"] = [{key: value for key, value in rule.items() if value is not None} for rule in given["rules"]]
    variables = {"virtfleet_nwfilter": {"name": name, **given}}
    return host_objects.submit(
        session, who, host, "nwfilter.define", key=f"nwfilter:{name}", variables=variables, about=name
    )


def remove(session: Session, who: Principal, host: Host, name: str) -> Job:
    """Make the job that removes a filter; it fails while machines or other filters use it. Raises Problem."""
    check_name(name)
    variables = {"virtfleet_nwfilter": {"name": name}}
    return host_objects.submit(
        session, who, host, "nwfilter.remove", key=f"nwfilter:{name}", variables=variables, about=name
    )


@kinds.finisher("nwfilter.define")
@kinds.finisher("nwfilter.remove")
def settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note which filters there are now."""
    told = host_objects.told(session, job, outcome)
    if told is None:
        return
    host, found = told
    name = job.context["about"]
    known = {*of(host)} - {name} | ({name} if found.get("nwfilter") else set())
    host_objects.note(session, host, "nwfilters", sorted(known))
