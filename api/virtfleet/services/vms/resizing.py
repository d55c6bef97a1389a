"""Changing what machines have: reserved in the transaction that asks for it, given back when the job does not do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.errors import Problem
from virtfleet.models import Job, Vm
from virtfleet.services import capacity, ledger
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions, creation, renaming

ROOT_SERIAL = "root"
"""The serial number that module vm gives the first disk."""
COLUMNS = ("vcpus", "max_vcpus", "memory_bytes", "max_memory_bytes", "disk_bytes")
GROWTH_SECONDS = 180.0


@dataclass(frozen=True)
class Resize:
    """What is to be different; None leaves it as it is. At most one of `disk_bytes` and `grow_disk_by_bytes`."""

    vcpus: int | None = None
    max_vcpus: int | None = None
    memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    disk_bytes: int | None = None
    grow_disk_by_bytes: int | None = None
    topology: Mapping[str, int] | None = None
    autostart: bool | None = None
    io: Mapping[str, Any] | None = None
    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings, as module vm takes them."""
    xml_patch: Sequence[Mapping[str, Any]] = ()
    allow_power_cycle: bool = False
    force: bool = False
    grace: float | None = None


def resize(session: Session, who: Principal, vm: Vm, wanted: Resize) -> Job:
    """Reserve what a machine is to have on its host, and make the job that gives it.

    Raises Problem: `invalid` (a smaller disk among others), `not_ready`, `forbidden`, or `no_capacity` with the host's
    reasons.
    """
    actions.require_ready(vm)
    if wanted.xml_patch and not who.admin:
        hint = "Ask an administrator, or use the settings that have names."
        raise Problem("forbidden", "Only administrators may change libvirt's document itself.", hint)
    machine = actions.reference(vm)
    before = {column: getattr(vm, column) for column in (*COLUMNS, *renaming.COLUMNS)}
    after = _after(vm, wanted)
    _require_room(session, vm, after)
    if wanted.name is not None:
        after |= renaming.rename(session, vm, wanted.name, allow_power_cycle=wanted.allow_power_cycle)
    for column, value in after.items():
        setattr(vm, column, value)
    spec = _spec(vm, wanted)
    kept = {name: vm.spec.get(name) for name in spec}
    vm.spec = {**vm.spec, **spec}
    vm.generation += 1
    patience = actions.DEFAULT_GRACE_SECONDS if wanted.grace is None else wanted.grace
    timeout = GROWTH_SECONDS + patience
    variables: dict[str, Any] = {
        "virtfleet_vm": machine,
        "virtfleet_settings": {**_settings(vm, wanted), **_once(vm, wanted)},
        "virtfleet_allow_power_cycle": wanted.allow_power_cycle,
        "virtfleet_force": wanted.force,
        "virtfleet_grace": patience,
        "virtfleet_timeout": timeout,
    }
    if wanted.disk_bytes is not None or wanted.grow_disk_by_bytes is not None:
        variables["virtfleet_disk"] = {"serial": ROOT_SERIAL, "size": format_size(vm.disk_bytes)}
    context = {"before": before, "after": after, "spec_before": kept, "spec_after": spec}
    job = actions.submit(session, who, "vm.resize", [vm], variables=variables, context=context)
    job.timeout = max(job.timeout, 2 * timeout + 60.0)
    ledger.audit(session, who, "vm.resize", vm.id, job.id)
    ledger.changed(session, "vm", vm.id, "updated", vm.project_id, name=vm.name, state=vm.state)
    return job


def take_back(vm: Vm, context: Mapping[str, Any], *, machine: bool, disk: bool) -> None:
    """Give back what was reserved for a job that did not do it; what somebody has changed since is theirs."""
    columns = [*(COLUMNS[:4] if machine else ()), *(("disk_bytes",) if disk else ())]
    for column in columns:
        if getattr(vm, column) == context["after"][column]:
            setattr(vm, column, context["before"][column])
    if machine:
        renaming.give_back(vm, context["before"], context["after"])
        spec = dict(vm.spec)
        for name, value in context["spec_after"].items():
            if spec.get(name) == value and name != "disks":
                spec[name] = context["spec_before"][name]
        vm.spec = {name: value for name, value in spec.items() if value is not None}
    vm.spec = {**vm.spec, **_disks(vm)}


def _after(vm: Vm, wanted: Resize) -> dict[str, Any]:
    vcpus, max_vcpus = _pair(wanted.vcpus, wanted.max_vcpus, vm.vcpus, vm.max_vcpus, "vcpus")
    memory, max_memory = _pair(
        wanted.memory_bytes, wanted.max_memory_bytes, vm.memory_bytes, vm.max_memory_bytes, "memory"
    )
    disk = vm.disk_bytes + (wanted.grow_disk_by_bytes or 0) if wanted.disk_bytes is None else wanted.disk_bytes
    if disk < vm.disk_bytes:
        detail = f"Vm {vm.name!r} has a disk of {format_size(vm.disk_bytes)}, and a disk never shrinks."
        hint = "Make a machine with a smaller disk, and copy the files."
        raise Problem("invalid", detail, hint, errors=[{"field": "disk", "message": "smaller than it is"}])
    require_modest(vm, disk - vm.disk_bytes, "disk" if wanted.grow_disk_by_bytes is None else "grow_disk_by")
    return dict(zip(COLUMNS, (vcpus, max_vcpus, memory, max_memory, disk), strict=True))


