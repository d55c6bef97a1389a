"""`virtfleet image` and `virtfleet flavor`."""

from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list, show_one
from virtfleet.cli.progress import finish_all
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Images that machines boot from.")
flavors = typer.Typer(no_args_is_help=True, help="Flavors: sizes of machines.")

Name = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.images)]
Names = Annotated[list[str], typer.Argument(help="Names, ids or numbers.", autocompletion=complete.images)]
FlavorName = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.flavors)]
COLUMNS = plain("id", "number", "name", "format", "size", "virtual_size", "os", "version")
SIZES = plain("id", "number", "name", "vcpus", "memory", "disk")


@app.command("list")
def list_images(output: Format = Output.table) -> None:
    """List images."""
    with reported():
        show_list(connect().items("/images"), COLUMNS, output, "images")


@app.command()
def show(name: Name, output: Format = Output.table) -> None:
    """Show an image."""
    with reported():
        show_one(connect().get(f"/images/{ref(name)}"), [*COLUMNS, *plain("source", "checksum", "created_at")], output)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A path on the controller, or an http or https URL.")],
    name: Annotated[str | None, typer.Option(help="What to call it; from the source if left out.")] = None,
    checksum: Annotated[str | None, typer.Option(help="sha256: and 64 hex digits; needed for a URL.")] = None,
    os: Annotated[str | None, typer.Option(help="The operating system.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version.")] = None,
) -> None:
    """Register an image."""
    with reported():
        body = {"source": source, "name": name, "checksum": checksum, "os": os, "version": version}
        image = connect().post("/images", body)
        say(f"{image['name']} is registered, number {image['number']}")


@app.command()
def remove(names: Names, wait: Wait = True) -> None:
    """Remove images that no machine was made from, with their base volumes in the hosts' pools."""
    with reported():
        api = connect()

        def ask(name: str) -> dict[str, Any]:
            # No pool had it: there was nothing for a job to do.
            return dict(api.delete(f"/images/{ref(name)}") or {"job": {"id": "", "state": "succeeded"}})

        finish_all(api, names, ask, "removed", wait=wait)


@flavors.command("list")
def list_flavors(output: Format = Output.table) -> None:
    """List flavors."""
    with reported():
        show_list(connect().items("/flavors"), SIZES, output, "flavors")


@flavors.command("add")
def add_flavor(
    name: Annotated[str, typer.Argument(help="Its name.")],
    vcpus: Annotated[int, typer.Option(help="vCPUs.")],
    memory: Annotated[str, typer.Option(help="Memory with its unit, such as 512MiB.")],
    disk: Annotated[str, typer.Option(help="Disk with its unit, such as 10GiB.")],
) -> None:
    """Make a flavor."""
    with reported():
        connect().post("/flavors", {"name": name, "vcpus": vcpus, "memory": memory, "disk": disk})


@flavors.command("remove")
def remove_flavor(name: FlavorName) -> None:
    """Remove a flavor; machines keep their size."""
    with reported():
        connect().delete(f"/flavors/{ref(name)}")
