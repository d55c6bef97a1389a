"""`virtfleet host`, `zone`, `network` and `capacity`."""

from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import connect, ref, reported
from virtfleet.cli.output import Format, Output, field, gib, plain, say, show_list, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Hosts: the hypervisors.")
zones = typer.Typer(no_args_is_help=True, help="Zones: groups of hosts.")
networks = typer.Typer(no_args_is_help=True, help="Networks that machines are joined to.")

Name = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.hosts)]
ZoneName = Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete.zones)]
NetworkName = Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete.networks)]
OnlyZone = Annotated[str | None, typer.Option(help="Only of this zone.", autocompletion=complete.zones)]
COLUMNS = [
    *plain("number", "name", "state", "zone"),
    ("VCPUS FREE", lambda item: f"{item['vcpus']['free']} of {int(item['vcpus']['total'] * item['vcpus']['ratio'])}"),
    ("MEMORY FREE", lambda item: f"{gib(item['memory']['free_bytes'])} of {gib(item['memory']['total_bytes'])}"),
    ("POOLS", lambda item: ", ".join(f"{pool['name']} {gib(pool['free_bytes'])}" for pool in item["pools"])),
    ("MAINTENANCE", lambda item: "yes" if item["maintenance"] else None),
    ("OBSERVED", field("observed_at")),
    ("ERROR", field("error")),
]

METRICS = [
    ("METRIC", field("name")),
    ("OF", lambda item: ", ".join(value for label, value in item["labels"].items() if label != "host")),
    ("VALUE", lambda item: f"{item['value']:.15g}"),
    *plain("unit", "meaning"),
]


@app.command("list")
def list_hosts(output: Format = Output.table, zone: OnlyZone = None) -> None:
    """List hosts."""
    with reported():
        show_list(connect().items("/hosts", zone=zone), COLUMNS, output, "hosts")


@app.command()
def show(name: Name, output: Format = Output.table) -> None:
    """Show a host."""
    with reported():
        show_one(connect().get(f"/hosts/{ref(name)}"), [("ID", field("id")), *COLUMNS, ("URI", field("uri"))], output)


@app.command()
def add(
    uri: Annotated[str, typer.Argument(help="An address, user@address, or a libvirt URI.")],
    name: Annotated[str | None, typer.Option(help="What to call it; its address if left out.")] = None,
    zone: Annotated[str | None, typer.Option(help="The zone; made if there is none of that name.")] = None,
    shared_pool: Annotated[list[str] | None, typer.Option(help="A pool that all hosts of the zone share.")] = None,
    wait: Wait = True,
) -> None:
    """Register a host and look at what it has."""
    with reported():
        api = connect()
        variables = {"virtfleet_shared_pools": shared_pool} if shared_pool else None
        answer = api.post("/hosts", {"uri": uri, "name": name, "zone": zone, "variables": variables})
        if finish(api, answer, wait=wait) is not None:
            say(f"{answer['host']['name']} is registered")


@app.command("set")
def change(
    name: Name,
    maintenance: Annotated[bool | None, typer.Option(help="Whether to place no machines there.")] = None,
    zone: Annotated[str | None, typer.Option(help="Move it to this zone.")] = None,
    reserved_vcpus: Annotated[int | None, typer.Option(help="vCPUs to keep back.")] = None,
    reserved_memory: Annotated[str | None, typer.Option(help="Memory to keep back, such as 2GiB.")] = None,
    vcpu_ratio: Annotated[float | None, typer.Option(help="vCPUs that one processor may be promised as.")] = None,
) -> None:
    """Change what is asked of a host."""
    body: dict[str, Any] = {"maintenance": maintenance, "zone": zone, "reserved_vcpus": reserved_vcpus}
    with reported():
        body |= {"reserved_memory": reserved_memory, "vcpu_ratio": vcpu_ratio}
        connect().patch(f"/hosts/{ref(name)}", body)


