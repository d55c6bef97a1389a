"""`virtfleet demo` and `virtfleet down` as a new user meets them: up, again, gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from virtfleet.lab import registry

from tests.lab.fleet import free_port

pytestmark = pytest.mark.lab


def command(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the CLI as its user does."""
    program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
    environment |= {"VIRTFLEET_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def processes_of(home: Path) -> list[str]:
    """Return the command lines of all processes of a home, the lab's daemons and machines among them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{home}".encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_the_demo_comes_up_is_found_again_and_goes_without_a_trace(tmp_path: Path) -> None:
    home = tmp_path / "home"
    nothing = command(home, "down")
    assert "Nothing was up" in nothing.stderr
    listen = f"127.0.0.1:{free_port()}"
    try:
        first = command(home, "demo", "--listen", listen)
        assert "demo answers on" in first.stdout
        assert "What to try next" in first.stdout
        again = command(home, "demo", "--listen", listen)
        assert "demo answers on" in again.stdout
        listed = json.loads(command(home, "vm", "list", "-o", "json").stdout)
        assert [(vm["name"], vm["state"]) for vm in listed] == [("demo", "running")]
        assert {"id", "name", "state", "host", "address"} <= set(listed[0])
        assert command(home, "vm", "list", "-o", "name").stdout == "demo\n"
        assert len(json.loads(command(home, "host", "list", "-o", "json").stdout)) == 3
        command(home, "vm", "show", "no-such", code=3)
        command(home, "vm", "create", "demo", code=4)
        command(home, "vm", "create", "x", "--memory", "12", code=2)
        refused = command(home, "placement", "explain", "--memory", "1TiB", code=4)
        assert refused.stdout.count("refused") == 3
        assert (home / "admin.token").stat().st_mode & 0o77 == 0
    finally:
        command(home, "down")
    assert processes_of(home) == []
    assert [entry.name for entry in registry.entries() if entry.folder.is_relative_to(home)] == []
    assert not (home / "lab").exists() or not any((home / "lab").rglob("*.img"))
    command(home, "vm", "list", code=5)
