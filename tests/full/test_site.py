"""A site from one inventory, from two plain machines to a machine that moved between them, seen in Prometheus.

The machines have kernels of their own, since NFS needs one. One is host, file server, monitor and controller at once.
"""

import json
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.full.by_hand import ByHand, counts
from tests.instances import wheels
from tests.instances.group import Group

# Packages are installed, and libvirt-python is compiled.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]

ANSWER_SECONDS = 60.0
WAIT_SECONDS = 900.0
BOTH = ["host-a", "host-b"]


class Site:
    """Two plain machines, and a person with `ansible-playbook`, later with the API of what it made."""

    def __init__(self, instances: list[dict[str, Any]], folder: Path) -> None:
        self._groups = folder / "groups.yml"
        self.by_hand = ByHand([instances[0]["inventory"], self._groups])
        self.controller = instances[0]["address"]
        self._folder = folder
        self.notes = folder / "rollout"
        self._variables = {
            "hypervisor_pki": str(folder / "pki"),
            # The kernel of the machines has no AppArmor, and of nf_tables not what a NAT network needs.
            "hypervisor_security_driver": "none",
            "hypervisor_network": "",
            "virtfleet_rollout": str(self.notes),
            "virtfleet_shared_pools": ["shared"],
            "nfs_client_mounts": [
                {
                    "server": self.controller,
                    "export": "/srv/images",
                    "path": "/var/lib/libvirt/shared",
                    "pool": "shared",
                }
            ],
        }
        self.describe()

    def describe(self, **of_the_second: Any) -> None:
        """Write what the inventory says about both, and about the second one alone."""
        groups = {
            "hypervisors": {"hosts": {"host-a": {}, "host-b": of_the_second}, "vars": self._variables},
            "files": {"hosts": {"host-a": {"nfs_server_exports": [{"path": "/srv/images"}]}}},
            "monitoring": {"hosts": {"host-a": {}}},
            "controllers": {
                "hosts": {"host-a": {}},
                "vars": {"controller_wheel": str(next((self._folder / "wheel").glob("*.whl")))},
            },
        }
        self._groups.write_text(yaml.safe_dump(groups))

    def play(self, code: int = 0) -> str:
        """Run the playbook of the site."""
        return self.by_hand.play("site", code=code)

    def run_on(self, host: str, command: str) -> str:
        """Run a command line on a machine; return what it printed."""
        said = self.by_hand.run("ansible", host, "-m", "ansible.builtin.command", "-a", f"chdir=/ {command}")
        return said.partition(">>\n")[2].strip()

    def enter(self) -> None:
        """Take what a client of the API needs: the administrator's token, the certificate to trust."""
        self._token = self.run_on("host-a", "cat /var/lib/virtfleet/admin.token")
        certificate = self.run_on("host-a", "cat /etc/virtfleet/tls/certificate.pem")
        self._trust = ssl.create_default_context(cadata=certificate)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to the API over TLS; return the answer."""
        request = urllib.request.Request(
            f"https://{self.controller}/api/v1/{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=self._trust) as answer:
            return json.load(answer)

    def job(self, path: str, body: dict[str, Any]) -> None:
        """Ask for something that a job does, and see it succeed."""
        number = self.ask("POST", path, body)["job"]["id"]
        job = until(lambda: self.ask("GET", f"jobs/{number}"), lambda job: job["ended_at"] is not None)
        assert job["state"] == "succeeded", job

    def measured(self, query: str) -> list[dict[str, str]]:
        """Ask Prometheus; return the labels of what it found."""
        url = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(query, safe='')}"
        answer = json.loads(self.run_on("host-a", f"curl --silent --fail --globoff {url}"))
        return [found["metric"] for found in answer["data"]["result"]]


def until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """Look until it is good; return what was seen last."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not good(seen := look()) and time.monotonic() < deadline:
        time.sleep(3)
    assert good(seen), seen
    return seen


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    needed = wheels.needed()
    wheels.wheel(folder / "wheel", wheels.VERSIONS["present"])
    group = Group("site")
    with group.alone():
        try:
            made = Site(group.up(BOTH, machines=True), folder)
            pip = json.dumps(
                {"content": "[global]\nno-index = true\nfind-links = /srv/wheels\n", "dest": "/etc/pip.conf"}
            )
            made.by_hand.run("ansible", "host-a", "-m", "ansible.builtin.unarchive", "-a", f"src={needed} dest=/srv")
            made.by_hand.run("ansible", "host-a", "-m", "ansible.builtin.copy", "-a", pip)
            yield made
        finally:
            group.down()


def changed(said: str) -> list[str]:
    """Return the hosts of which anything was changed."""
    return [name for name in BOTH if counts(said, name).get("changed")]


def test_two_plain_machines_become_a_site_and_a_machine_moves_between_them(site: Site) -> None:
    # The second host cannot be one: it stops there, and nothing knows of the first one yet.
    site.describe(hypervisor_reserved_vcpus=4096)
    said = site.play(code=2)
    assert "Failed to make host-b a host" in said
    assert changed(said) == ["host-a"]

    # Corrected, but somebody wants a pause.
    site.describe()
    (site.notes / "pause").touch()
    said = site.play(code=2)
    assert "Paused before host-b" in said
    assert changed(said) == []

    # The same command goes on where it stopped, to the end.
    (site.notes / "pause").unlink()
    said = site.play()
    assert "host-b" in changed(said)
    assert list(site.notes.iterdir()) == []

    # The control plane knows both hosts, and reaches them over TLS.
    site.enter()
    hosts = site.ask("GET", "hosts")["items"]
    assert {each["name"]: each["state"] for each in hosts} == {"host-a": "up", "host-b": "up"}

    # A machine, made through the API, with its disk on the file server. It has no system: it stays in its BIOS.
    site.run_on("host-a", "qemu-img create -q -f qcow2 /srv/nothing.qcow2 1M")
    site.run_on("host-a", "/usr/local/bin/virtfleet image add /srv/nothing.qcow2 --name nothing")
    wish = {"image": "nothing", "vcpus": 1, "memory": "64MiB", "disk": "1MiB", "pool": "shared", "network": "none"}
    site.job("vms", {**wish, "name": "traveller", "host": "host-a"})
    assert "traveller" in site.run_on("host-a", "virsh --connect qemu:///system list --name")

    # It moves while it runs. Nothing may be copied, so the disk stays where it is; nobody calls that unsafe.
    site.job("vms/traveller/migrate", {"host": "host-b", "copy_storage": False})
    assert "traveller" in site.run_on("host-b", "virsh --connect qemu:///system list --name --state-running")
    assert "traveller" not in site.run_on("host-a", "virsh --connect qemu:///system list --name --all")
    assert site.ask("GET", "vms/traveller")["host"] == "host-b"

    # Prometheus measures both hosts, and sees the machine on the second one.
    up = 'up{job=~"node|libvirt"} == 1'
    until(lambda: site.measured(up), lambda found: sorted({each["instance"] for each in found}) == BOTH)
    there = '{domain="traveller",instance="host-b"}'
    until(lambda: site.measured(there), lambda found: len(found) > 0)

    # Nothing is left to do.
    said = site.play()
    assert changed(said) == []
