"""What is inside machines, by their agents: the modules on a running machine, then through REST and the CLI."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from typer.testing import CliRunner
from virtfleet.cli.main import app
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet
from tests.lab.test_storage_modules import call

pytestmark = pytest.mark.lab

SECRET = "a-word-nobody-may-see"
HAS_CHPASSWD = ("sh", "-c", "printf '#!/bin/sh\\ncat > /tmp/told' > /bin/chpasswd; chmod +x /bin/chpasswd")
"""The small guest lacks the program that the agent sets passwords with; this one writes down what it is told."""


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[str]:
    """The URI of a host with a machine `inside` that runs with an agent."""
    uri = lab.host("host2").uri
    call("image", uri, name="inside-base", pool="default", src=lab.status()["image"], timeout=120.0)
    parts: dict[str, Any] = {"disks": [{"image": "inside-base", "size": "1GiB"}], "cloud_init": {}}
    nic = {"bridge": "vmbr0", "mac": "52:54:00:aa:cc:11", "address": "10.78.0.79/22"}
    size: dict[str, Any] = {"vcpus": 1, "memory": "128MiB", "state": "running"}
    identifier = str(uuid.uuid4())
    try:
        call(
            "vm", uri, name="inside", uuid=identifier, networks=[nic], **parts, **size, wait_for="agent", timeout=240.0
        )
        yield uri
    finally:
        call("vm", uri, name="inside", uuid=identifier, state="absent", delete_made_volumes=True)
        with opened_host(uri, Deadline(60)) as connection:
            pool = connection.storagePoolLookupByName("default")
            for name in [each for each in pool.listVolumes() if each.startswith("inside-base")]:
                pool.storageVolLookupByName(name).delete(0)


def run(uri: str, *argv: str, **options: Any) -> dict[str, Any]:
    return call("vm_exec", uri, name="inside", argv=list(argv), **options).values


def test_a_program_runs_with_its_words_as_they_are_and_without_a_shell(guest: str) -> None:
    words = ["$(id)", "{{ 7 * 7 }}", "a b", "'", "😀", "-n"]
    assert run(guest, "printf", "%s\\n", *words)["stdout"] == "".join(f"{word}\n" for word in words)
    said = run(guest, "sh", "-c", "cat; echo problem >&2", stdin="from outside")
    assert (said["rc"], said["stdout"], said["stderr"]) == (0, "from outside", "problem\n")


def test_check_mode_runs_nothing(guest: str) -> None:
    predicted = call("vm_exec", guest, check=True, name="inside", argv=["touch", "/tmp/checked"])
    assert predicted.changed
    assert run(guest, "test", "-e", "/tmp/checked", check_rc=False)["rc"] == 1


def test_what_is_there_is_not_made_again(guest: str) -> None:
    asked: dict[str, Any] = {"name": "inside", "argv": ["touch", "/tmp/made"], "creates": "/tmp/made"}
    told = [call("vm_exec", guest, check=check, **asked).changed for check in (True, False, True, False)]
    assert told == [True, True, False, False]


@pytest.mark.parametrize(
    ("argv", "code", "obstacle"),
    [
        (["no-such-program"], "refused", "No such file"),
        (["sh", "-c", "echo why >&2; exit 3"], "refused", "it ended with 3: why"),
        (["sh", "-c", "kill -9 $$"], "refused", "signal 9 ended it"),
        (["sleep", "77"], "timeout", "did not end within 4 s, and was killed"),
        (["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"], "refused", "more than libvirt can carry"),
    ],
)
def test_what_goes_wrong_inside_is_said(guest: str, argv: list[str], code: str, obstacle: str) -> None:
    with pytest.raises(VirtfleetError) as failed:
        run(guest, *argv, timeout=4.0 if argv[0] == "sleep" else 60.0)
    assert failed.value.code == code
    assert obstacle in str(failed.value)
    assert run(guest, "sh", "-c", "ps | grep -c '[s]leep 77'", check_rc=False)["stdout"] == "0\n"


def test_output_of_more_than_a_mebibyte_is_cut_and_says_so(guest: str) -> None:
    (machine,) = run(guest, "sh", "-c", "head -c 2000000 /dev/zero | tr '\\0' x")["vms"]
    assert (len(machine["stdout"]), machine["stdout_truncated"], machine["stderr_truncated"]) == (2**20, True, False)


def test_input_of_any_kind_arrives_whole(guest: str, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(os.urandom(2**16))
    expected = subprocess.run(["sha256sum"], stdin=file.open(), capture_output=True, text=True, check=True).stdout
    assert run(guest, "sha256sum", stdin_src=str(file))["stdout"] == expected
    file.write_bytes(bytes(2**16 + 1))
    with pytest.raises(VirtfleetError) as failed:
        run(guest, "sha256sum", stdin_src=str(file))
    assert failed.value.code == "invalid"


def test_of_several_machines_each_says_its_own(guest: str) -> None:
    with pytest.raises(VirtfleetError) as failed:
        call("vm_exec", guest, vms=[{"name": "inside"}, {"name": "nowhere"}], argv=["hostname"])
    inside, nowhere = failed.value.values["vms"]
    assert inside["stdout"] == "inside\n"
    assert (nowhere["error"]["code"], nowhere["changed"]) == ("not_found", False)


def test_an_agent_tells_of_its_machine_and_silence_is_told(guest: str) -> None:
    (told,) = call("vm_guest_info", guest, vms=[{"name": "inside"}]).values["vms"]
    inside = told["guest"]
    assert inside["hostname"] == "inside"
    assert "10.78.0.79/22" in [each for card in inside["interfaces"] for each in card["addresses"]]
    assert any(each["mountpoint"] == "/" and each["total_bytes"] > 2**20 for each in inside["filesystems"])
    assert (inside["frozen"], inside["os"]["id"]) == (False, "virtfleet-tiny")
    assert "guest-exec" in inside["agent"]["commands"]
    with opened_host(guest, Deadline(60)) as connection:
        domain = connection.lookupByName("inside")
        domain.suspend()
        try:
            (told,) = call("vm_guest_info", guest, vms=[{"name": "inside"}]).values["vms"]
            assert (told["guest"], told["reason"]) == (None, "it is paused")
            with pytest.raises(VirtfleetError) as failed:
                run(guest, "true", timeout=5.0)
            assert failed.value.code in ("timeout", "refused")
        finally:
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()


def change(uri: str, **options: Any) -> bool:
    """Predict a change, make it, and make it again; return whether there was one."""
    predicted = call("vm_guest", uri, check=True, name="inside", **options)
    made = call("vm_guest", uri, name="inside", **options)
    assert (predicted.changed, predicted.values["plan"]) == (made.changed, made.values["plan"])
    assert predicted.after == made.after
    if options.get("password") is None:
        assert not call("vm_guest", uri, name="inside", **options).changed
    return made.changed


def test_a_file_is_as_wanted_once(guest: str, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(200_000))
    assert change(guest, file={"path": "/tmp/file", "src": str(source)})
    expected = subprocess.run(["sha256sum"], stdin=source.open(), capture_output=True, text=True, check=True).stdout
    assert run(guest, "sh", "-c", "sha256sum < /tmp/file")["stdout"] == expected
    assert change(guest, file={"path": "/tmp/file", "content": "{{ 7 * 7 }}\n"})
    assert run(guest, "cat", "/tmp/file")["stdout"] == "{{ 7 * 7 }}\n"
    with pytest.raises(VirtfleetError) as failed:
        change(guest, file={"path": "/no/such/folder/file", "content": "x"})
    assert failed.value.code == "refused"
    with pytest.raises(VirtfleetError) as failed:
        change(guest, file={"path": "/tmp/../etc/passwd", "content": "x"})
    assert failed.value.code == "invalid"


def test_file_systems_are_frozen_and_thawed(guest: str) -> None:
    try:
        assert change(guest, frozen=True)
        assert call("vm_guest_info", guest, vms=[{"name": "inside"}]).values["vms"][0]["guest"]["frozen"] is True
        with pytest.raises(VirtfleetError) as failed:
            change(guest, file={"path": "/tmp/frozen", "content": "x"})
        assert failed.value.code == "refused"
        assert "frozen" in failed.value.obstacle
    finally:
        assert call("vm_guest", guest, name="inside", frozen=False).changed
    assert not change(guest, frozen=False)


def test_keys_and_passwords_are_set_for_a_user(guest: str) -> None:
    keys = [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP{letter * 41} some@one" for letter in "ab"]
    assert change(guest, user="root", ssh_keys=keys[:1])
    assert change(guest, user="root", ssh_keys=keys)
    assert not change(guest, user="root", ssh_keys=keys[:1])
    assert change(guest, user="root", ssh_keys=keys[1:], only_ssh_keys=True)
    assert run(guest, "cat", "/root/.ssh/authorized_keys")["stdout"].splitlines() == keys[1:]
    run(guest, *HAS_CHPASSWD)
    assert change(guest, user="root", password=SECRET)
    assert run(guest, "cat", "/tmp/told")["stdout"].strip() == f"root:{SECRET}"
    with pytest.raises(VirtfleetError) as failed:
        change(guest, user="nobody-known", ssh_keys=keys)
    assert failed.value.code == "refused"


@pytest.mark.timeout(900)
def test_programs_run_through_rest_and_the_command_line(fleet: Fleet, tmp_path: Path) -> None:
    fleet.create("web1", wait_for="agent", host="host1")
    token = (fleet.home / "admin.token").read_text().strip()
    environment = {**os.environ, "VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": token}

    def virtfleet(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
        return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)

    said = virtfleet("vm", "exec", "web1", "--", "sh", "-c", "echo '{{ 7 * 7 }}'; echo no >&2; exit 7")
    assert (said.returncode, said.stdout) == (7, "{{ 7 * 7 }}\n")
    assert "no\n" in said.stderr
    said = virtfleet("vm", "exec", "--stdin", "-", "web1", "--", "wc", "-c", text=SECRET)
    assert (said.returncode, said.stdout.strip()) == (0, str(len(SECRET)))
    assert virtfleet("vm", "exec", "web1", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    missing = virtfleet("vm", "exec", "web1", "--", "no-such-program")
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    shown = virtfleet("vm", "guest", "web1")
    assert "virtfleet small guest" in shown.stdout, shown.stdout + shown.stderr
    # The inside is changed the same way.
    local = tmp_path / "local"
    local.write_text("{{ 7 * 7 }}\n")
    assert virtfleet("vm", "put", "web1", str(local), "/tmp/put").returncode == 0
    assert virtfleet("vm", "exec", "web1", "--", "cat", "/tmp/put").stdout == "{{ 7 * 7 }}\n"
    assert virtfleet("vm", "exec", "web1", "--", *HAS_CHPASSWD).returncode == 0
    assert virtfleet("vm", "password", "web1", text=f"{SECRET}\n").returncode == 0
    assert virtfleet("vm", "freeze", "web1").returncode == 0
    assert virtfleet("vm", "thaw", "web1").returncode == 0
    # Nothing of what a program read is in anything that is kept, but the encrypted secret.
    job = fleet.post("/vms/web1/exec", {"argv": ["cat"], "stdin": f"{SECRET}\n"})["job"]
    ended = fleet.ended(job)
    assert ended["state"] == "succeeded", ended["error"]
    assert SECRET not in str(ended)
    for file in fleet.home.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    # Two at once, and replayed by hand.
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda _n: fleet.post("/vms/web1/exec", {"argv": ["sleep", "1"]})["job"], range(2)))
    assert [fleet.ended(each)["state"] for each in jobs] == ["succeeded"] * 2
    replay = virtfleet("job", "replay", jobs[0]["id"], "--dir", str(tmp_path / "replay"), "--run")
    assert replay.returncode == 0, replay.stdout + replay.stderr


@pytest.mark.timeout(900)
def test_a_volume_moves_between_machines_with_what_a_guest_wrote_on_it(
    fleet: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the command line and REST, all that is done with volumes, once through."""
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}

    def virtfleet(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words, env=environment, prog_name="virtfleet")
        assert done.exit_code == code, done.output
        return done.output

    for name in ("web1", "web2"):
        fleet.create(name, wait_for="agent", host="host1")
    virtfleet("volume", "create", "data", "--size", "16MiB", "--vm", "web1")
    volume = fleet.get("/volumes/data")
    disk = f"$(grep -l {volume['serial']} /sys/block/*/serial | cut -d/ -f4)"
    # Attached to a machine that runs, and written to from inside.
    assert volume["serial"] in virtfleet("volume", "attach", "data", "web1")
    virtfleet("vm", "exec", "web1", "--", "sh", "-c", f"echo moved > /dev/{disk}; sync")
    assert "web1" in virtfleet("volume", "delete", "data", code=4)
    assert "web1" in virtfleet("volume", "attach", "data", "web2", code=4)
    virtfleet("volume", "resize", "data", "--size", "24MiB")
    virtfleet("volume", "detach", "data")
    virtfleet("volume", "attach", "data", "web2")
    read = ("vm", "exec", "web2", "--", "sh", "-c", f"head -n 1 /dev/{disk}; cat /sys/block/{disk}/size")
    assert {"moved", str(24 * 2**20 // 512)} <= set(virtfleet(*read).split())
    assert "web2" in virtfleet("volume", "delete", "data", code=4)
    # The run of a job changes nothing when it is repeated.
    assert volume["serial"] in virtfleet("volume", "list", "--vm", "web2")
    (job,) = fleet.get("/jobs", vm="web2", kind="vm.disk")["items"]
    virtfleet("job", "replay", job["id"], "--run")
    assert "changed=0" in capfd.readouterr().out
    virtfleet("volume", "detach", "data", "web2")
    virtfleet("volume", "clone", "data", "copy")
    virtfleet("volume", "wipe", "data")
    assert [fleet.get(f"/volumes/{name}")["size"] for name in ("data", "copy")] == ["24MiB", "24MiB"]
    # A volume stays when the machine goes that has it.
    virtfleet("volume", "attach", "copy", "web1")
    virtfleet("vm", "delete", "web1", "web2")
    assert {each["name"]: each["vms"] for each in fleet.get("/volumes")["items"]} == {"data": [], "copy": []}
    (pool,) = [
        each
        for each in json.loads(virtfleet("pool", "list", "--host", "host1", "-o", "json"))
        if each["name"] == "default"
    ]
    assert pool["active"]
    with opened_host(fleet.lab.host("host1").uri, Deadline(60)) as connection:
        names = connection.storagePoolLookupByName("default").listVolumes()
        assert {volume["volume"], fleet.get("/volumes/copy")["volume"]} <= set(names)
    virtfleet("volume", "clone", "copy", "there", "--host", "host2")
    with opened_host(fleet.lab.host("host2").uri, Deadline(60)) as connection:
        assert fleet.get("/volumes/there")["volume"] in connection.storagePoolLookupByName("default").listVolumes()
    virtfleet("volume", "delete", "data", "copy", "there")
    assert fleet.get("/volumes")["items"] == []
