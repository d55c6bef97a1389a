"""Creating machines: decide, reserve and write down the job, all in one writing transaction."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import names, settings
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.jobs import lifecycle
from virtfleet.jobs.kinds import ATTEMPT
from virtfleet.models import Host, Image, Job, Vm
from virtfleet.services import addresses, capacity, images, ledger, secrets
from virtfleet.services.auth import DEFAULT_PROJECT, Principal
from virtfleet.services.lookup import find
from virtfleet.services.vms import wanted
from virtfleet.services.vms.wanted import NewVm, Plan

WAIT_SECONDS = 120.0
"""How long a job waits for what was asked (running, address, agent), for each host."""


def create(session: Session, who: Principal, new: NewVm) -> tuple[Job, list[Vm]]:
    """Reserve machines and make the job that creates them; nothing is reserved when not all of them fit.

    Raises Problem: `invalid`, `not_found`, `not_ready`, `already_exists`, or `no_capacity` with every host's reasons.
    """
    wanted.check(new)
    plan = wanted.decide(session, who, new)
    numbers = [ledger.next_number(session, "vm") for _ in range(new.count)]
    called = choose_names(session, who, new, numbers)
    decision = decide(session, plan, called, pin=_pin(session, new, plan))
    if not decision["fits"]:
        raise no_room(decision)
    hosts = {host.name: host for host in capacity.hosts_of(session, plan.zone)}
    vms = []
    for number, name, placed in zip(numbers, called, _in_order(decision, called), strict=True):
        vms.append(_reserve(session, who, new, plan, number=number, name=name, placed=placed, hosts=hosts))
    capacity.remember_cursor(session, plan.zone, plan.policy_name, decision["cursor"])
    context = {"all_or_nothing": new.all_or_nothing, "wait_for": plan.wait_for, "pinned": new.host is not None}
    job = submit(session, who, vms, context)
    for vm in vms:
        ledger.audit(session, who, "vm.create", vm.id, job.id)
        ledger.changed(session, "vm", vm.id, "created", vm.project_id, name=vm.name, state=vm.state)
    return job, vms


def try_out(session: Session, who: Principal, new: NewVm) -> dict[str, Any]:
    """Return the decision that a create would come to now, explained; nothing is reserved. Raises Problem."""
    wanted.check(new)
    plan = wanted.decide(session, who, new)
    called = [new.name] if new.count == 1 else [f"{new.name}-{position}" for position in range(1, new.count + 1)]
    return decide(session, plan, called, pin=_pin(session, new, plan))


def decide(
    session: Session, plan: Plan, called: Iterable[str], *, pin: str | None, exclude: Sequence[str] = ()
) -> dict[str, Any]:
    """Ask placement where machines go: all of them, or none. Raises Problem `invalid` for a policy it cannot read."""
    state = capacity.state(session, plan.zone, plan.policy_name)
    requests = [plan.request(name, pin, exclude) for name in called]
    try:
        return placement.place(state, requests, plan.policy, explain=True, all_or_nothing=True)
    except placement.SchemaError as error:
        raise unusable_policy(error) from error


def unusable_policy(error: placement.SchemaError) -> Problem:
    """Return the problem of a policy that placement cannot read."""
    return Problem(
        "invalid",
        f"The policy cannot be used: {error}.",
        f"Use one of {', '.join(sorted(placement.NAMED))}, or a mapping of a name and options.",
        errors=[{"field": "policy", "message": str(error)}],
    )


def no_room(decision: Mapping[str, Any]) -> Problem:
    """Return the problem that says, for every host, why a machine does not fit."""
    # One that could have been placed alone is no reason.
    reasons = [each["explanation"] for each in decision["unplaced"]]
    first = next((why for why in reasons if not why["ranked"]), reasons[0])
    return Problem(
        "no_capacity",
        f"{first['text'][0].upper()}{first['text'][1:]}.",
        "Ask for less, delete machines, or add a host: virtfleet host add URI.",
        hosts=[
            {"host": each["host"], "reasons": [reason["text"] for reason in each["reasons"]]}
            for each in first["rejected"]
        ],
    )


def _pin(session: Session, new: NewVm, plan: Plan) -> str | None:
    if new.host is None:
        return None
    host = find(session, Host, "host", new.host)
    if host.zone_id != plan.zone.id:
        raise Problem("invalid", f"Host {host.name!r} is not in zone {plan.zone.name!r}.", "Leave one of them away.")
    return host.name


def _in_order(decision: Mapping[str, Any], called: Sequence[str]) -> list[Mapping[str, Any]]:
    by_name = {each["request"]: each for each in decision["placements"]}
    return [by_name[name] for name in called]


def choose_names(session: Session, who: Principal, new: NewVm, numbers: Sequence[int]) -> list[str]:
    """Return the machines' names: the one asked for, or with a position. Raises Problem when one is taken."""
    called = [new.name] if new.count == 1 else [f"{new.name}-{position}" for position in range(1, new.count + 1)]
    for name in called:
        names.check(name, "vm")
    others = sorted(session.scalars(select(Vm.name).where(Vm.project_id == who.project_id, Vm.name.in_(called))))
    if others and new.label is not None:
        return [f"{name[:50]}-{number}" for name, number in zip(called, numbers, strict=True)]
    if others:
        raise taken(others[0])
    return called


