"""The command `virtfleet`. Sub-commands are imported here and load what is heavy only when they run."""

import typer

from virtfleet.cli import lab

app = typer.Typer(no_args_is_help=True, help="A private cloud on libvirt hosts.", pretty_exceptions_enable=False)
app.add_typer(lab.app, name="lab")


@app.command()
def version() -> None:
    """Print the version of virtfleet."""
    from importlib import metadata  # noqa: PLC0415 - only this command needs it

    typer.echo(metadata.version("virtfleet"))


def main() -> None:
    """Run the command line."""
    app(prog_name="virtfleet")
