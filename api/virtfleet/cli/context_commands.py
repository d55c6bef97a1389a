"""`virtfleet context`: which fleet the commands talk to."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from virtfleet.cli import contexts
from virtfleet.cli.client import NOT_FOUND, CliError, read_text, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list

app = typer.Typer(no_args_is_help=True, help="Which fleet the commands talk to.")
Name = Annotated[str, typer.Argument(help="Name of the context.")]


@app.command("list")
def list_contexts(output: Format = Output.table) -> None:
    """List contexts; tokens are not shown."""
    with reported():
        kept = contexts.load()
        found = [
            {"name": name, "url": each["url"], "current": "yes" if name == kept["current"] else None}
            for name, each in sorted(kept["contexts"].items())
        ]
        show_list(found, plain("name", "url", "current"), output, "contexts")


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Option(help="Such as https://fleet.example:8443")],
    file: Annotated[str, typer.Option("--token-file", help="A file with the token, or - for what comes in.")] = "-",
) -> None:
    """Keep a fleet's URL and token under a name, and use it from now on."""

    with reported():
        token = sys.stdin.readline() if file == "-" else read_text(Path(file), "the token")
        kept = contexts.load()
        kept["contexts"][name] = {"url": url, "token": token.strip()}
        kept["current"] = name
        contexts.save(kept)
        say(f"{name} is in use")


@app.command()
def use(name: Name) -> None:
    """Use another fleet from now on."""
    with reported():
        kept = contexts.load()
        _known(kept["contexts"], name)
        contexts.save({**kept, "current": name})


@app.command()
def remove(name: Name) -> None:
    """Forget a fleet's URL and token."""
    with reported():
        kept = contexts.load()
        _known(kept["contexts"], name)
        del kept["contexts"][name]
        contexts.save({**kept, "current": None if kept["current"] == name else kept["current"]})


def _known(names: dict[str, object], name: str) -> None:
    if name not in names:
        raise CliError(f"There is no context {name!r}. See: virtfleet context list.", NOT_FOUND)
