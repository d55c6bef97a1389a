"""libvirt's own networks of a host: defined, changed and removed by jobs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.network_definition import wanted_definition
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from virtfleet import clock, names
from virtfleet.errors import Problem, not_found
from virtfleet.jobs import kinds
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import Address, Host, Job, Network, Vm
from virtfleet.services import host_objects
from virtfleet.services.auth import Principal

DEFINITION = ("bridge", "address", "domain", "dhcp", "dns")
"""What a network has only when its mode is said."""


def of(host: Host) -> list[dict[str, Any]]:
    """Return a host's networks as they were last seen; moments are RFC 3339."""
    return [{**each, "leases": [_lease(lease) for lease in each.get("leases", [])]} for each in _seen(host)]


def find(host: Host, name: str) -> dict[str, Any]:
    """Return one of them. Raises Problem `not_found`."""
    found = next((each for each in of(host) if each["name"] == name), None)
    if found is None:
        raise not_found("network", name)
    return found


def define(session: Session, who: Principal, host: Host, name: str, wanted: Mapping[str, Any]) -> Job:
    """Make the job that defines a network, or changes the one of that name to be so. Raises Problem.

    `wanted` is as module network takes it; what is left out the network does not have.
    """
    names.check(name, "network")
    given = {key: value for key, value in wanted.items() if value is not None}
    definition = {key: given[key] for key in DEFINITION if key in given}
    if "mode" in given:
        host_objects.usable("mode", lambda: wanted_definition(name, given["mode"], **definition))
    elif definition:
        text = f"Nothing says of which mode network {name!r} is, only what else it has."
        raise Problem("invalid", text, "Give its mode.", errors=[{"field": "mode", "message": "missing"}])
    variables = {"virtfleet_network": {"name": name, **given}}
    return host_objects.submit(
        session, who, host, "network.define", key=f"network:{name}", variables=variables, about=name
    )


def remove(session: Session, who: Principal, host: Host, name: str, *, force: bool) -> Job:
    """Make the job that removes a network. Raises Problem `in_use` while machines of ours on the host are joined to it.

    With `force` it goes all the same: its machines are cut off.
    """
    names.check(name, "network")
    users = session.scalar(
        select(func.count(Address.id.distinct()))
        .join(Network, Network.id == Address.network_id)
        .join(Vm, Vm.id == Address.vm_id)
        .where(Network.kind == "nat", Network.source == name, Vm.host_id == host.id)
    )
    if users and not force:
        text = f"{users} cards of machines on host {host.name!r} are joined to network {name!r}."
        raise Problem("in_use", text, "Delete or detach them first.")
    variables = {"virtfleet_network": {"name": name, "force": force}}
    return host_objects.submit(
        session, who, host, "network.remove", key=f"network:{name}", variables=variables, about=name
    )


@kinds.finisher("network.define")
@kinds.finisher("network.remove")
def settled(session: Session, job: Job, outcome: Outcome) -> None:
    """Note how the network is now."""
    told = host_objects.told(session, job, outcome)
    if told is None:
        return
    host, found = told
    others = [each for each in _seen(host) if each["name"] != job.context["about"]]
    now = [{**found["network"], "leases": found.get("leases") or []}] if found.get("network") else []
    host_objects.note(session, host, "networks", sorted([*others, *now], key=lambda each: str(each["name"])))


def _seen(host: Host) -> list[dict[str, Any]]:
    return list(host.info.get("networks") or [])


def _lease(lease: Mapping[str, Any]) -> dict[str, Any]:
    return {**lease, "expires_at": clock.rfc3339(datetime.fromtimestamp(lease["expires_at"], UTC))}
