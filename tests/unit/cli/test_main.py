"""The command line as a whole: it starts, and shows what it can do."""

from typer.testing import CliRunner
from virtfleet.cli.main import app


def test_help_lists_the_commands_there_are() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "lab" in shown.output
    assert "version" in shown.output


def test_version_is_the_package_version() -> None:
    from importlib import metadata

    assert CliRunner().invoke(app, ["version"]).output.strip() == metadata.version("virtfleet")


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2
