"""`virtfleet host nwfilter`: libvirt's network filters of a host."""

from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli.client import USAGE, CliError, connect, read_text, ref, reported
from virtfleet.cli.hosts import Name as Host
from virtfleet.cli.output import Format, Output, plain, say, show_list, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

app = typer.Typer(no_args_is_help=True, help="libvirt's network filters of a host.")

Filter = Annotated[str, typer.Argument(help="The filter.")]


@app.command("list")
def list_filters(host: Host, output: Format = Output.table) -> None:
    """List the network filters of a host."""
    with reported():
        show_list(connect().items(f"/hosts/{ref(host)}/nwfilters"), plain("name"), output, "filters")


@app.command()
def show(host: Host, name: Filter, output: Format = Output.yaml) -> None:
    """Show a filter with its rules; the host is asked by a job."""
    with reported():
        api = connect()
        job = finish(api, api.put(f"/hosts/{ref(host)}/nwfilters/{ref(name)}", {}), wait=True)
        if job is not None:
            (found,) = [each["nwfilter"] for each in job["result"].values()]
            show_one(found, plain("name", "chain", "priority", "rules"), output)


@app.command()
def define(
    host: Host,
    name: Filter,
    rules: Annotated[
        Path | None, typer.Argument(help="A YAML or JSON file with the list of its rules; left out, they stay.")
    ] = None,
    chain: Annotated[str | None, typer.Option(help="The chain that its rules are in.")] = None,
    priority: Annotated[int | None, typer.Option(help="The place of the chain among others.")] = None,
    wait: Wait = True,
) -> None:
    """Define a filter, or change it; its rules hold at once for machines that run with it."""
    with reported():
        given = None if rules is None else _read(rules)
        api = connect()
        body = {"chain": chain, "priority": priority, "rules": given}
        if finish(api, api.put(f"/hosts/{ref(host)}/nwfilters/{ref(name)}", body), wait=wait) is not None:
            say(f"{host}: filter {name} is as wanted")


@app.command()
def remove(host: Host, name: Filter, wait: Wait = True) -> None:
    """Remove a filter from a host, unless machines or other filters use it."""
    with reported():
        api = connect()
        if finish(api, api.delete(f"/hosts/{ref(host)}/nwfilters/{ref(name)}"), wait=wait) is not None:
            say(f"{host}: filter {name} removed")


def _read(path: Path) -> list[Any]:
    import yaml  # noqa: PLC0415 - rarely needed

    try:
        found = yaml.safe_load(read_text(path, "the rules"))
    except yaml.YAMLError as error:
        raise CliError(f"Failed to read the rules {str(path)!r}: it is neither YAML nor JSON.", USAGE) from error
    if not isinstance(found, list):
        raise CliError(f"Failed to read the rules {str(path)!r}: it holds no list.", USAGE)
    return found
