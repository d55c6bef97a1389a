"""S1's own way to begin, `./script PM_FILE IMAGE_FILE TYPES_FILE` on real hosts, then its calls; a wait that ends."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from virtfleet.lab import Lab

from tests.lab.fleet import Fleet, free_port, running, wait_until
from tests.lab.ssh import ssh_into
from tests.lab.test_storage_modules import ROOT, call, remove_volumes
from tests.lab.traces import traces

pytestmark = pytest.mark.lab

TYPES = """# as the sample, which lacks the opening brace
"types": [
  {"tid": 1, "cpu": 1, "ram": 128, "disk": 1},
  {"tid": 2, "cpu": 1, "ram": 256, "disk": 1}
]}
"""


class Script:
    """`./script` and `./fleet` of the checkout, with a home of their own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.folder = folder
        self.listen = f"127.0.0.1:{free_port()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
        path = f"{ssh_into(lab, folder)}:{os.environ['PATH']}"
        self.environment = {**kept, "PATH": path, "VIRTFLEET_HOME": str(folder / "home")}

    def __call__(self, program: str, *words: str, code: int = 0) -> str:
        command = [str(ROOT / program), *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=300, cwd=self.folder
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, path: str, **params: Any) -> Any:
        """Call as S1 does."""
        answer = httpx.get(f"http://{self.listen}{path}", params=params, timeout=180, trust_env=False)
        assert answer.status_code == 200
        return answer.json()


@pytest.fixture
def script(lab: Lab, tmp_path: Path) -> Iterator[Script]:
    """The program; at the end its fleet is down and nothing of it is left on the hosts."""
    ours = Script(lab, tmp_path)
    try:
        yield ours
    finally:
        ours("fleet", "down")
        for host in lab.hosts():
            for vm in call("vm_info", host.uri).values["vms"]:
                call("vm", host.uri, name=vm["name"], state="absent", delete_made_volumes=True)
            remove_volumes(host.uri, "default", "base-")


def test_the_three_files_are_all_that_is_needed(lab: Lab, script: Script, tmp_path: Path) -> None:
    image = tmp_path / "Tiny-1.0-amd64.qcow2"
    shutil.copyfile(lab.status()["image"], image)
    layout = lab.layout
    lines = (
        "# by SSH",
        f"root@{layout.host(1).address}",
        "",
        layout.host(2).address,
        f"{layout.host(3).uri}  # by TCP",
    )
    (tmp_path / "pm").write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    (tmp_path / "images").write_text(f"{image}\n")
    (tmp_path / "types").write_text(TYPES)
    files = [str(tmp_path / name) for name in ("pm", "images", "types")]
    said = script("script", *files, "--listen", script.listen)
    assert "3 hosts, 1 images, 2 types" in said
    assert script.ask("/image/list") == {"images": [{"id": 100, "name": "Tiny-1.0-amd64"}]}
    assert script.ask("/vm/types")["types"][1] == {"tid": 2, "cpu": 1, "ram": 256, "disk": 1}
    made = [script.ask("/vm/create", name=f"vm{number}", instance_type=1, image_id=100)["vmid"] for number in (1, 2, 3)]
    assert all(vmid > 0 for vmid in made)
    assert len(set(made)) == 3
    told = [script.ask("/vm/query", vmid=vmid) for vmid in made]
    assert {each["pmid"] for each in told} <= {1, 2, 3}
    for each in told:
        host = lab.layout.host(each["pmid"])
        assert [vm["state"] for vm in call("vm_info", host.uri, vms=[{"name": each["name"]}]).values["vms"]] == [
            "running"
        ]
    # The same again finds all of it, and changes nothing.
    assert "answered already" in script("script", *files, "--listen", script.listen)
    assert script.ask("/image/list") == {"images": [{"id": 100, "name": "Tiny-1.0-amd64"}]}
    assert [script.ask("/vm/destroy", vmid=vmid) for vmid in made] == [{"status": 1}] * 3
    assert all(call("vm_info", host.uri).values["vms"] == [] for host in lab.hosts())


@pytest.fixture(scope="module")
def hasty(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that waits for a machine for less time than one takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTFLEET_S1_WAIT_SECONDS", "0.5")
        with running(lab, tmp_path_factory.mktemp("home")) as fleet:
            for host in lab.hosts():
                fleet.create(f"warm-{host.name}", host=host.name, wait_for="none", start=False)
            fleet.delete_all()
            yield fleet


def test_what_takes_too_long_is_undone_and_then_0_is_said(hasty: Fleet) -> None:
    before = traces(hasty)
    for number in range(3):
        answer = httpx.get(
            f"{hasty.url}/vm/create", params={"name": f"late{number}", "instance_type": 1}, timeout=180, trust_env=False
        )
        assert (answer.status_code, answer.json()) == (200, {"vmid": 0})
        assert "not there in time" in answer.headers["X-Virtfleet-Problem"]
        assert hasty.get("/vms")["items"] == []
    wait_until(lambda: traces(hasty) == before, 60, "nothing to be left")
