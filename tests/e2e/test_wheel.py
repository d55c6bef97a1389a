"""The wheel, installed into an empty environment outside of the checkout, creates a machine on real hosts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from virtfleet.lab import Lab

from tests.lab.fleet import free_port

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, **more: str) -> str:
    """Run a program that knows nothing of the checkout."""
    hidden = ("VIRTFLEET_", "PYTHON", "ANSIBLE_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, env={**environment, **more}, cwd="/", capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_installed_wheel_creates_a_machine(lab: Lab, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("virtfleet-*.whl")
    venv = tmp_path / "venv"
    run("/usr/bin/python3", "-m", "venv", venv)
    pip = (venv / "bin/pip", "-q", "--disable-pip-version-check", "install", "--no-deps")
    for lock in ("build", "runtime"):
        run(*pip, "--no-build-isolation", "--require-hashes", "-r", ROOT / f"requirements/{lock}.txt")
    run(*pip, wheel)
    home = tmp_path / "home"
    own = {"VIRTFLEET_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    program = venv / "bin/virtfleet"
    status = lab.status()
    guests = status["networks"]["guests"]
    try:
        run(program, "serve", "--listen", f"127.0.0.1:{free_port()}", **own)
        addresses = ("--cidr", guests["cidr"], "--gateway", guests["gateway"])
        run(program, "network", "add", "guests", "--source", guests["bridge"], *addresses, **own)
        host = status["hosts"][0]
        run(program, "host", "add", host["uri"], "--name", host["name"], **own)
        run(program, "image", "add", status["image"], **own)
        size = ("--vcpus", "1", "--memory", "128MiB", "--disk", "1GiB")
        run(program, "vm", "create", "wheel-vm", *size, "--wait-for", "none", **own)
        (vm,) = json.loads(run(program, "vm", "list", "-o", "json", **own))
        assert (vm["name"], vm["state"], vm["host"]) == ("wheel-vm", "running", host["name"])
        assert "wheel-vm" in run("virsh", "-c", host["uri"], "list", "--name")
        run(program, "vm", "delete", "wheel-vm", **own)
        assert "wheel-vm" not in run("virsh", "-c", host["uri"], "list", "--all", "--name")
    finally:
        run(program, "down", **own)
