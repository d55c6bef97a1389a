"""The command line against a whole fleet: a name is enough, and what people type reaches a host as the text it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.volume import read_text
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.hostile import CANARY, TEXTS
from tests.lab.fleet import Fleet
from tests.lab.test_vm_module import answered

pytestmark = pytest.mark.lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInbRiGhN6NonfKBaqB39WiIm9VQsocXUzAXZBI38sGa"
SEED_BYTES = 1 << 20


def cli(fleet: Fleet, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as the fleet's owner does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
    own = {"VIRTFLEET_HOME": str(fleet.home), "VIRTFLEET_URL": fleet.url, "XDG_CONFIG_HOME": str(fleet.home / "config")}
    token = (fleet.home / "admin.token").read_text().strip()
    program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
    environment = {**kept, **own, "VIRTFLEET_TOKEN": token}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_name_is_enough_for_a_machine(fleet: Fleet) -> None:
    cli(fleet, "vm", "create", "web1")
    listed = json.loads(cli(fleet, "vm", "list", "-o", "json").stdout)
    assert [(vm["name"], vm["state"], vm["flavor"], vm["image"]) for vm in listed] == [
        ("web1", "running", "small", "tiny")
    ]
    assert fleet.domains(listed[0]["host"])["web1"] == (listed[0]["uuid"], 1)
    assert answered(listed[0]["address"]) == "web1"
    refused = cli(fleet, "image", "remove", "tiny", code=4)
    assert "web1" in refused.stderr
    assert "web1: deleted" in cli(fleet, "vm", "delete", "web1").stderr
    assert fleet.domains(listed[0]["host"]) == {}


def test_an_image_is_removed_by_the_command_line_with_what_the_hosts_have_of_it(fleet: Fleet, tmp_path: Path) -> None:
    copy = tmp_path / "by-cli.qcow2"
    copy.write_bytes(Path(fleet.lab.status()["image"]).read_bytes() + b"\1")
    cli(fleet, "image", "add", str(copy))
    assert "by-cli: removed" in cli(fleet, "image", "remove", "by-cli").stderr
    cli(fleet, "image", "add", str(copy))
    cli(fleet, "vm", "create", "web1", "--image", "by-cli", "--no-start")
    cli(fleet, "vm", "delete", "web1")
    job = cli(fleet, "image", "remove", "by-cli", "--no-wait").stdout.strip()
    cli(fleet, "job", "wait", job)
    assert json.loads(cli(fleet, "job", "show", job, "-o", "json").stdout)["kind"] == "image.remove"
    cli(fleet, "image", "show", "by-cli", code=3)


def test_hostile_text_reaches_the_guest_as_the_text_it_is(fleet: Fleet, tmp_path: Path) -> None:
    """All that is taken at all, in one machine: user data, and the comments of SSH keys."""
    texts = {name: text for name, text in TEXTS.items() if name not in ("NUL", "half a surrogate", "long")}
    data = tmp_path / "user-data"
    # Line ends of other systems are a matter of how a file is read, not of what is typed.
    data.write_text("#cloud-config\n" + "\n".join(texts.values()).replace("\r\n", "\n"), encoding="utf-8")
    comments = [text for text in texts.values() if text.isascii() and text.isprintable()]
    for number, comment in enumerate(comments):
        (tmp_path / f"{number}.pub").write_text(f"{KEY} {comment}\n")
    keys = [word for number in range(len(comments)) for word in ("--ssh-key", str(tmp_path / f"{number}.pub"))]
    cli(fleet, "vm", "create", "web1", "--user-data", str(data), *keys)
    vm = fleet.get("/vms/web1")
    assert answered(vm["address"]) == "web1"
    with opened_host(fleet.lab.host(vm["host"]).uri, Deadline(60)) as connection:
        domain = connection.lookupByName("web1")
        (tmp_path / "domain.xml").write_text(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        seed = connection.storagePoolLookupByName("default").storageVolLookupByName(f"web1-{vm['uuid'][:8]}-seed.iso")
        written = read_text(seed, SEED_BYTES)
    subprocess.run(["virt-xml-validate", str(tmp_path / "domain.xml"), "domain"], check=True, capture_output=True)
    assert data.read_text(encoding="utf-8") in written
    assert not CANARY.exists()
