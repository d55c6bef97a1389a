"""`virtfleet host secret`: what libvirt keeps on a host for volumes, Ceph, iSCSI, TLS and virtual TPMs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli.client import NOT_FOUND, CliError, connect, read_text, ref, reported
from virtfleet.cli.hosts import Name as Host
from virtfleet.cli.output import Format, Output, plain, say, show_list
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="Secrets that libvirt keeps on a host.")


class Usage(StrEnum):
    """What a secret is for."""

    volume = "volume"
    ceph = "ceph"
    iscsi = "iscsi"
    tls = "tls"
    vtpm = "vtpm"


For = Annotated[Usage, typer.Argument(help="What it is for.")]
Which = Annotated[str, typer.Argument(help="For which one: a volume's path, a target of iSCSI, a name.")]


@app.command("list")
def list_secrets(host: Host, output: Format = Output.table) -> None:
    """List which secrets a host keeps; their values are told to nobody."""
    with reported():
        show_list(connect().items(f"/hosts/{ref(host)}/secrets"), plain("uuid", "usage", "usage_id"), output, "secrets")


@app.command("set")
def keep(
    host: Host,
    usage: For,
    usage_id: Which,
    value_file: Annotated[Path | None, typer.Option(help="A file with its value, of which all counts.")] = None,
    keep_value: Annotated[bool, typer.Option("--keep-value", help="Ask for no value: it stays as it is.")] = False,
    description: Annotated[str | None, typer.Option(help="One line about it.")] = None,
    ephemeral: Annotated[bool | None, typer.Option(help="Keep it in memory only.")] = None,
    private: Annotated[bool | None, typer.Option(help="Have libvirt tell its value to nobody.")] = None,
    wait: Wait = True,
) -> None:
    """Keep a secret on a host; its value is asked for, or read from a file or the input, and never an argument."""
    with reported():
        body: dict[str, Any] = {"usage": usage.value, "usage_id": usage_id, "description": description}
        body |= {"ephemeral": ephemeral, "private": private, "value": None if keep_value else _value(value_file)}
        # One that is private cannot be compared: who gives a value wants it set.
        body["update_value"] = None if keep_value else "always"
        api = connect()
        if finish(api, api.post(f"/hosts/{ref(host)}/secrets", body), wait=wait) is not None:
            say(f"{host}: the secret for {usage.value} {usage_id} is kept")


@app.command()
def remove(host: Host, usage: For, usage_id: Which, wait: Wait = True) -> None:
    """Have libvirt forget a secret, unless a machine or a pool needs it."""
    with reported():
        api = connect()
        known = api.items(f"/hosts/{ref(host)}/secrets")
        found = [each for each in known if (each["usage"], each["usage_id"]) == (usage.value, usage_id)]
        if not found:
            raise CliError(f"Host {host} keeps no secret for {usage.value} {usage_id}.", NOT_FOUND)
        if finish(api, api.delete(f"/hosts/{ref(host)}/secrets/{ref(found[0]['uuid'])}"), wait=wait) is not None:
            say(f"{host}: the secret for {usage.value} {usage_id} is forgotten")


def _value(file: Path | None) -> str:
    if file is not None:
        return read_text(file, "the secret")
    if sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True))
    return sys.stdin.readline().rstrip("\r\n")
