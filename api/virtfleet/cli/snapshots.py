"""`virtfleet vm snapshot`."""

from enum import StrEnum
from typing import Annotated

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Snapshots of a machine.")

Vm = Annotated[str, typer.Argument(help="The machine: name, id or number.", autocompletion=complete.vms)]
Name = Annotated[str, typer.Argument(help="The snapshot.")]


class Mode(StrEnum):
    """The kind of a snapshot."""

    auto = "auto"
    internal = "internal"
    external = "external"


class Children(StrEnum):
    """What becomes of snapshots made after one that is deleted."""

    keep = "keep"
    delete = "delete"
    refuse = "refuse"


COLUMNS = [
    *plain("name", "mode", "memory", "state", "created_at", "parent", "current"),
    ("LIES IN", lambda item: ", ".join(disk["path"] or "" for disk in item["disks"])),
    *plain("description"),
]


@app.command("list")
def list_snapshots(vm: Vm, output: Format = Output.table) -> None:
    """List the snapshots of a machine, oldest first."""
    with reported():
        show_list(connect().items(f"/vms/{ref(vm)}/snapshots"), COLUMNS, output, "snapshots")


@app.command()
def create(
    vm: Vm,
    name: Annotated[str | None, typer.Argument(help="What to call it; called after the moment if left out.")] = None,
    mode: Annotated[Mode, typer.Option(help="Inside the disks, or a new file over each.")] = Mode.auto,
    memory: Annotated[bool | None, typer.Option(help="With the memory of a machine that runs.")] = None,
    quiesce: Annotated[bool, typer.Option("--quiesce", help="Make its file systems quiet meanwhile.")] = False,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    keep: Annotated[int | None, typer.Option(help="How many to keep of those that begin with --prefix.")] = None,
    prefix: Annotated[str | None, typer.Option(help="How the names of those begin that may go.")] = None,
    wait: Wait = True,
) -> None:
    """Make a snapshot of a machine."""
    body = {"name": name, "mode": mode.value, "memory": memory, "quiesce": quiesce, "description": description}
    with reported():
        api = connect()
        answer = api.post(f"/vms/{ref(vm)}/snapshots", body | {"keep": keep, "prefix": prefix})
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm}: snapshot {answer['snapshot']} made")


@app.command()
def revert(vm: Vm, name: Name, wait: Wait = True) -> None:
    """Bring a machine back to a snapshot; what it has written since is lost."""
    with reported():
        api = connect()
        if finish(api, api.post(f"/vms/{ref(vm)}/snapshots/{ref(name)}/revert"), wait=wait) is not None:
            say(f"{vm}: back at snapshot {name}")


@app.command()
def export(
    vm: Vm,
    name: Name,
    pool: Annotated[str | None, typer.Option(help="A pool of its host; that of its disk if left out.")] = None,
    called: Annotated[str | None, typer.Option("--as", help="How the volumes' names begin.")] = None,
    wait: Wait = True,
) -> None:
    """Bring out what the disks held at a snapshot, as volumes of their own."""
    with reported():
        api = connect()
        answer = api.post(f"/vms/{ref(vm)}/snapshots/{ref(name)}/export", {"pool": pool, "name": called})
        job = finish(api, answer, wait=wait)
        if job is not None:
            made = [each for result in job["result"].values() for item in result["vms"] for each in item["exported"]]
            for each in made:
                say(f"{vm}: what {each['target']} held at {name} lies in {each['pool']}/{each['volume']}")


@app.command()
def delete(
    vm: Vm,
    name: Name,
    children: Annotated[Children, typer.Option(help="What becomes of those made after it.")] = Children.keep,
    wait: Wait = True,
) -> None:
    """Delete a snapshot; the machine goes on as it is."""
    with reported():
        api = connect()
        answer = api.delete(f"/vms/{ref(vm)}/snapshots/{ref(name)}?children={children.value}")
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm}: snapshot {name} deleted")
