"""What is typed at the command line: names are completed by real shells, and hostile words do no harm."""

import contextlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup
from virtfleet.cli.main import app

from tests.hostile import CANARY, TEXTS
from tests.processes.test_cli import Cli, cli, home

__all__ = ["cli", "home"]

EXIT_CODES = {0, 1, 2, 3, 4, 5}
ACTS_ON_THIS_MACHINE = {"serve", "demo", "down", "lab"}
"""Not a client of the API: they are tried on their own."""
TYPED = (
    *("jinja", "shell", "path", "option", "long", "newline", "control", "emoji", "half a surrogate", "dots"),
    *("nothing", "looks like a number"),
)
"""The texts that are tried here: what the API makes of all of them is tested where it is."""
GOOD = {"vcpus": "1", "memory": "16MiB", "disk": "1MiB", "url": "http://127.0.0.1:9", "source": "br0", "job": "none"}
BASH = """
source /dev/stdin <<< "$(_VIRTFLEET_COMPLETE=source_bash virtfleet)"
COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
complete -p virtfleet > /dev/null || exit 9
_virtfleet_completion virtfleet
printf '%s\\n' "${COMPREPLY[@]}"
"""
# The functions of zsh's own that draw a menu are replaced: they print what they were to offer.
ZSH = """
compdef() { : }
_files() { : }
_arguments() { print -rl -- "$@" }
eval "$(_VIRTFLEET_COMPLETE=source_zsh virtfleet)"
words=("$@"); CURRENT=$#
_virtfleet_completion
"""
OFFER_OF_ZSH = re.compile(r'[( ]"([^"]+)"(?=[: )])')


@pytest.fixture
def furnished(cli: Cli) -> Iterator[Cli]:
    """A fleet with a host, a flavor and two zones, and `virtfleet` on the PATH."""
    cli("host", "add", "test:///default", "--name", "hypervisor1")
    cli("flavor", "add", "small-one", "--vcpus", "1", "--memory", "16MiB", "--disk", "1MiB")
    cli("zone", "add", "zone-b")
    cli.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield cli
    cli("host", "remove", "hypervisor1")
    cli("flavor", "remove", "small-one")
    cli("zone", "remove", "zone-b")


def completed(cli: Cli, shell: str, script: str, *words: str) -> set[str]:
    """Return what the shell offers for the last of these words."""
    command = [shell, *(["-f"] if shell == "zsh" else []), "-c", script, shell, "virtfleet", *words]
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    offers = OFFER_OF_ZSH.findall(done.stdout) if shell == "zsh" else done.stdout.splitlines()
    return {offer for offer in offers if offer}


SHELLS = [pytest.param(name, script, id=name) for name, script in (("bash", BASH), ("zsh", ZSH)) if shutil.which(name)]


@pytest.mark.parametrize(("shell", "script"), SHELLS)
def test_a_shell_completes_the_names_of_what_there_is(furnished: Cli, shell: str, script: str) -> None:
    def offered(*words: str) -> set[str]:
        return completed(furnished, shell, script, *words)

    assert {"vm", "host", "image", "job"} <= offered("")
    shown = {
        ("host", "show", "hyp"): {"hypervisor1"},
        ("host", "show", "no-such"): set(),
        ("flavor", "remove", ""): {"small-one"},
        ("zone", "remove", "zone"): {"zone-b"},
        ("vm", "create", "x", "--host", "h"): {"hypervisor1"},
        ("vm", "create", "x", "--flavor", "s"): {"small-one"},
        ("vm", "show", ""): set(),
        ("image", "remove", ""): set(),
    }
    found = {words: offered(*words) for words in shown}
    assert found == shown
    jobs = offered("job", "show", "job_")
    assert jobs
    assert jobs == set(furnished("job", "list", "-o", "name").stdout.split())


@pytest.mark.parametrize(("shell", "script"), SHELLS)
def test_completion_is_silent_when_nobody_answers(cli: Cli, tmp_path: Path, shell: str, script: str) -> None:
    cli.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cli.environment["VIRTFLEET_URL"] = "http://127.0.0.1:9"
    assert completed(cli, shell, script, "vm", "show", "") == set()


def test_bytes_that_are_no_text_are_told(cli: Cli) -> None:
    for words in (["vm", "show"], ["vm", "create"], ["capacity", "--zone"]):
        assert "UTF-8" in cli(*words, os.fsdecode(b"a\xff"), code=2).stderr


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command of the API's client with the words that lead to it."""
    for name, command in group.commands.items():
        if path or name not in ACTS_ON_THIS_MACHINE:
            if isinstance(command, TyperGroup):
                yield from commands(command, *path, name)
            else:
                yield (*path, name), command


def line(command: Any, hostile: Any, text: str, *, joined: bool) -> list[str]:
    """Return a command line in which one parameter is this text, and what else is needed is good.

    `joined`: options are joined to their values, and arguments come after `--`.
    """
    options, arguments = [], []
    for each in takers(command):
        if each is not hostile and not each.required:
            continue
        value = text if each is hostile else GOOD.get(str(each.name), "1")
        if each.param_type_name == "argument":
            arguments.append(value)
        else:
            options += [f"{each.opts[0]}={value}"] if joined else [each.opts[0], value]
    quick = ["--no-wait"] if any("--no-wait" in each.secondary_opts for each in command.params) else []
    return [*options, *quick, *(["--"] if joined else []), *arguments]


def takers(command: Any) -> list[Any]:
    """Return the parameters of a command that take a word."""
    return [each for each in command.params if not getattr(each, "is_flag", False)]


def ended(root: TyperGroup, words: list[str]) -> tuple[object, str]:
    """Run a command line here; return its exit code and what it said. Any error but a sentence fails the test."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            root.main(args=words, prog_name="virtfleet")
        except SystemExit as end:
            return end.code, said.getvalue()
    return 0, said.getvalue()


def test_hostile_words_end_in_a_sentence_and_a_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VIRTFLEET_")]:
        monkeypatch.delenv(name)
    for name in ("VIRTFLEET_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, cli.environment[name])
    monkeypatch.chdir(cli.environment["VIRTFLEET_HOME"])
    here = set(Path.cwd().parent.iterdir())
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    asked = [(path, command, hostile) for path, command in commands(root) for hostile in takers(command)]
    assert len(asked) > 80
    for (path, command, hostile), (number, name) in itertools.product(asked, enumerate(TYPED)):
        words = [*path, *line(command, hostile, TEXTS[name], joined=bool(number % 2))]
        code, said = ended(root, words)
        assert code in EXIT_CODES, (words, code, said)
        assert "\x1b[2J" not in said, (words, said)
    assert set(Path.cwd().parent.iterdir()) == here
    assert not CANARY.exists()
