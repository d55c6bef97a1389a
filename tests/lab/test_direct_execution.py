"""The tests of modules once more through real `ansible-playbook`: executed directly, and in a process of their own."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab import test_storage_modules as storage
from tests.lab import test_vm_module as machines
from tests.lab.test_storage_modules import ROOT

pytestmark = pytest.mark.lab

PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - {module}: "{{{{ options }}}}"
      register: said
      ignore_errors: true
    - ansible.builtin.debug:
        msg: "{{{{ said | to_json | b64encode }}}}"
"""
ANSWER = re.compile(r'"msg": "([A-Za-z0-9+/=]+)"\n')


class Way:
    """Calls modules as a playbook does. Takes the place of `call`, which knows neither Ansible nor its worker."""

    def __init__(self, folder: Path, direct: bool) -> None:
        self._folder = folder
        self.direct = direct

    def __call__(self, module: str, uri: str, *, check: bool = False, **options: Any) -> Result:
        """Return what the task said. Raises the VirtfleetError that it failed with."""
        said = self.said(module, {"uri": uri, **options}, *(["--check"] if check else []))
        if said.pop("failed"):
            error = said.pop("error")
            raise VirtfleetError(error["wanted"], error["obstacle"], error["hint"], error["code"], said)
        diff = said.pop("diff", {})
        return Result(said.pop("changed"), said, diff.get("before") or None, diff.get("after") or None)

    def said(self, module: str, options: dict[str, Any], *words: str) -> dict[str, Any]:
        """Return a task's result as the tasks after it see it."""
        playbook = self._folder / "play.yml"
        playbook.write_text(PLAY.format(module=f"virtfleet.core.{module}"))
        variables = {"options": options, "ansible_python_interpreter": sys.executable}
        (self._folder / "variables.json").write_text(json.dumps(variables))
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", "somehost,", "-e", f"@{self._folder}/variables.json", "--diff", "-vvv", str(playbook), *words),
        ]
        own = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "VIRTFLEET_DIRECT": str(int(self.direct))}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("runs in this worker" in done.stdout) is self.direct
        result: dict[str, Any] = json.loads(b64decode(ANSWER.findall(done.stdout)[-1]))
        return result


@pytest.fixture(params=[True, False], ids=["direct", "normal"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way(tmp_path, request.param)


image = machines.image
machines_host = machines.host
storage_host = storage.host

OF_STORAGE: list[Callable[..., None]] = [
    storage.test_a_pool_comes_and_goes,
    storage.test_a_volume_grows_is_copied_and_never_shrinks,
]
OF_MACHINES: list[Callable[..., None]] = [
    machines.test_a_machine_is_made_as_predicted_once_and_removed_with_what_was_made_for_it,
    machines.test_a_base_and_an_attached_volume_survive_their_machine,
    machines.test_managed_only_leaves_what_others_made,
    machines.test_of_several_machines_a_broken_one_stops_no_other,
    machines.test_differences_of_an_existing_machine_are_told_and_left,
    machines.test_a_list_names_a_machine_once,
]
BOTH_WAYS = OF_MACHINES[:1]
"""In a process of its own, a module differs by how options get there and results come back: one test tells."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("test", OF_STORAGE, ids=lambda test: test.__name__)
def test_modules_of_storage(
    way: Way, test: Callable[..., None], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = request.getfixturevalue("storage_host")
    monkeypatch.setattr(storage, "call", way)
    test(uri)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("way", "test"),
    [*((True, test) for test in OF_MACHINES), *((False, test) for test in BOTH_WAYS)],
    indirect=["way"],
    ids=lambda what: what.__name__ if callable(what) else "direct" if what else "normal",
)
def test_module_vm(
    way: Way, test: Callable[..., None], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"host": request.getfixturevalue("machines_host")}
    if "image" in test.__code__.co_varnames[: test.__code__.co_argcount]:
        given["image"] = request.getfixturevalue("image")
    monkeypatch.setattr(machines, "call", way)
    test(**given)


def test_a_frozen_libvirtd_ends_the_task_and_not_the_playbook(lab: Lab, way: Way) -> None:
    lab.fault("freeze-libvirtd", "host2")
    began = time.monotonic()
    try:
        said = way.said("vm_info", {"uri": lab.host("host2").uri, "connect_timeout": 2})
    finally:
        lab.undo("host2")
    assert said["error"]["code"] == "host_frozen"
    assert time.monotonic() - began < storage.FROZEN_SECONDS


def test_a_libvirtd_that_freezes_while_a_machine_is_waited_for_ends_the_worker(
    lab: Lab, machines_host: str, image: str, way: Way
) -> None:
    """The boot disk is empty, so that the agent never answers and the task waits until the daemon freezes."""
    began = time.monotonic()

    def freeze() -> None:
        with opened_host(machines_host, Deadline(60)) as connection:
            while not any(domain.name() == "vm-test" for domain in connection.listAllDomains(0)):
                assert time.monotonic() < began + 120
                time.sleep(0.2)
        lab.fault("freeze-libvirtd", "host1")

    freezer = threading.Thread(target=freeze)
    freezer.start()
    options = machines.machine(image, state="running", wait_for="agent", timeout=90.0, disks=[{"size": "1MiB"}])
    try:
        said = way.said("vm", {"uri": machines_host, **options})
    finally:
        freezer.join()
        lab.undo("host1")
    assert said["failed"]
    assert said["error"]["code"] == "host_frozen"
    assert time.monotonic() - began < 90 + storage.FROZEN_SECONDS
    storage.call("vm", machines_host, name="vm-test", uuid=machines.UUID, state="absent", delete_made_volumes=True)


@pytest.mark.timeout(900)
def test_results_of_the_same_changes_are_equal_key_by_key(
    tmp_path: Path, lab: Lab, machines_host: str, image: str
) -> None:
    steps: list[tuple[str, dict[str, Any]]] = [
        ("vm", machines.machine(image, timeout=120)),
        ("vm_info", {"vms": [{"name": "vm-test"}, {"uuid": machines.UUID}]}),
        ("vm", {"vms": [{"name": "vm-test", "state": "present"}, {"name": "no-such-machine"}]}),
        ("volume", {"name": "t-both", "pool": "default", "size": "1MiB"}),
        ("volume", {"name": "t-both", "pool": "default", "state": "absent"}),
        ("vm", {"name": "vm-test", "uuid": machines.UUID, "state": "absent", "delete_made_volumes": True}),
    ]
    told: dict[bool, list[Any]] = {}
    for direct in (True, False):
        way = Way(tmp_path, direct)
        told[direct] = [
            way.said(module, {"uri": machines_host, **options}, *words)
            for module, options in steps
            for words in ([["--check"], []] if module != "vm_info" else [[]])
        ]
    for mine, its in zip(told[True], told[False], strict=True):
        assert set(mine) == set(its)
        for key, value in its.items():
            assert without_taps(mine[key]) == without_taps(value), key


def without_taps(value: Any) -> Any:
    """Leave out what a host calls the ends of a machine's cards: it counts them on with every start."""
    if isinstance(value, dict):
        return {key: without_taps(each) for key, each in value.items() if key != "device" or "mac" not in value}
    return [without_taps(each) for each in value] if isinstance(value, list) else value
