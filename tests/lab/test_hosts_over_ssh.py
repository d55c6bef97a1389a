"""Hosts registered as people write them, `address` or `user@address`: over SSH, from the first look to a machine."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtfleet.lab import Lab
from virtfleet.lab.host import make_key

from tests.lab.fleet import Fleet, running
from tests.lab.ssh import ssh_into
from tests.lab.test_vm_module import answered

pytestmark = pytest.mark.lab

REFUSED_SECONDS = 60.0


@pytest.fixture(scope="module")
def by_ssh(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose user gets into host1 and host2 by SSH; of host3 it knows another key."""
    folder = tmp_path_factory.mktemp("ssh")
    make_key(folder / "other", comment="not the one of host3")
    addresses = {host.name: str(lab.layout.host(number).address) for number, host in enumerate(lab.hosts(), 1)}
    lines = lab.layout.known_hosts.read_text().splitlines()
    other = " ".join((folder / "other.pub").read_text().split()[:2])
    known = [f"{addresses['host3']} {other}" if "host3" in line else line for line in lines]
    assert known != lines
    (folder / "known_hosts").write_text("\n".join(known) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(ssh_into(lab, folder, folder / "known_hosts")), prepend=":")
        written = {"host1": f"root@{addresses['host1']}", "host2": addresses["host2"]}
        with running(lab, tmp_path_factory.mktemp("home"), written) as fleet:
            yield fleet


def refused(fleet: Fleet, uri: str, name: str) -> dict[str, Any]:
    """Register a host that lets nobody in; return the error of its discovery. The host is forgotten again."""
    job = fleet.ended(fleet.post("/hosts", {"uri": uri, "name": name})["job"], REFUSED_SECONDS)
    try:
        assert job["state"] == "failed"
        host = fleet.get(f"/hosts/{name}")
        assert host["state"] == "down"
        assert host["error"]
        error: dict[str, Any] = job["error"]
        assert error["code"] in ("host_unreachable", "host_frozen", "refused")
        return error
    finally:
        assert fleet.http.delete(f"/hosts/{name}").status_code == 204


def test_a_machine_is_made_on_hosts_named_by_their_addresses(by_ssh: Fleet) -> None:
    for number, user in ((1, "root@"), (2, "")):
        host = by_ssh.get(f"/hosts/host{number}")
        assert host["uri"] == f"qemu+ssh://{user}{by_ssh.lab.layout.host(number).address}/system"
        assert (host["state"], host["vcpus"]["total"] > 0) == ("up", True)
    try:
        for name in ("host1", "host2"):
            vm = by_ssh.create(f"on-{name}", host=name)
            assert by_ssh.domains(name)[f"on-{name}"] == (vm["uuid"], 1)
            assert answered(vm["address"]) == f"on-{name}"
            by_ssh.ended(by_ssh.http.delete(f"/vms/on-{name}").json()["job"])
            assert by_ssh.domains(name) == {}
    finally:
        by_ssh.delete_all()


def test_a_host_with_another_key_than_the_one_known_is_told_and_nothing_is_sent_to_it(by_ssh: Fleet) -> None:
    address = by_ssh.lab.layout.host(3).address
    error = refused(by_ssh, f"root@{address}", "impostor")
    assert "key verification failed" in error["message"]
    assert f"ssh -o BatchMode=yes root@{address} true" in error["message"] + error["hint"]


def test_a_refused_login_is_told(by_ssh: Fleet) -> None:
    address = by_ssh.lab.layout.host(2).address
    error = refused(by_ssh, f"nobody@{address}", "stranger")
    assert "Permission denied" in error["message"]
    assert f"nobody@{address}" in error["message"] + error["hint"]


def test_what_takes_the_connection_and_stays_silent_is_given_up_in_time(by_ssh: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = refused(by_ssh, f"qemu+ssh://root@127.0.0.1:{port}/system", "silent")
    assert str(port) in error["message"]
    assert error["hint"]


def test_keys_can_be_named_in_the_uri(by_ssh: Fleet, tmp_path: Path) -> None:
    layout = by_ssh.lab.layout
    keys = f"keyfile={layout.key}&known_hosts={layout.known_hosts}"
    body = {"uri": f"qemu+libssh://root@{layout.host(3).address}/system?{keys}", "name": "host3"}
    assert by_ssh.ended(by_ssh.post("/hosts", body)["job"])["state"] == "succeeded"
    assert by_ssh.get("/hosts/host3")["state"] == "up"
    assert by_ssh.http.delete("/hosts/host3").status_code == 204
