"""Backups restored as new machines: with room, a name and addresses of their own, reserved before their jobs begin."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import format_size
from ansible_collections.virtfleet.core.plugins.plugin_utils import placement
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.errors import Problem
from virtfleet.jobs.kinds import ATTEMPT
from virtfleet.models import Backup, Job, Network, Vm
from virtfleet.services import addresses, capacity, ledger, zones
from virtfleet.services.auth import Principal
from virtfleet.services.vms import backups, creation


def restore_as_new(
    session: Session, who: Principal, backup: Backup, name: str, *, start: bool, address: str | None = None
) -> tuple[Job, Vm]:
    """Reserve a machine on the host of a backup, and make the job that makes it. Raises Problem, such as `no_capacity`.

    It joins the networks that the old one was in, with addresses of its own, which a new seed tells it.
    """
    creation.check_free(session, who, name)
    shape = backup.shape
    policy = settings.load().policy
    request = {
        "id": name,
        "vcpus": shape["vcpus"],
        "memory_bytes": shape.get("max_memory_bytes") or shape["memory_bytes"],
        "disks": [{"pool": shape["pool"], "size_bytes": disk["capacity_bytes"]} for disk in backup.disks],
        "zone": backup.host.zone.name,
        "host": backup.host.name,
        "exclude": [],
    }
    decision = placement.place(
        capacity.state(session, backup.host.zone), [request], creation.named(policy), explain=True
    )
    if not decision["fits"]:
        raise creation.no_room(decision)
    vm = creation.new_row(
        session,
        who,
        backup.host,
        number=ledger.next_number(session, "vm"),
        name=name,
        flavor=shape.get("flavor"),
        image=shape.get("image"),
        vcpus=shape["vcpus"],
        memory_bytes=shape["memory_bytes"],
        max_vcpus=shape.get("max_vcpus"),
        max_memory_bytes=shape.get("max_memory_bytes"),
        disk_bytes=backup.disks[0]["capacity_bytes"],
        pool=shape["pool"],
        policy=policy,
        explanation=dict(decision["placements"][0]["explanation"]),
    )
    joined = _networks(session, backup)
    if address is not None and not joined:
        hint = "Leave the address away."
        raise Problem("invalid", "The machine that was backed up was in no network.", hint)
    for position, network in enumerate(joined):
        addresses.reserve(session, vm, network, address if position == 0 else None)
    vm.spec = _spec(vm, who, shape, start=start)
    wanted = {
        "backup": backup.name,
        "new_name": vm.libvirt_name,
        "new_uuid": vm.uuid,
        "disk_pool": vm.pool,
        "start": start,
        "metadata": creation.metadata(vm, who),
    }
    if vm.addresses:
        wanted |= {"networks": vm.spec["networks"], "cloud_init": vm.spec["cloud_init"]}
    job = backups.submit(session, who, backups.work_on("vm.restore", backup, {"virtfleet_restore": wanted}), vm)
    job.context = {**job.context, "sizes": {disk["target"]: disk["capacity_bytes"] for disk in backup.disks}}
    ledger.changed(session, "vm", vm.id, "created", vm.project_id, name=vm.name, state=vm.state)
    return job, vm


def _networks(session: Session, backup: Backup) -> list[Network]:
    """Return the networks that the machine was in, those that are still there; of an old backup the zone's first."""
    kept = backup.shape.get("networks")
    if kept is None:
        return list(zones.networks(session, backup.host.zone))[:1]
    found = {network.id: network for network in session.scalars(select(Network).where(Network.id.in_(kept)))}
    return [found[each] for each in kept if each in found and found[each].zone_id == backup.host.zone_id]


def _spec(vm: Vm, who: Principal, shape: Mapping[str, Any], *, start: bool) -> dict[str, Any]:
    """Return the machine as module vm takes it, for later changes."""
    root = f"{volume_prefix(vm.libvirt_name, vm.uuid)}root"
    return {
        "name": vm.libvirt_name,
        "uuid": vm.uuid,
        "state": "running" if start else "present",
        "vcpus": vm.vcpus,
        "memory": format_size(vm.memory_bytes),
        "disks": [{"name": root, "pool": vm.pool, "size": format_size(vm.disk_bytes)}],
        "networks": [creation.nic(address) for address in vm.addresses],
        "cloud_init": {"hostname": creation.host_name(vm.name), "ssh_keys": list(shape.get("ssh_keys") or [])},
        "metadata": {**creation.metadata(vm, who), "attempt": ATTEMPT},
    }


def settle(vm: Vm, job: Job, disks: Sequence[Mapping[str, Any]]) -> None:
    """Note the further disks of a machine that was made from a backup; `disks` is what the run says of them."""
    sizes = job.context.get("sizes") or {}
    own = [disk for disk in disks if disk["target"] in sizes]
    vm.attached = [
        {
            **{"serial": disk["serial"] or disk["target"], "pool": vm.pool, "bus": disk["bus"]},
            **{"volume": PurePosixPath(disk["source"]).name, "size_bytes": sizes[disk["target"]]},
            **{"read_only": False, "shareable": False, "io": {}},
        }
        for disk in own[1:]
    ]
