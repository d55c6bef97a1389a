"""`virtfleet vm checkpoint`."""

from typing import Annotated

import typer

from virtfleet.cli.client import connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list
from virtfleet.cli.progress import finish
from virtfleet.cli.snapshots import Vm
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Checkpoints of a machine, from which on its changes are noted.")

COLUMNS = [
    *plain("name", "created_at", "parent"),
    ("DISKS", lambda item: ", ".join(item["disks"])),
    *plain("description"),
]


@app.command("list")
def list_checkpoints(vm: Vm, output: Format = Output.table) -> None:
    """List the checkpoints of a machine, oldest first."""
    with reported():
        show_list(connect().items(f"/vms/{ref(vm)}/checkpoints"), COLUMNS, output, "checkpoints")


@app.command()
def create(
    vm: Vm,
    name: Annotated[str | None, typer.Argument(help="What to call it; called after the moment if left out.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    wait: Wait = True,
) -> None:
    """Note what changes on the disks of a machine that runs, from now on."""
    with reported():
        api = connect()
        answer = api.post(f"/vms/{ref(vm)}/checkpoints", {"name": name, "description": description})
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm}: checkpoint {answer['checkpoint']} made")


@app.command()
def delete(vm: Vm, name: Annotated[str, typer.Argument(help="The checkpoint.")], wait: Wait = True) -> None:
    """Delete a checkpoint; the one before it then notes what it did."""
    with reported():
        api = connect()
        if finish(api, api.delete(f"/vms/{ref(vm)}/checkpoints/{ref(name)}"), wait=wait) is not None:
            say(f"{vm}: checkpoint {name} deleted")