def check_free(session: Session, who: Principal, name: str) -> None:
    """Refuse a name that a machine of the project has. Raises Problem `invalid` or `already_exists`."""
    names.check(name, "vm")
    if session.scalar(select(Vm.id).where(Vm.project_id == who.project_id, Vm.name == name)) is not None:
        raise taken(name)


def taken(name: str) -> Problem:
    """Return the problem of a name that another machine has."""
    hint = "Choose another name; virtfleet vm list shows those taken."
    return Problem("already_exists", f"There is a vm {name!r} already.", hint)


def new_row(session: Session, who: Principal, host: Host, *, number: int, name: str, **columns: Any) -> Vm:
    """Write down a machine that is to be made on a host, in state building; `columns` are its own."""
    vm = Vm(
        id=new_id("vm"),
        number=number,
        uuid=str(uuid.uuid4()),
        name=name,
        libvirt_name=libvirt_name(session, who.project_name, name, number),
        zone_id=host.zone_id,
        host_id=host.id,
        project_id=who.project_id,
        owner_id=who.user_id,
        state="building",
        **columns,
    )
    session.add(vm)
    session.flush()
    session.refresh(vm)
    return vm


def libvirt_name(session: Session, project: str, name: str, number: int) -> str:
    """Return what a machine is called on its host: its name, with the project's unless that is the default one."""
    plain = name if project == DEFAULT_PROJECT else f"{project}.{name}"
    taken = session.scalar(select(Vm.id).where(Vm.libvirt_name == plain))
    return plain if taken is None else f"{plain}-{number}"


def _reserve(
    session: Session,
    who: Principal,
    new: NewVm,
    plan: Plan,
    *,
    number: int,
    name: str,
    placed: Mapping[str, Any],
    hosts: Mapping[str, Host],
) -> Vm:
    vm = new_row(
        session,
        who,
        hosts[placed["host"]],
        number=number,
        name=name,
        label=new.label,
        flavor_id=plan.flavor.id if plan.flavor else None,
        flavor=plan.flavor.name if plan.flavor else None,
        image_id=plan.image.id,
        image=plan.image.name,
        vcpus=plan.size.vcpus,
        memory_bytes=plan.size.memory_bytes,
        max_vcpus=new.max_vcpus,
        max_memory_bytes=new.max_memory_bytes,
        disk_bytes=plan.size.disk_bytes,
        pool=plan.pool,
        policy=plan.policy_name,
        explanation=dict(placed["explanation"]),
    )
    if plan.network is not None:
        addresses.reserve(session, vm, plan.network, new.address, new.filter)
    secret = None
    if new.user_data is not None:
        secret = secrets.keep(session, who, "user_data", new.user_data, vm.id)
    vm.spec = _spec(vm, who, new, plan, secret)
    session.flush()
    return vm


def _spec(vm: Vm, who: Principal, new: NewVm, plan: Plan, secret: str | None) -> dict[str, Any]:
    """Return the machine as module `vm` takes it. What a person typed is text in it, never a mapping's key."""
    return {
        "name": vm.libvirt_name,
        "uuid": vm.uuid,
        "state": "paused" if new.paused else "running" if new.start else "present",
        "vcpus": vm.vcpus,
        "memory": format_size(vm.memory_bytes),
        **new.settings,
        **({"max_vcpus": vm.max_vcpus} if vm.max_vcpus is not None else {}),
        **({"max_memory": format_size(vm.max_memory_bytes)} if vm.max_memory_bytes is not None else {}),
        "disks": [
            {
                "name": f"{volume_prefix(vm.libvirt_name, vm.uuid)}root",
                "pool": vm.pool,
                "size": format_size(vm.disk_bytes),
                "image": plan.image.volume,
            }
        ],
        "networks": [nic(address) for address in vm.addresses],
        "cloud_init": {
            "hostname": host_name(vm.name),
            "ssh_keys": [key.strip() for key in new.ssh_keys],
            **({"user_data_src": {"$secret": secret}} if secret else {}),
        },
        "metadata": {**metadata(vm, who), "attempt": ATTEMPT},
    }


