"""`virtfleet vm backup`, `backups`, `restore` and `delete-backup`."""

from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import NOT_FOUND, REFUSED, Api, CliError, connect, ref, reported
from virtfleet.cli.output import Format, Output, gib, plain, say, show_list
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

Vm = Annotated[str, typer.Argument(help="The machine: name, id or number.", autocompletion=complete.vms)]
Past = Annotated[str, typer.Argument(help="The machine, which may be gone: name, id or UUID.")]
Name = Annotated[str, typer.Argument(help="The backup: its name, or its id.")]

COLUMNS = [
    *plain("name", "vm", "kind", "parent", "host", "pool", "created_at"),
    ("SIZE", lambda item: gib(item["size_bytes"])),
    *plain("reason", "id"),
]


def backup(
    vm: Vm,
    name: Annotated[str | None, typer.Argument(help="What to call it; called after the moment if left out.")] = None,
    incremental: Annotated[bool, typer.Option("--incremental", help="Only what has changed since the last.")] = False,
    quiesce: Annotated[bool, typer.Option("--quiesce", help="Hold all writing inside it at that moment.")] = False,
    keep: Annotated[int | None, typer.Option(help="How many to keep; the oldest go when this one is made.")] = None,
    prefix: Annotated[str | None, typer.Option(help="With --keep: how the names of those begin that may go.")] = None,
    wait: Wait = True,
) -> None:
    """Make a backup of a machine."""
    body = {"name": name, "kind": "incremental" if incremental else "full", "quiesce": quiesce}
    with reported():
        api = connect()
        answer = api.post(f"/vms/{ref(vm)}/backups", body | {"keep": keep, "prefix": prefix})
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm}: backup {answer['backup']} made")


def list_backups(
    vm: Annotated[str | None, typer.Argument(help="The machine, which may be gone; all if left out.")] = None,
    output: Format = Output.table,
) -> None:
    """List backups, oldest first, also of machines that are gone."""
    with reported():
        show_list(_listed(connect(), vm), COLUMNS, output, "backups")


def restore(
    vm: Past,
    name: Name,
    new: Annotated[str | None, typer.Option("--as", help="The name of a machine to make; else in place.")] = None,
    address: Annotated[str | None, typer.Option(help="With --as: its address; a free one if left out.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="In place: stop the machine if it runs.")] = False,
    start: Annotated[bool | None, typer.Option(help="Whether it runs afterwards.")] = None,
    wait: Wait = True,
) -> None:
    """Make a new machine from a backup, or bring a machine back to it; what it has written since is lost then."""
    with reported():
        api = connect()
        found = _one(api, vm, name)
        body = {"name": new, "address": address, "stop": stop, "start": start}
        answer = api.post(f"/backups/{ref(found['id'])}/restore", body)
        if finish(api, answer, wait=wait) is not None:
            say(f"{answer['vm']}: restored from backup {found['name']} of {found['vm']}")


def delete_backup(vm: Past, name: Name, wait: Wait = True) -> None:
    """Delete a backup that no increment lies over."""
    with reported():
        api = connect()
        found = _one(api, vm, name)
        if finish(api, api.delete(f"/backups/{ref(found['id'])}"), wait=wait) is not None:
            say(f"{vm}: backup {found['name']} deleted")


def _listed(api: Api, vm: str | None) -> list[dict[str, Any]]:
    return api.items("/backups") if vm is None else api.items("/backups", vm=vm)


def _one(api: Api, vm: str, name: str) -> dict[str, Any]:
    """Return the backup that is meant. Raises CliError."""
    found = [each for each in _listed(api, vm) if name in (each["name"], each["id"])]
    if not found:
        raise CliError(f"There is no backup {name!r} of {vm!r}. See: virtfleet vm backups {vm}", NOT_FOUND)
    if len(found) > 1:
        raise CliError(
            f"More than one backup of {vm!r} is called {name!r}. Give its id: virtfleet vm backups {vm}", REFUSED
        )
    return found[0]
