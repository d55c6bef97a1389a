"""What is inside machines, by their guest agents: programs run there, and what the agents tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from virtfleet.errors import Problem
from virtfleet.jobs import lifecycle
from virtfleet.models import Job, Vm
from virtfleet.services import ledger, secrets
from virtfleet.services.auth import Principal


@dataclass(frozen=True)
class Wish:
    """How the inside of a machine is to be; None is left as it is. `file` is a path and what it is to hold."""

    frozen: bool | None = None
    file: tuple[str, str] | None = None
    user: str | None = None
    ssh_keys: list[str] | None = None
    only_ssh_keys: bool = False
    password: str | None = None


PROGRAMS_AT_ONCE = 8
"""Jobs that work inside one machine at a time. One that deletes or stops it waits for them."""
SPARE_SECONDS = 60.0
"""What a job may take beyond the program's own time: connecting, handing over."""


def run(
    session: Session,
    who: Principal,
    vm: Vm,
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    creates: str | None = None,
    timeout: float = 60.0,
) -> Job:
    """Make the job that runs a program inside a machine. Raises Problem.

    What it reads from its input is kept as a secret. `timeout` is in seconds; with `creates`, a file inside the
    machine, nothing is run where that is there.
    """
    _check(vm)
    variables: dict[str, Any] = {"virtfleet_argv": list(argv), "virtfleet_timeout": timeout}
    if stdin is not None:
        variables["virtfleet_stdin_src"] = {"$secret": secrets.keep(session, who, "stdin", stdin, vm.id)}
    if creates is not None:
        variables["virtfleet_creates"] = creates
    job = _submit(session, who, "vm.exec", vm, variables)
    job.timeout = timeout + SPARE_SECONDS
    # The words of the program may hold what is nobody else's business; that one was run is everybody's.
    ledger.audit(session, who, "vm.exec", vm.id, job.id)
    return job


def change(session: Session, who: Principal, vm: Vm, wish: Wish) -> Job:
    """Make the job that changes what is inside a machine. Raises Problem. File and password are kept as secrets."""
    _check(vm)
    if wish == Wish():
        raise Problem("invalid", "Nothing is to be changed.", "Name what is to be as it is not.")
    if (wish.ssh_keys is not None or wish.password is not None) and wish.user is None:
        raise Problem("invalid", "Keys and passwords belong to a user.", "Name the user.")
    variables: dict[str, Any] = {"virtfleet_only_ssh_keys": wish.only_ssh_keys}
    plain = {"virtfleet_frozen": wish.frozen, "virtfleet_user": wish.user, "virtfleet_ssh_keys": wish.ssh_keys}
    variables |= {name: value for name, value in plain.items() if value is not None}
    if wish.file is not None:
        path, content = wish.file
        kept = secrets.keep(session, who, "file", content, vm.id)
        variables["virtfleet_file"] = {"path": path, "src": {"$secret": kept}}
    if wish.password is not None:
        kept = secrets.keep(session, who, "password", wish.password, vm.id)
        variables["virtfleet_password_src"] = {"$secret": kept}
    job = _submit(session, who, "vm.guest", vm, variables)
    ledger.audit(session, who, "vm.guest", vm.id, job.id)
    return job


def ask(session: Session, who: Principal, vm: Vm) -> Job:
    """Make the job that asks a machine's agent what it tells. Raises Problem."""
    _check(vm)
    job = _submit(session, who, "vm.guest_info", vm, {})
    ledger.audit(session, who, "vm.guest_info", vm.id, job.id)
    return job


def _check(vm: Vm) -> None:
    if vm.state in ("building", "deleting", "missing"):
        hint = "Its host no longer has it." if vm.state == "missing" else "Wait for the end of its job."
        raise Problem("not_ready", f"Vm {vm.name!r} is {vm.state}.", hint)
    if vm.state in ("stopped", "paused", "crashed"):
        raise Problem("conflict", f"Vm {vm.name!r} is {vm.state}: nothing runs in it.", "Start it first.")


def _submit(session: Session, who: Principal, kind: str, vm: Vm, variables: dict[str, Any]) -> Job:
    return lifecycle.submit(
        session,
        kind,
        project_id=vm.project_id,
        owner_id=who.user_id,
        host_ids=[vm.host_id],
        variables={"virtfleet_vms": [{"name": vm.libvirt_name, "uuid": vm.uuid}], **variables},
        subjects=[{"type": "vm", "id": vm.id, "name": vm.name}],
        context={"vms": {vm.libvirt_name: vm.id}},
        shared=[(f"vm:{vm.id}", PROGRAMS_AT_ONCE), *lifecycle.host_slots([vm.host_id])],
    )