@app.command()
def discover(name: Name, wait: Wait = True) -> None:
    """Look at what a host has."""
    with reported():
        api = connect()
        finish(api, api.post(f"/hosts/{ref(name)}/discover"), wait=wait)


@app.command("metrics")
def list_metrics(
    name: Name,
    metric: Annotated[str | None, typer.Option(help="Only this one, such as virtfleet_pool_available_bytes.")] = None,
    output: Format = Output.table,
) -> None:
    """List what is measured of a host and of the machines on it."""
    with reported():
        found = connect().items(f"/hosts/{ref(name)}/metrics")
        show_list([each for each in found if metric in (None, each["name"])], METRICS, output, "metrics")


@app.command()
def remove(name: Name) -> None:
    """Forget a host without machines; nothing on it changes."""
    with reported():
        connect().delete(f"/hosts/{ref(name)}")


@zones.command("list")
def list_zones(output: Format = Output.table) -> None:
    """List zones."""
    with reported():
        show_list(connect().items("/zones"), plain("id", "name", "created_at"), output, "zones")


@zones.command("add")
def add_zone(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Make a zone."""
    with reported():
        connect().post("/zones", {"name": name})


@zones.command("remove")
def remove_zone(name: ZoneName) -> None:
    """Remove a zone without hosts."""
    with reported():
        connect().delete(f"/zones/{ref(name)}")


@networks.command("list")
def list_networks(output: Format = Output.table) -> None:
    """List networks."""
    with reported():
        columns = plain("id", "name", "zone", "kind", "source", "cidr", "gateway", "first", "last")
        show_list(connect().items("/networks"), columns, output, "networks")


@networks.command("add")
def add_network(
    name: Annotated[str, typer.Argument(help="Its name.")],
    source: Annotated[str, typer.Option(help="The bridge, or libvirt network, that every host has.")],
    zone: Annotated[str, typer.Option(help="The zone of the hosts.")] = "default",
    kind: Annotated[str, typer.Option(help="bridge, or nat for one of libvirt's.")] = "bridge",
    cidr: Annotated[str | None, typer.Option(help="Its addresses, such as 10.78.0.0/24.")] = None,
    gateway: Annotated[str | None, typer.Option(help="The gateway.")] = None,
    first: Annotated[str | None, typer.Option(help="First address to hand out.")] = None,
    last: Annotated[str | None, typer.Option(help="Last address to hand out.")] = None,
    dns: Annotated[list[str] | None, typer.Option(help="A name server; may be given again.")] = None,
) -> None:
    """Register a network that the hosts of a zone have."""
    with reported():
        body = {"name": name, "source": source, "zone": zone, "kind": kind, "cidr": cidr, "gateway": gateway}
        connect().post("/networks", body | {"first": first, "last": last, "dns": dns})


@networks.command("remove")
def remove_network(name: NetworkName) -> None:
    """Forget a network that no machine is joined to."""
    with reported():
        connect().delete(f"/networks/{ref(name)}")


def capacity(zone: OnlyZone = None, output: Format = Output.table) -> None:
    """Show what the fleet has, has promised and has left."""
    with reported():
        report = connect().get("/capacity", zone=zone)
        if output in (Output.json, Output.yaml):
            show_one(report, [], output)
            return
        rows = [*report["hosts"], {"host": "all usable", "live": True, **report}]
        columns = [
            ("HOST", field("host")),
            ("LIVE", lambda row: "yes" if row["live"] else "no"),
            ("VCPUS", lambda row: f"{row['vcpus']['allocated']} promised, {row['vcpus']['free']} free"),
            ("MEMORY FREE", lambda row: gib(row["memory"]["free_bytes"])),
            ("POOLS FREE", lambda row: ", ".join(f"{pool['name']} {gib(pool['free_bytes'])}" for pool in row["pools"])),
        ]
        show_list(rows, columns, output, "hosts")