def host_name(name: str) -> str:
    """Return what a machine of this name is called inside."""
    return name.replace("_", "-").replace(".", "-")


def metadata(vm: Vm, who: Principal) -> dict[str, Any]:
    """Return what is noted about a machine in its definition, for whoever finds it on a host."""
    return {
        "id": vm.id,
        "number": vm.number,
        "name": vm.name,
        "owner": who.user_name,
        "project": who.project_name,
        "zone": vm.zone.name,
        "flavor": vm.flavor,
        "image": vm.image,
    }


def nic(address: Any) -> dict[str, Any]:
    """Return a card with its reserved address as module `vm` takes it."""
    network = address.network
    card: dict[str, Any] = {"network" if network.kind == "nat" else "bridge": network.source, "mac": address.mac}
    if address.filter is not None:
        card["filter"] = address.filter
    if address.address is not None:
        card["address"] = f"{address.address}/{network.cidr.rpartition('/')[2]}"
        if network.gateway:
            card["gateway"] = network.gateway
        if network.dns:
            card["dns"] = list(network.dns)
    return card


def submit(session: Session, who: Principal, vms: Sequence[Vm], context: Mapping[str, Any]) -> Job:
    """Make the job that creates reserved machines on the hosts reserved for them."""
    needs, variables, shared = run_of(session, who, vms, str(context["wait_for"]))
    job = lifecycle.submit(
        session,
        "vm.create",
        project_id=who.project_id,
        owner_id=who.user_id,
        host_ids=[resource.removeprefix("host:") for resource, _ in shared],
        variables=variables,
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name} for vm in vms],
        context={**context, "vms": {vm.libvirt_name: vm.id for vm in vms}},
        exclusive=[f"vm:{vm.id}" for vm in vms],
        shared=shared,
        needs=needs,
    )
    for vm in vms:
        vm.job_id = job.id
    session.flush()
    return job


def run_of(
    session: Session, who: Principal, vms: Sequence[Vm], wait_for: str
) -> tuple[list[str], dict[str, Any], list[tuple[str, int]]]:
    """Return what a run needs to make these machines: jobs to wait for, variables, shared locks of the hosts."""
    needs = []
    for vm in vms:
        image = session.get(Image, vm.image_id)
        if image is not None:
            needed = images.ensure_copy(session, who, image, vm.host, vm.pool, shared=capacity.shares(vm.host, vm.pool))
            needs += [needed] if needed else []
    variables = {
        "virtfleet_vms": [{**vm.spec, "host": vm.host.name} for vm in vms],
        "virtfleet_policy": named(vms[0].policy),
        "virtfleet_wait_for": wait_for,
        "virtfleet_timeout": WAIT_SECONDS,
        "virtfleet_vcpu_ratio": max(vcpu_ratio(vm.host) for vm in vms),
        "virtfleet_memory_ratio": settings.load().memory_ratio,
        "virtfleet_disk_ratio": settings.load().disk_ratio,
    }
    return list(dict.fromkeys(needs)), variables, lifecycle.host_slots(vm.host_id for vm in vms)


def place_elsewhere(session: Session, vms: Sequence[Vm]) -> bool:
    """Move reservations to other hosts of the zone; False when not all of them fit elsewhere."""
    for vm in vms:
        state = capacity.state(session, vm.zone)
        request = {**capacity.needs(vm), "id": vm.name, "exclude": [vm.host.name]}
        decision = placement.place(state, [request], named(vm.policy), explain=True)
        if not decision["fits"]:
            return False
        placed = decision["placements"][0]
        host = session.scalars(select(Host).where(Host.name == placed["host"])).one()
        vm.host_id, vm.explanation = host.id, dict(placed["explanation"])
        vm.generation += 1
        session.flush()
        session.refresh(vm)
    return True


def named(policy: str) -> str:
    """Return the policy if it is one by name: one that was data is not kept."""
    return policy if policy in placement.NAMED else placement.DEFAULT_POLICY


def vcpu_ratio(host: Host) -> float:
    """Return how many vCPUs a host may promise per processor."""
    return host.vcpu_ratio if host.vcpu_ratio is not None else settings.load().vcpu_ratio
