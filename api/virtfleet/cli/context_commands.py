"""`virtfleet context`: which fleet the commands talk to."""

import getpass
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli import contexts
from virtfleet.cli.client import FAILED, NOT_FOUND, USAGE, CliError, check_token, check_url, read_text, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list

app = typer.Typer(no_args_is_help=True, help="Which fleet the commands talk to.")
Name = Annotated[str, typer.Argument(help="Name of the context.")]


@app.command("list")
def list_contexts(output: Format = Output.table) -> None:
    """List contexts; tokens are not shown."""
    with reported():
        kept = _kept()
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
        check_url(url)
        token = (_asked() if file == "-" else read_text(Path(file), "the token")).strip()
        check_token(token)
        if not token:
            raise CliError("There is no token. Give a file with it, or write it to the standard input.", USAGE)
        kept = _kept()
        kept["contexts"][name] = {"url": url.rstrip("/"), "token": token}
        _save({**kept, "current": name})
        say(f"{name} is in use")


@app.command()
def use(name: Name) -> None:
    """Use another fleet from now on."""
    with reported():
        kept = _kept()
        _known(kept["contexts"], name)
        _save({**kept, "current": name})


@app.command()
def remove(name: Name) -> None:
    """Forget a fleet's URL and token."""
    with reported():
        kept = _kept()
        _known(kept["contexts"], name)
        del kept["contexts"][name]
        _save({**kept, "current": None if kept["current"] == name else kept["current"]})


def _asked() -> str:
    return getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()


def _kept() -> dict[str, Any]:
    try:
        return contexts.load()
    except contexts.ContextError as error:
        raise CliError(str(error), FAILED) from error


def _save(kept: dict[str, Any]) -> None:
    try:
        contexts.save(kept)
    except OSError as error:
        raise CliError(f"Failed to write {contexts.file()}: {error.strerror}.", FAILED) from error


def _known(names: dict[str, object], name: str) -> None:
    if name not in names:
        raise CliError(f"There is no context {name!r}. See: virtfleet context list.", NOT_FOUND)
