"""Plans over the fleet as it was last seen: balance, consolidate, drain, what if. Nothing is carried out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, settings
from virtfleet.errors import Problem
from virtfleet.models import UNFINISHED, Host, Job, Project, Vm, Zone
from virtfleet.services import capacity, zones
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find
from virtfleet.services.vms import NewVm, wanted

AMPLE_BYTES = 2**60
"""The size of the pools of a host that is only thought of, when nobody says how large they are."""
MOST_ADDED = 1000
"""The most hosts, and the most machines, that may be thought of at once."""

BALANCE = frozenset({"enough", "min_gain", "per_gib", "per_move", "max_moves", "per_host", "keep_n_plus_one"})
CONSOLIDATE = frozenset({"rule", "least_hosts", "choices", "max_moves", "per_host", "keep_n_plus_one"})
DRAIN = frozenset({"hosts", "policy", "per_host", "keep_n_plus_one"})
WHAT_IF = frozenset({"policy", "lose_hosts", "add_hosts", "remove_vms", "add_vms"})
OPTIONS = {"balance": BALANCE, "consolidate": CONSOLIDATE, "drain": DRAIN, "what-if": WHAT_IF}
"""What may be said beside `kind` and `zone`."""

HELD_BY_STATE = {
    "building": "it is being created",
    "deleting": "it is being deleted",
    "missing": "its host no longer has it",
    "unknown": "nobody knows its state",
}


@dataclass
class Draft:
    """Everything that a plan is drawn from, read in one transaction."""

    kind: str
    zone: str
    state: dict[str, Any]
    options: dict[str, Any]
    hosts: list[str] = field(default_factory=list)
    event: dict[str, Any] = field(default_factory=dict)
    policy: Any = placement.DEFAULT_POLICY
    who: dict[str, dict[str, str]] = field(default_factory=dict)
    """Machines by their names in the plan: {id, name, project}."""
    observed_at: str | None = None
    """When the host that was seen longest ago of those that are up was seen."""
    notes: list[str] = field(default_factory=list)


def prepare(session: Session, who: Principal, given: Mapping[str, Any]) -> Draft:
    """Read what a plan needs; `given` is a `PlanIn` as a mapping. Raises Problem `invalid`, `not_found` or others."""
    kind = given["kind"]
    options = {key: value for key, value in given.items() if key not in ("kind", "zone")}
    for key in sorted(options.keys() - OPTIONS[kind]):
        of = ", ".join(name for name, known in OPTIONS.items() if key in known)
        raise _invalid(key, f"{key} is no option of {kind}: it belongs to {of}.")
    if kind == "drain" and "hosts" not in options:
        raise _invalid("hosts", "Which hosts are to be drained is not said.")
    named = [find(session, Host, "host", ref) for ref in options.pop("hosts", []) + options.pop("lose_hosts", [])]
    zone = _zone(session, given.get("zone"), named)
    rows = capacity.hosts_of(session, zone)
    draft = Draft(kind, zone.name, {**capacity.state(session, zone), "vms": []}, options)
    draft.policy = options.pop("policy", settings.load().policy)
    draft.hosts = list(dict.fromkeys(host.name for host in named))
    _list_machines(session, draft, rows)
    seen = [host.observed_at for host in rows if host.state == "up" and host.observed_at is not None]
    draft.observed_at = clock.rfc3339(min(seen)) if seen else None
    if kind == "what-if":
        draft.event = _event(session, who, draft, options)
    return draft


def draw(draft: Draft) -> dict[str, Any]:
    """Return the plan, explained. Raises Problem `invalid` for an option that placement does not understand."""
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "balance": lambda: placement.rebalance(draft.state, draft.options),
        "consolidate": lambda: placement.consolidate(draft.state, draft.options),
        "drain": lambda: placement.drain(draft.state, draft.hosts, draft.policy, options=draft.options),
        "what-if": lambda: placement.what_if(draft.state, draft.event, draft.policy),
    }
    try:
        plan = work[draft.kind]()
    except placement.SchemaError as error:
        raise _invalid(error.path, f"{error.path}: {error.problem}.") from error
    for part in ("moves", "left", "restarted", "homeless"):
        for each in plan.get(part, ()):
            each["machine"] = draft.who[each["vm"]]
    return {
        **plan,
        "kind": draft.kind,
        "zone": draft.zone,
        "observed_at": draft.observed_at,
        "notes": draft.notes,
        "explanation": placement.explain(plan),
    }


def _invalid(name: str, detail: str) -> Problem:
    hint = "See /api/v1/docs for what each kind of plan takes, and docs/placement.md for what it means."
    return Problem("invalid", detail, hint, errors=[{"field": name, "message": detail}])


def _zone(session: Session, ref: str | None, named: Sequence[Host]) -> Zone:
    """Return the zone asked for, or that of the hosts that were named. Raises Problem."""
    if ref is None and named:
        zone: Zone = named[0].zone
    else:
        zone = zones.choose(session, ref)
    for host in named:
        if host.zone_id != zone.id:
            raise _invalid("zone", f"Host {host.name!r} is in zone {host.zone.name!r}, not in {zone.name!r}.")
    return zone


def _list_machines(session: Session, draft: Draft, rows: Sequence[Host]) -> None:
    """Write the machines that we may move into the state, and a note for each host with others on it."""
    on = {host.id: host for host in rows}
    unfinished = {
        subject["id"] for subjects in session.scalars(_subjects_at_work()) for subject in subjects if "id" in subject
    }
    projects = {row.id: row.name for row in session.scalars(select(Project))}
    for vm in session.scalars(select(Vm).where(Vm.host_id.in_(on)).order_by(Vm.number)):
        held = HELD_BY_STATE.get(vm.state) or ("a job is at work on it" if vm.id in unfinished else None)
        draft.who[vm.libvirt_name] = {
            "id": vm.id,
            "name": vm.label or vm.name,
            "project": projects.get(vm.project_id, vm.project_id),
        }
        draft.state["vms"].append(
            {
                "id": vm.libvirt_name,
                "host": on[vm.host_id].name,
                **capacity.needs(vm),
                "stays": held,
            }
        )
    for host in rows:
        if host.unmanaged.get("vcpus"):
            draft.notes.append(f"{host.name} has machines that are not ours: they take room, and no plan moves them")


def _subjects_at_work() -> Any:
    return select(Job.subjects).where(Job.state.in_(UNFINISHED))


def _event(session: Session, who: Principal, draft: Draft, options: dict[str, Any]) -> dict[str, Any]:
    """Return an event as placement takes it. Raises Problem."""
    removed = [find(session, Vm, "vm", ref, who).libvirt_name for ref in options.get("remove_vms", [])]
    for name in removed:
        if name not in draft.who:
            raise _invalid("remove_vms", f"Machine {name!r} is not in zone {draft.zone!r}.")
    for key, what in (("add_hosts", "hosts"), ("add_vms", "machines")):
        count = sum(each["count"] for each in options.get(key, []))
        if count > MOST_ADDED:
            raise _invalid(key, f"{count} {what} are too many: at most {MOST_ADDED} can be thought of at once.")
    return {
        "lose_hosts": draft.hosts,
        "add_hosts": _added_hosts(draft, options.get("add_hosts", [])),
        "remove_vms": list(dict.fromkeys(removed)),
        "add_vms": _added_vms(session, who, draft, options.get("add_vms", [])),
    }


def _free_names(stem: str, taken: set[str], count: int) -> list[str]:
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        if f"{stem}-{number}" not in taken:
            found.append(f"{stem}-{number}")
    return found


def _added_hosts(draft: Draft, given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return hosts that are only thought of: with the pools that the zone's hosts have, and the fleet's ratios."""
    chosen = settings.load()
    known = {name: pool for host in draft.state["hosts"] for name, pool in host["pools"].items()}
    known.setdefault(chosen.pool, {"shared": False})
    wishes = [each for each in given for _host in range(each["count"])]
    called = _free_names("new-host", {host["name"] for host in draft.state["hosts"]}, len(wishes))
    return [
        {
            "name": name,
            "zone": draft.zone,
            "vcpus": {"total": each["vcpus"], "ratio": chosen.vcpu_ratio},
            "memory": {"total_bytes": each["memory"], "ratio": chosen.memory_ratio},
            "pools": {
                pool: facts if facts["shared"] else {"total_bytes": each.get("disk", AMPLE_BYTES)} | _ratio()
                for pool, facts in known.items()
            },
        }
        for name, each in zip(called, wishes, strict=True)
    ]


def _ratio() -> dict[str, float]:
    return {"ratio": settings.load().disk_ratio}


def _added_vms(
    session: Session, who: Principal, draft: Draft, given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    requests = []
    for each in given:
        wish = NewVm(
            "new",
            flavor=each.get("flavor"),
            vcpus=each.get("vcpus"),
            memory_bytes=each.get("memory"),
            disk_bytes=each.get("disk"),
        )
        size, _flavor = wanted.size_of(session, who, wish)
        request = {
            "vcpus": size.vcpus,
            "memory_bytes": size.memory_bytes,
            "disks": [{"pool": each.get("pool") or settings.load().pool, "size_bytes": size.disk_bytes}],
            "zone": draft.zone,
        }
        requests += [request] * each["count"]
    called = _free_names("new-vm", set(draft.who), len(requests))
    return [{"id": name, **request} for name, request in zip(called, requests, strict=True)]
