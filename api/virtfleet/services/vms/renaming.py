"""New names of machines: unique in their project, and on any host where libvirt would meet another one of that name."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, object_session

from virtfleet import names
from virtfleet.errors import Problem
from virtfleet.models import Project, Vm
from virtfleet.services.vms import creation

COLUMNS = ("name", "libvirt_name", "label")
STOPPED = ("stopped", "crashed")


def rename(session: Session, vm: Vm, name: str, *, allow_power_cycle: bool) -> dict[str, Any]:
    """Return the columns of a machine's row that a new name changes. Raises Problem.

    libvirt renames only what is stopped. Volumes, and the host name inside the machine, keep the old name.
    """
    names.check(name, "vm")
    if _taken(session, vm, name):
        raise creation.taken(name)
    if vm.state not in STOPPED and not allow_power_cycle:
        hint = "Stop it first, or allow that with allow_power_cycle."
        raise Problem("conflict", f"Vm {vm.name!r} is {vm.state}, and only a stopped one can be renamed.", hint)
    if name == vm.name:
        return {}
    project = session.get_one(Project, vm.project_id)
    return {"name": name, "label": None, "libvirt_name": creation.libvirt_name(session, project.name, name, vm.number)}


def give_back(vm: Vm, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Let a machine that its host did not rename be called as before, unless the name is somebody else's by now."""
    session = object_session(vm)
    if session is None or "name" not in after or vm.name != after["name"]:
        return
    vm.libvirt_name = before["libvirt_name"]
    if not _taken(session, vm, before["name"]):
        vm.name, vm.label = before["name"], before["label"]


def _taken(session: Session, vm: Vm, name: str) -> bool:
    others = select(Vm.id).where(Vm.project_id == vm.project_id, Vm.name == name, Vm.id != vm.id)
    return session.scalar(others) is not None
