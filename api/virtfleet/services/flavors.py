"""Flavors: sizes of machines by name."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import names, settings
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.models import Flavor, Vm
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find


@dataclass(frozen=True)
class Size:
    """What a machine takes. Memory and disk are bytes."""

    vcpus: int
    memory_bytes: int
    disk_bytes: int


DEFAULT_SIZE = Size(1, 512 * 2**20, 5 * 2**30)
"""The size of a machine in a fleet that has no flavors."""


def create(session: Session, who: Principal, name: str, size: Size, number: int | None = None) -> Flavor:
    """Make a flavor; `number` is S1's tid where a file gives it. Raises Problem `already_exists`."""
    names.check(name, "flavor")
    same_name = select(Flavor.id).where(Flavor.project_id == who.project_id, Flavor.name == name)
    if session.scalar(same_name) is not None:
        raise Problem("already_exists", f"There is a flavor {name!r} already.", "Choose another name.")
    if number is not None and session.scalar(select(Flavor.id).where(Flavor.number == number)) is not None:
        raise Problem("already_exists", f"There is a flavor with the number {number} already.", "Choose another.")
    row = Flavor(
        id=new_id("flv"),
        number=ledger.next_number(session, "flavor", number),
        name=name,
        vcpus=size.vcpus,
        memory_bytes=size.memory_bytes,
        disk_bytes=size.disk_bytes,
        project_id=who.project_id,
        owner_id=who.user_id,
    )
    session.add(row)
    session.flush()
    ledger.audit(session, who, "flavor.create", row.id)
    ledger.changed(session, "flavor", row.id, "created", who.project_id, name=name)
    return row


def delete(session: Session, who: Principal, flavor: Flavor) -> None:
    """Remove a flavor. Machines keep the size and the name they were made with."""
    for vm in session.scalars(select(Vm).where(Vm.flavor_id == flavor.id)):
        vm.flavor_id = None
    session.flush()
    session.delete(flavor)
    ledger.audit(session, who, "flavor.delete", flavor.id)
    ledger.changed(session, "flavor", flavor.id, "deleted", flavor.project_id, name=flavor.name)


def choose(session: Session, who: Principal, ref: str | None) -> Flavor | None:
    """Return the flavor asked for, or the default one, or the first; None in a fleet without flavors."""
    if ref is not None:
        return find(session, Flavor, "flavor", ref, who)
    mine = select(Flavor).where(Flavor.project_id == who.project_id).order_by(Flavor.number)
    by_name = session.scalars(mine.where(Flavor.name == settings.load().default_flavor)).first()
    return by_name or session.scalars(mine).first()
