"""`virtfleet host network`: libvirt's own networks of a host."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from virtfleet.cli.client import USAGE, CliError, connect, ref, reported
from virtfleet.cli.hosts import Name as Host
from virtfleet.cli.output import Format, Output, plain, say, show_list, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="libvirt's own networks of a host.")

Network = Annotated[str, typer.Argument(help="The network.")]


class Mode(StrEnum):
    """How machines of a network reach other places."""

    nat = "nat"
    routed = "routed"
    isolated = "isolated"
    bridge = "bridge"


def _dhcp(item: dict[str, Any]) -> str | None:
    dhcp = item["dhcp"]
    if dhcp is None:
        return None
    span = [f"{dhcp['start']}-{dhcp['end']}"] if dhcp["start"] else []
    return ", ".join([*span, *(f"{each['mac']}={each['address']}" for each in dhcp["hosts"])])


def _names(item: dict[str, Any]) -> str:
    return ", ".join(f"{each['address']}={','.join(each['names'])}" for each in item["dns"])


COLUMNS = [
    *plain("name", "mode", "active", "autostart", "bridge", "address", "domain"),
    ("DHCP", _dhcp),
    ("DNS", _names),
]


@app.command("list")
def list_networks(host: Host, output: Format = Output.table) -> None:
    """List libvirt's networks of a host."""
    with reported():
        show_list(connect().items(f"/hosts/{ref(host)}/networks"), COLUMNS, output, "networks")


@app.command()
def show(host: Host, name: Network, output: Format = Output.table) -> None:
    """Show one of libvirt's networks of a host."""
    with reported():
        show_one(connect().get(f"/hosts/{ref(host)}/networks/{ref(name)}"), COLUMNS, output)


@app.command()
def leases(host: Host, name: Network, output: Format = Output.table) -> None:
    """List the addresses that a network has given by DHCP."""
    with reported():
        found = connect().get(f"/hosts/{ref(host)}/networks/{ref(name)}")["leases"]
        show_list(found, plain("mac", "address", "name", "expires_at"), output, "leases")


@app.command()
def define(
    host: Host,
    name: Network,
    mode: Annotated[Mode | None, typer.Option(help="How its machines reach others; a new one needs it.")] = None,
    bridge: Annotated[str | None, typer.Option(help="The bridge of the host.")] = None,
    address: Annotated[str | None, typer.Option(help="The host's own address in it, such as 192.168.100.1/24.")] = None,
    domain: Annotated[str | None, typer.Option(help="The DNS domain of its machines.")] = None,
    dhcp: Annotated[str | None, typer.Option(help="The range to give by DHCP: FIRST-LAST.")] = None,
    dhcp_host: Annotated[
        list[str] | None, typer.Option(help="MAC=ADDRESS, or MAC=ADDRESS=NAME; again for more.")
    ] = None,
    dns: Annotated[list[str] | None, typer.Option(help="ADDRESS=NAME,NAME; again for more.")] = None,
    inactive: Annotated[bool, typer.Option("--inactive", help="Define it, and do not start it.")] = False,
    autostart: Annotated[bool | None, typer.Option(help="Start it with the host.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Stop and start it for what needs that.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Stop it although running machines use it.")] = False,
    wait: Wait = True,
) -> None:
    """Define a network, or change it to be so: what is left out it does not have."""
    with reported():
        service: dict[str, Any] = {}
        if dhcp is not None:
            service["start"], service["end"] = _split(dhcp, "-", 2, "--dhcp", "FIRST-LAST")
        if dhcp_host:
            service["hosts"] = [_reserved(each) for each in dhcp_host]
        api = connect()
        body: dict[str, Any] = {
            **{"mode": mode.value if mode else None, "bridge": bridge, "address": address, "domain": domain},
            **{"dhcp": service or None, "dns": [_entry(each) for each in dns] if dns else None},
            **{"state": "inactive" if inactive else "present", "autostart": autostart},
            **{"restart": restart, "force": force},
        }
        if finish(api, api.put(f"/hosts/{ref(host)}/networks/{ref(name)}", body), wait=wait) is not None:
            say(f"{host}: network {name} is as wanted")


@app.command()
def remove(
    host: Host,
    name: Network,
    force: Annotated[bool, typer.Option("--force", help="Also when running machines use it.")] = False,
    wait: Wait = True,
) -> None:
    """Remove a network from a host, unless machines use it."""
    with reported():
        api = connect()
        path = f"/hosts/{ref(host)}/networks/{ref(name)}?force={str(force).lower()}"
        if finish(api, api.delete(path), wait=wait) is not None:
            say(f"{host}: network {name} removed")


def _split(text: str, by: str, most: int, option: str, shape: str) -> list[str]:
    parts = text.split(by, most - 1)
    if len(parts) < 2 or not all(parts):
        raise CliError(f"{option} {text!r} cannot be used. It looks like {shape}.", USAGE)
    return parts


def _reserved(text: str) -> dict[str, Any]:
    mac, address, *name = _split(text, "=", 3, "--dhcp-host", "MAC=ADDRESS or MAC=ADDRESS=NAME")
    return {"mac": mac, "address": address, **({"name": name[0]} if name else {})}


def _entry(text: str) -> dict[str, Any]:
    address, called = _split(text, "=", 2, "--dns", "ADDRESS=NAME,NAME")
    return {"address": address, "names": called.split(",")}
