"""A site from one inventory: two hosts, one of which runs the control plane too."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checks.runner import ROOT
from tests.instances import wheels
from tests.instances.group import Group

# Packages are installed, and libvirt-python is compiled.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(5400)]


class Site:
    """Two plain machines, and a person with `ansible-playbook`."""

    def __init__(self, instances: list[dict[str, Any]], folder: Path) -> None:
        self._inventory = instances[0]["inventory"]
        self._groups = folder / "groups.yml"
        self.notes = folder / "rollout"
        self._variables = {
            "hypervisor_pki": str(folder / "pki"),
            "hypervisor_security_driver": "none",  # the kernel under the instances has no AppArmor
            "controller_wheel": str(next((folder / "wheel").glob("*.whl"))),
            "virtfleet_rollout": str(self.notes),
        }
        self.describe()

    def describe(self, **of_the_second: Any) -> None:
        """Write what the inventory says about both, and about the second one alone."""
        hosts: dict[str, dict[str, Any]] = {"host-a": {}, "host-b": of_the_second}
        groups = {
            "hypervisors": {"hosts": hosts, "vars": self._variables},
            "controllers": {"hosts": {"host-a": {}}},
        }
        self._groups.write_text(yaml.safe_dump(groups))

    def ansible(self, *words: str, code: int = 0) -> str:
        """Run a program of Ansible's with the inventory; return what it printed."""
        program, *rest = words
        argv = [str(Path(sys.executable).with_name(program)), "-i", self._inventory, "-i", str(self._groups), *rest]
        own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            argv, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=3600
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "PRIVATE KEY" not in said
        return said

    def play(self, code: int = 0) -> str:
        """Run the playbook of the site."""
        return self.ansible("ansible-playbook", "playbooks/site.yml", code=code)

    def on_the_controller(self, command: str) -> str:
        """Run a command line there; return what it printed."""
        said = self.ansible("ansible", "host-a", "-m", "ansible.builtin.command", "-a", f"chdir=/ {command}")
        return said.partition(">>\n")[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    needed = wheels.needed()
    wheels.wheel(folder / "wheel")
    group = Group("site")
    try:
        made = Site(group.up(["host-a", "host-b"]), folder)
        pip = "[global]\nno-index = true\nfind-links = /srv/wheels\n"
        made.ansible("ansible", "host-a", "-m", "ansible.builtin.unarchive", "-a", f"src={needed} dest=/srv")
        made.ansible(
            "ansible",
            "host-a",
            "-m",
            "ansible.builtin.copy",
            "-a",
            json.dumps({"content": pip, "dest": "/etc/pip.conf"}),
        )
        yield made
    finally:
        group.down()


def ran(said: str, host: str) -> bool:
    """Tell whether anything was changed on a host."""
    line = re.search(rf"^{host} +: .*changed=(\d+)", said, re.M)
    return line is not None and int(line[1]) > 0


def test_a_site_is_made_host_by_host_and_goes_on_where_it_stopped(site: Site) -> None:
    # The second host cannot be one: it stops there, and nothing knows of the first one yet.
    site.describe(hypervisor_reserved_vcpus=4096)
    said = site.play(code=2)
    assert "Failed to make host-b a host" in said
    assert (ran(said, "host-a"), ran(said, "host-b")) == (True, False)

    # Corrected, but somebody wants a pause.
    site.describe()
    (site.notes / "pause").touch()
    said = site.play(code=2)
    assert "Paused before host-b" in said
    assert (ran(said, "host-a"), ran(said, "host-b")) == (False, False)

    # The same command goes on: the first host is left alone, until the control plane comes to it.
    (site.notes / "pause").unlink()
    said = site.play()
    assert ran(said, "host-b")
    assert list(site.notes.iterdir()) == []

    # It knows both hosts, and reaches them over TLS.
    hosts = json.loads(site.on_the_controller("virtfleet host list -o json"))
    assert {each["name"]: each["state"] for each in hosts} == {"host-a": "up", "host-b": "up"}

    # Nothing is left to do.
    said = site.play()
    assert (ran(said, "host-a"), ran(said, "host-b")) == (False, False)
