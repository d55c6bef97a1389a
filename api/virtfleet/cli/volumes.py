"""`virtfleet volume` and `virtfleet pool`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import NOT_FOUND, REFUSED, Api, CliError, connect, ref, reported
from virtfleet.cli.output import Format, Output, gib, plain, say, show_list, show_one
from virtfleet.cli.progress import finish, finish_all
from virtfleet.cli.vm_changes import Bus
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Volumes: disks that outlive machines, and move between them.")
pools = typer.Typer(no_args_is_help=True, help="Storage pools of the hosts.")

Name = Annotated[str, typer.Argument(help="The volume: name or id.", autocompletion=complete.volumes)]
Names = Annotated[list[str], typer.Argument(help="Volumes: names or ids.", autocompletion=complete.volumes)]
Vm = Annotated[str, typer.Argument(help="The machine: name, id or number.", autocompletion=complete.vms)]
OfHost = Annotated[str | None, typer.Option(help="Of this host only.", autocompletion=complete.hosts)]
OfZone = Annotated[str | None, typer.Option(help="Of the hosts of this zone only.", autocompletion=complete.zones)]

COLUMNS = [
    *plain("name", "size", "state", "host", "pool", "format", "shareable"),
    ("VMS", lambda item: ", ".join(item["vms"])),
    *plain("serial"),
]
LINES = [
    *plain("id"),
    *COLUMNS,
    *plain("project", "owner", "zone", "volume", "job", "created_at"),
    ("WHY THERE", lambda item: item["explanation"].get("text")),
    ("ERROR", lambda item: (item["error"] or {}).get("message")),
]


class Layout(StrEnum):
    """The format of a volume."""

    qcow2 = "qcow2"
    raw = "raw"


@pools.command("list")
def list_pools(host: OfHost = None, zone: OfZone = None, output: Format = Output.table) -> None:
    """List the storage pools of the hosts, as they were last seen; FREE is what may still be promised."""
    columns = [
        *plain("name", "host", "zone", "type", "active", "shared"),
        ("CAPACITY", lambda item: gib(item["capacity_bytes"])),
        ("FREE", lambda item: gib(item["free_bytes"])),
        *plain("path"),
    ]
    with reported():
        show_list(connect().items("/pools", **_given(host=host, zone=zone)), columns, output, "pools")


@app.command("list")
def list_volumes(
    host: OfHost = None,
    vm: Annotated[str | None, typer.Option(help="That this machine has.", autocompletion=complete.vms)] = None,
    output: Format = Output.table,
) -> None:
    """List volumes; the disks that machines were made with are shown by `vm disk list`."""
    with reported():
        show_list(connect().items("/volumes", **_given(host=host, vm=vm)), COLUMNS, output, "volumes")


@app.command()
def show(name: Name, output: Format = Output.table) -> None:
    """Show a volume."""
    with reported():
        show_one(_get(connect(), name), LINES, output)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    size: Annotated[str, typer.Option(help="Its size with its unit, such as 10GiB.")],
    host: Annotated[str | None, typer.Option(help="The host to make it on.", autocompletion=complete.hosts)] = None,
    vm: Annotated[
        str | None, typer.Option(help="Or the machine that is to have it.", autocompletion=complete.vms)
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The storage pool.")] = None,
    layout: Annotated[Layout | None, typer.Option("--format", help="Its format.")] = None,
    shareable: Annotated[bool, typer.Option("--shareable", help="Several machines may have it at once.")] = False,
    wait: Wait = True,
) -> None:
    """Make an empty volume on a host; `volume attach` makes it a disk of a machine."""
    with reported():
        api = connect()
        body = _given(name=name, size=size, host=host, vm=vm, pool=pool, format=layout and layout.value)
        if finish(api, api.post("/volumes", body | {"shareable": shareable}), wait=wait) is not None:
            say(f"{name}: made")


@app.command()
def clone(
    name: Name,
    copy: Annotated[str, typer.Argument(help="The name of the copy.")],
    size: Annotated[str | None, typer.Option(help="The copy's size, if it is to be larger.")] = None,
    pool: Annotated[str | None, typer.Option(help="The copy's pool, if it is to be another.")] = None,
    host: Annotated[str | None, typer.Option(help="The copy's host, if it is to be another.")] = None,
    vm: Annotated[str | None, typer.Option(help="The machine that is to have it: it lies on that one's host.")] = None,
    wait: Wait = True,
) -> None:
    """Copy a volume that no running machine has, also to another host."""
    with reported():
        api = connect()
        answer = api.post("/volumes", _given(name=copy, source=name, size=size, pool=pool, host=host, vm=vm))
        if finish(api, answer, wait=wait) is not None:
            say(f"{copy}: made, a copy of {name}")


@app.command()
def resize(
    name: Name,
    size: Annotated[str | None, typer.Option(help="The size to grow to, with its unit.")] = None,
    grow_by: Annotated[str | None, typer.Option(help="How much to grow by, with its unit.")] = None,
    wait: Wait = True,
) -> None:
    """Grow a volume, with the file system on it when it is a disk of a machine that runs."""
    with reported():
        api = connect()
        answer = api.patch(f"/volumes/{ref(name)}", _given(size=size, grow_by=grow_by))
        if finish(api, answer, wait=wait) is not None:
            say(f"{name}: {_get(api, name)['size']}")


@app.command()
def attach(
    name: Name,
    vm: Vm,
    bus: Annotated[Bus, typer.Option(help="What to plug it into.")] = Bus.virtio,
    read_only: Annotated[bool, typer.Option("--read-only", help="The machine can only read it.")] = False,
    wait: Wait = True,
) -> None:
    """Make a volume a disk of a machine, running or not."""
    with reported():
        api = connect()
        body = {"volume": _get(api, name)["id"], "bus": bus.value, "read_only": read_only}
        answer = api.post(f"/vms/{ref(vm)}/disks", body)
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm}: volume {name} attached, serial {answer['disk']['serial']}")


@app.command()
def detach(
    name: Name,
    vm: Annotated[
        str | None, typer.Argument(help="The machine, if several have it.", autocompletion=complete.vms)
    ] = None,
    wait: Wait = True,
) -> None:
    """Take a volume from a machine; what is on it stays."""
    with reported():
        api = connect()
        found = _get(api, name)
        if vm is None and len(found["vms"]) != 1:
            why = f"{', '.join(found['vms'])} have it; name one of them" if found["vms"] else "no machine has it"
            raise CliError(f"Volume {name!r} cannot be detached: {why}.", REFUSED if found["vms"] else NOT_FOUND)
        holder = vm if vm is not None else found["vm_ids"][0]
        answer = api.delete(f"/vms/{ref(holder)}/disks/{ref(found['serial'])}")
        if finish(api, answer, wait=wait) is not None:
            say(f"{vm or found['vms'][0]}: volume {name} detached")


@app.command()
def wipe(name: Name, wait: Wait = True) -> None:
    """Overwrite all that is on a volume which no machine has."""
    with reported():
        api = connect()
        if finish(api, api.post(f"/volumes/{ref(name)}/wipe", {}), wait=wait) is not None:
            say(f"{name}: wiped")


@app.command()
def delete(names: Names, wait: Wait = True) -> None:
    """Delete volumes that no machine has, and what is on them."""
    with reported():
        api = connect()
        finish_all(api, names, lambda name: dict(api.delete(f"/volumes/{ref(name)}")), "deleted", wait=wait)


def _get(api: Api, name: str) -> dict[str, Any]:
    return dict(api.get(f"/volumes/{ref(name)}"))


def _given(**words: Any) -> dict[str, Any]:
    """Return what was said at all."""
    return {key: value for key, value in words.items() if value is not None}
