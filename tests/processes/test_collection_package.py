"""The collection alone: it builds, installs into an empty folder, and works there without the rest of the project."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = ROOT / "collections/ansible_collections/virtfleet/core"

# Ansible's programs without what an editable installation puts on the path: the project's own folders.
ALONE = """
import importlib, sys
sys.path = [path for path in sys.path if not path.startswith(sys.argv[1])  or "site-packages" in path]
program = sys.argv[2]
del sys.argv[1:3]
try:
    import virtfleet
except ImportError:
    importlib.import_module("ansible.cli." + program).main()
else:
    sys.exit("the project is still there: " + virtfleet.__file__)
"""


class Alone:
    """A folder with nothing but the installed collection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, program: str, *words: str, **environment: str) -> str:
        """Run one of Ansible's programs; return what it printed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
        own = {"ANSIBLE_COLLECTIONS_PATH": str(self.folder), "ANSIBLE_HOME": str(self.folder / "home"), **environment}
        command = [sys.executable, "-c", ALONE, str(ROOT), program, *words]
        done = subprocess.run(
            command, env={**clean, **own}, cwd=self.folder, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("empty")
    there = Alone(folder)
    there.run("galaxy", "collection", "build", str(COLLECTION), "--output-path", str(folder / "built"))
    (archive,) = (folder / "built").glob("virtfleet-core-*.tar.gz")
    there.run("galaxy", "collection", "install", str(archive), "--offline", "-p", str(folder))
    return there


def test_the_archive_holds_the_plugins_and_no_leftovers(alone: Alone) -> None:
    (archive,) = (alone.folder / "built").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
    for needed in ("plugins/modules/vm.py", "plugins/action/vm.py", "plugins/inventory/guests.py", "meta/runtime.yml"):
        assert needed in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/output")]


def test_every_plugin_is_found_and_documented_there(alone: Alone) -> None:
    kinds = {"module": ("modules", "py"), "inventory": ("inventory", "py"), "filter": ("filter", "yml")}
    for kind, (folder, suffix) in kinds.items():
        names = [f"virtfleet.core.{path.stem}" for path in (COLLECTION / "plugins" / folder).glob(f"*.{suffix}")]
        found: dict[str, Any] = json.loads(alone.run("doc", "-t", kind, "-j", *names))
        assert set(found) == set(names)
        assert all(each["doc"]["filename"].startswith(str(alone.folder)) for each in found.values())


@pytest.mark.parametrize("direct", ["1", "0"])
def test_its_modules_and_filters_work_there(alone: Alone, direct: str) -> None:
    playbook = alone.folder / "play.yml"
    decided = "{{ [{'name': 'a', 'vcpus': 1, 'memory': '1GiB'}] | virtfleet.core.place([said.host]) }}"
    tasks = [
        {"virtfleet.core.host_info": {"uri": "test:///default", "name": "t"}, "register": "said"},
        {"ansible.builtin.assert": {"that": "said.host.vcpus.total > 0"}},
        {"ansible.builtin.set_fact": {"decision": decided}},
        {"ansible.builtin.assert": {"that": "decision.schema_version == 1"}},
        {"virtfleet.core.vm": {"uri": "test:///default", "name": "test", "state": "paused"}, "register": "paused"},
        {"ansible.builtin.assert": {"that": "paused is changed"}},
    ]
    playbook.write_text(json.dumps([{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    words = ("-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}", str(playbook))
    alone.run("playbook", *words, VIRTFLEET_DIRECT=direct)


def test_its_inventory_works_there(alone: Alone) -> None:
    source = alone.folder / "t.virtfleet.yml"
    source.write_text(json.dumps({"plugin": "virtfleet.core.guests", "hosts": {"t": "test:///default"}}))
    listed = json.loads(alone.run("inventory", "-i", str(source), "--list"))
    assert listed["host_t"]["hosts"] == ["test"]