def require_modest(vm: Vm, growth_bytes: int, field: str) -> None:
    """Refuse to let a disk grow by more than the fleet allows at once. Raises Problem `invalid`."""
    limit = settings.load().disk_growth_limit
    if limit and growth_bytes > limit:
        detail = (
            f"A disk of vm {vm.name!r} would grow by {format_size(growth_bytes)}: {format_size(limit)} is the most."
        )
        hint = "Let it grow by less; the limit is the fleet's setting disk_growth_limit."
        raise Problem("invalid", detail, hint, errors=[{"field": field, "message": "grows by too much at once"}])


def _pair(now: int | None, most: int | None, has: int, has_most: int | None, name: str) -> tuple[int, int | None]:
    """Return what is to be in use, and the most without a reboot, which follows where nobody named it."""
    if now is not None and most is not None and now > most:
        detail = f"{name} is more than max_{name}."
        raise Problem("invalid", detail, f"Raise max_{name}.", errors=[{"field": name, "message": detail}])
    limit = has_most if most is None else most
    wanted = has if now is None else now
    if limit is not None and wanted > limit:
        if now is None:
            wanted = limit
        else:
            limit = wanted
    return wanted, limit


def _require_room(session: Session, vm: Vm, after: Mapping[str, Any]) -> None:
    promised = after["memory_bytes"] if after["max_memory_bytes"] is None else after["max_memory_bytes"]
    if after["vcpus"] > vm.vcpus or promised > vm.promised_memory_bytes or after["disk_bytes"] > vm.disk_bytes:
        (root,) = capacity.needs(vm)["disks"]
        root["size_bytes"] = after["disk_bytes"]
        require_room(session, vm, vcpus=after["vcpus"], memory_bytes=promised, disks=[root])


def require_room(
    session: Session, vm: Vm, *, vcpus: int, memory_bytes: int, disks: Sequence[Mapping[str, Any]]
) -> None:
    """Ask placement whether the machine fits where it is with all that it is to have. Raises Problem `no_capacity`."""
    state = capacity.state(session, vm.zone)
    for host in state["hosts"]:
        if host["name"] != vm.host.name:
            continue
        # It is there already: what it has is counted once, and a host that takes no new machines keeps it.
        host["maintenance"] = False
        host["vcpus"]["allocated"] -= vm.vcpus
        host["memory"]["allocated_bytes"] -= vm.promised_memory_bytes
        if vm.pool in host["pools"]:
            host["pools"][vm.pool]["allocated_bytes"] -= int(vm.disk_bytes * settings.load().disk_ratio)
    request = {
        **capacity.needs(vm),
        "id": vm.name,
        "vcpus": vcpus,
        "memory_bytes": memory_bytes,
        "disks": [dict(disk) for disk in disks],
        "host": vm.host.name,
    }
    decision = placement.place(state, [request], placement.DEFAULT_POLICY, explain=True)
    if not decision["fits"]:
        raise creation.no_room(decision)


def _settings(vm: Vm, wanted: Resize) -> dict[str, Any]:
    """Return what module vm is to be told. Without a declared maximum it follows what is in use."""
    found: dict[str, Any] = {}
    if wanted.vcpus is not None or wanted.max_vcpus is not None:
        found |= {"vcpus": vm.vcpus, "max_vcpus": vm.max_vcpus or vm.vcpus}
    if wanted.memory_bytes is not None or wanted.max_memory_bytes is not None:
        found |= {"memory": format_size(vm.memory_bytes), "max_memory": format_size(vm.promised_memory_bytes)}
    if wanted.topology is not None:
        found["topology"] = _topology(vm, wanted.topology)
    if wanted.autostart is not None:
        found["autostart"] = wanted.autostart
    if wanted.io is not None:
        found["io"] = dict(wanted.io)
    return found | dict(wanted.settings)


def _once(vm: Vm, wanted: Resize) -> dict[str, Any]:
    """Return what module vm is to be told and what is no part of the machine's spec."""
    found: dict[str, Any] = {}
    if wanted.name is not None:
        found |= {"new_name": vm.libvirt_name, "metadata": {"name": vm.name}}
    if wanted.xml_patch:
        found["xml_patch"] = [dict(step) for step in wanted.xml_patch]
    return found


def _topology(vm: Vm, given: Mapping[str, int]) -> dict[str, int]:
    found = {name: number for name, number in given.items() if number is not None}
    most, product = vm.max_vcpus or vm.vcpus, found["cores"] * found["threads"]
    if most % product or found.get("sockets", most // product) * product != most:
        detail = f"The topology does not make up the {most} vCPUs that vm {vm.name!r} may have."
        hint = "Let sockets times cores times threads be max_vcpus."
        raise Problem("invalid", detail, hint, errors=[{"field": "topology", "message": "another product"}])
    return found


def _spec(vm: Vm, wanted: Resize) -> dict[str, Any]:
    found = {**_settings(vm, wanted), **_disks(vm)}
    if wanted.name is not None:
        found |= {"name": vm.libvirt_name, "metadata": {**vm.spec.get("metadata", {}), "name": vm.name}}
    return found


def _disks(vm: Vm) -> dict[str, Any]:
    disks = [dict(disk) for disk in vm.spec.get("disks") or []]
    if disks:
        disks[0]["size"] = format_size(vm.disk_bytes)
    return {"disks": disks}
