"""Which machines have which volumes: what may be attached where, and what is noted of it when jobs end."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet.errors import Problem
from virtfleet.models import Attachment, Move, Vm, Volume
from virtfleet.services import capacity, ledger


def lock(volume: Volume) -> str:
    """Return the lock of a volume: one job at a time works on it."""
    return f"volume:{volume.id}"


def tell(session: Session, volume: Volume, action: str = "updated") -> None:
    """Count a change of a volume, and tell watchers."""
    volume.generation += 1
    ledger.changed(session, "volume", volume.id, action, volume.project_id, name=volume.name, state=volume.state)


def require_ready(volume: Volume) -> None:
    """Refuse to touch a volume that is not there yet, or is going. Raises Problem `not_ready`."""
    if volume.state != "ready":
        raise Problem("not_ready", f"Volume {volume.name!r} is {volume.state}.", "Wait for the end of its job.")


def require_free(volume: Volume, hint: str) -> None:
    """Refuse what cannot be done while a machine has the volume. Raises Problem `in_use` with the machines' names."""
    names = [each.vm.name for each in volume.attachments]
    if names:
        raise Problem("in_use", f"Volume {volume.name!r} is a disk of {', '.join(names)}.", hint, vms=names)


def require_attachable(session: Session, vm: Vm, volume: Volume) -> None:
    """Refuse to attach a volume to a machine that cannot have it. Raises Problem."""
    require_ready(volume)
    if volume.project_id != vm.project_id:
        text = f"Volume {volume.name!r} and vm {vm.name!r} belong to different projects."
        raise Problem("conflict", text, "Make a volume in the machine's project.")
    if any(each.vm_id == vm.id for each in volume.attachments):
        raise Problem(
            "already_exists", f"Vm {vm.name!r} has volume {volume.name!r} already.", "See: virtfleet vm disk list."
        )
    if not volume.shareable:
        require_free(volume, "Detach it there first; only a volume that was made shareable is had by several machines.")
    same_storage = volume.host.zone_id == vm.zone_id and all(
        capacity.shares(host, volume.pool) for host in (volume.host, vm.host)
    )
    if volume.host_id != vm.host_id and not same_storage:
        text = f"Volume {volume.name!r} lies in pool {volume.pool!r} of host {volume.host.name!r}"
        raise Problem(
            "conflict",
            f"{text}, which host {vm.host.name!r}, where vm {vm.name!r} is, does not share.",
            f"Migrate the machine: virtfleet vm migrate {vm.name} --to {volume.host.name}. Or use a shared pool.",
            host=volume.host.name,
        )
    if not same_storage and session.get(Move, vm.id) is not None:
        raise Problem("not_ready", f"Vm {vm.name!r} is on its way to another host.", "Wait for the end of its job.")


def of(session: Session, vm: Vm, volume_id: str | None) -> Volume | None:
    """Return the volume of that id if the machine has it."""
    found = session.get(Attachment, (volume_id, vm.id)) if volume_id is not None else None
    return found.volume if found is not None else None


def note(session: Session, vm: Vm, volume: Volume) -> None:
    """Note that a machine has a volume, or is going to."""
    volume.attachments.append(Attachment(volume_id=volume.id, vm_id=vm.id, vm=vm))
    tell(session, volume)
    session.flush()


def release(session: Session, vm: Vm, volume_id: str | None = None) -> None:
    """Note that a machine has a volume no longer; none of its volumes, when none is named."""
    query = select(Attachment).where(Attachment.vm_id == vm.id)
    if volume_id is not None:
        query = query.where(Attachment.volume_id == volume_id)
    for found in session.scalars(query).all():
        volume = found.volume
        volume.attachments.remove(found)
        tell(session, volume)
    session.flush()


def set_size(session: Session, vm: Vm, volume_id: str | None, size_bytes: int | None) -> None:
    """Note what size a volume has that grew as a disk of a machine."""
    volume = of(session, vm, volume_id)
    if volume is not None and size_bytes and volume.size_bytes != size_bytes:
        volume.size_bytes = size_bytes
        tell(session, volume)


def why_it_stays(session: Session, vm: Vm) -> str | None:
    """Return why a machine cannot leave its host with the volumes that it has, as a sentence, or None."""
    for found in session.scalars(select(Attachment).where(Attachment.vm_id == vm.id)):
        if not capacity.shares(vm.host, found.volume.pool):
            name, pool = found.volume.name, found.volume.pool
            return f"Vm {vm.name!r} has volume {name!r} in pool {pool!r}, which only host {vm.host.name!r} has."
    return None
