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


def test_what_is_heavy_is_not_loaded_to_show_the_help() -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom virtfleet.cli.main import app\n"
        "try: app(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "heavy = {'httpx', 'libvirt', 'ansible', 'sqlalchemy', 'flask', 'pydantic', 'yaml', 'numpy'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "loaded: []" in shown.stdout
