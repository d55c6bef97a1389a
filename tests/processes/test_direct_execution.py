"""Direct execution gives what the normal way gives: the same playbooks by real `ansible-playbook`, both ways."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.virtfleet.core.plugins.plugin_utils.direct import names_another_host

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
CORE = COLLECTIONS / "ansible_collections/virtfleet/core"
URI = "test:///default"
SECRET = "s3cr3t-w0rd"
WORD = "{{ word }}"  # so that the playbook itself, which Ansible quotes, does not tell it

# Writes down what every task came to, as callbacks and later tasks see it.
RECORDER = """
import json, os
from ansible.module_utils.common.json import get_encoder
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorder"

    def _note(self, result, *args, **kwargs):
        line = {"task": result._task.get_name(), "result": result._result}
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps(line, default=str, sort_keys=True) + chr(10))

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_unreachable = v2_runner_on_skipped = _note
    v2_runner_item_on_ok = v2_runner_item_on_failed = _note
"""

# A module that uses everything of an argument spec that could come out differently. It needs no host.
PROBE = """
DOCUMENTATION = "{module: probe, short_description: Shows what it got, description: [x], options: {}}"
import os
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result, run
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible.module_utils.basic import env_fallback

SPEC = {
    "uri": {"type": "str"},
    "name": {"type": "str", "aliases": ["title"]},
    "old": {"type": "str", "removed_in_version": "9.0.0", "removed_from_collection": "virtfleet.trial"},
    "renamed": {"type": "str", "aliases": ["former"], "deprecated_aliases": [
        {"name": "former", "version": "9.0.0", "collection_name": "virtfleet.trial"}]},
    "region": {"type": "str", "fallback": (env_fallback, ["PROBE_REGION"])},
    "count": {"type": "int", "default": 3},
    "size": {"type": "raw"},
    "words": {"type": "list", "elements": "str"},
    "nested": {"type": "list", "elements": "dict", "options": {
        "key": {"type": "str", "required": True}, "password": {"type": "str", "no_log": True},
        "level": {"type": "int", "default": 7}}},
    "password": {"type": "str", "no_log": True},
    "src": {"type": "path"},
    "a": {"type": "str"}, "b": {"type": "str"}, "c": {"type": "str"}, "d": {"type": "str"},
    "kind": {"type": "str", "choices": ["one", "two"]},
    "wish": {"type": "str", "default": "echo"},
}
RULES = {"mutually_exclusive": [("a", "b")], "required_together": [("c", "d")],
         "required_if": [("kind", "two", ("a",))], "required_by": {"b": ("kind",)}}


def execute(params, check, diff):
    wish = params["wish"]
    if wish == "fail":
        raise VirtfleetError("use " + params["password"], "it is wrong", "Say it.", "invalid", {"half": [1]})
    if wish == "crash":
        raise RuntimeError("lost " + params["password"])
    seen = {"params": params, "tuple": (1, 2), "deep": {1: "one", "text": "{{ 1 + 1 }}"}, "check": check, "none": None,
            "told": "it is " + (params["password"] or "nothing"), "pid_of_parent": os.getppid() > 0, "stdout": "1\\n2"}
    return Result(not check, seen, {"count": 1}, {"count": params["count"]})


def main():
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
"""
ACTION = """
from ansible_collections.virtfleet.core.plugins.plugin_utils.direct import DirectAction
from ansible_collections.virtfleet.trial.plugins.modules import probe

class ActionModule(DirectAction):
    module = probe
"""


@dataclass
class Run:
    """What a playbook came to."""

    code: int
    output: str
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def direct(self) -> list[str]:
        """Which tasks ran here, as Ansible's verbose output says."""
        return [line for line in self.output.splitlines() if line.endswith("runs in this worker")]

    @property
    def reasons(self) -> list[str]:
        """Why others did not."""
        return [line.partition("normal way: ")[2] for line in self.output.splitlines() if "runs the normal way" in line]


Play = Callable[..., Run]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Run tasks in a play of their own by `ansible-playbook`."""
    plugins = tmp_path / "collections/ansible_collections/virtfleet/trial/plugins"
    for name, text in {"modules/probe.py": PROBE, "action/probe.py": ACTION}.items():
        (plugins / name).parent.mkdir(parents=True, exist_ok=True)
        (plugins / name).write_text(text)
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/recorder.py").write_text(RECORDER)

    def played(tasks: list[dict[str, Any]], *, direct: bool, words: tuple[str, ...] = (), **more: Any) -> Run:
        record = tmp_path / "record"
        record.write_text("")
        playbook = tmp_path / "play.yml"
        connection = {"connection": "local", **more}
        playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks, **connection}]))
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", "somehost,", "-vvv", "-e", f"ansible_python_interpreter={sys.executable}"),
            *words,
            str(playbook),
        ]
        own = {
            "ANSIBLE_COLLECTIONS_PATH": f"{tmp_path}/collections:{COLLECTIONS}",
            "ANSIBLE_CALLBACK_PLUGINS": str(tmp_path / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "tmp"),
            "PROBE_REGION": "eu-1",
            "VIRTFLEET_DIRECT": str(int(direct)),
            "RECORD": str(record),
        }
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=250
        )
        results = [json.loads(line) for line in record.read_text().splitlines()]
        return Run(done.returncode, done.stdout + done.stderr, results)

    yield played


def probe(**options: Any) -> dict[str, Any]:
    keywords: dict[str, Any] = {
        name: options.pop(name) for name in ("loop", "check_mode", "diff", "no_log") if name in options
    }
    return {"virtfleet.trial.probe": options, "ignore_errors": True, **keywords}


CASES = {
    "defaults, environment and templates": [probe(name="x", size="{{ [1, 2] | map('int') | list }}", words="a,b")],
    "aliases": [probe(title="by alias"), probe(title="one", name="two")],
    "deprecations": [probe(old="x"), probe(former="x", renamed="y"), probe(former="z")],
    "secrets": [
        probe(password=WORD, name=f"holds {WORD}", nested=[{"key": "k", "password": WORD}]),
        probe(password=WORD, wish="fail"),
        probe(password=WORD, name=WORD, no_log=True),
    ],
    "check and diff": [probe(name="c", check_mode=True, diff=True), probe(name="c", diff=True, count=9)],
    "loops": [probe(name="{{ item }}", loop=["a", "b"], count="{{ 1 if item == 'a' else 'wrong' }}")],
    "wrong options": [
        probe(nmae="x"),
        probe(a="1", b="2", kind="one"),
        probe(c="1"),
        probe(kind="two"),
        probe(kind="three"),
        probe(b="1"),
        probe(count="many"),
        probe(nested=[{"password": WORD}]),
        probe(nested=[{"key": "k", "pasword": WORD}], password=WORD),
        probe(count="{{ missing_variable }}"),
    ],
    "text that looks like a template": [probe(name="{{ evil }}", words=["{{ evil }}"])],
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_equal_key_by_key(play: Play, case: str) -> None:
    given = {"evil": {"__ansible_unsafe": "{{ lookup('pipe', 'id') }}"}, "word": SECRET}
    here, there = (play(CASES[case], direct=direct, words=("-e", json.dumps(given))) for direct in (True, False))
    assert len(here.direct) >= len(CASES[case]) - (case == "wrong options")
    assert there.direct == []
    assert [each["task"] for each in here.results] == [each["task"] for each in there.results]
    for mine, its in zip(here.results, there.results, strict=True):
        assert set(mine["result"]) == set(its["result"])
        for key, value in its["result"].items():
            assert mine["result"][key] == value, key
    assert here.code == there.code
    assert "uid=" not in here.output
    for line in here.output.splitlines():
        assert SECRET not in line or "word=" in line, line


def test_a_defect_of_a_module_fails_the_task_without_telling_its_secrets(play: Play) -> None:
    run = play([probe(password=WORD, wish="crash")], direct=True, words=("-e", f"word={SECRET}"))
    assert "RuntimeError: lost ****" in run.results[0]["result"]["msg"]
    assert SECRET not in run.output.replace(f"-e word={SECRET}", "")


READS: list[dict[str, Any]] = [
    {"virtfleet.core.host_info": {"uri": URI}},
    {"virtfleet.core.vm_info": {"uri": URI, "vms": [{"name": "test"}, {"name": "none"}], "addresses": True}},
]
CHANGES: list[dict[str, Any]] = [
    {"virtfleet.core.pool": {"uri": URI, "name": "p", "path": "/var/lib/libvirt/p"}},
    {"virtfleet.core.network": {"uri": URI, "name": "n", "mode": "bridge", "bridge": "br0"}},
    {"virtfleet.core.volume": {"uri": URI, "name": "v", "pool": "default-pool", "size": "1GiB"}},
    {"virtfleet.core.volume": {"uri": URI, "name": "v", "pool": "default-pool", "size": "huge"}},
    {"virtfleet.core.volume": {"uri": URI, "name": "v", "pool": "no-such-pool", "size": "1GiB"}},
    {"virtfleet.core.vm": {"uri": URI, "name": "test", "state": "paused"}},
    {"virtfleet.core.vm": {"uri": URI, "vms": [{"name": "test", "state": "stopped", "force": True, "grace": 0}]}},
    {"virtfleet.core.vm": {"uri": URI, "vms": [{"name": "test", "state": "absent"}, {"name": "new"}]}},
    {"virtfleet.core.image": {"uri": URI, "name": "i", "pool": "default-pool", "src": "/no/such/file"}},
]
# Measured anew each time.
FIGURES = ("load", "free_bytes")


def without_figures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_figures(each) for key, each in value.items() if key not in FIGURES}
    return [without_figures(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("check", [False, True], ids=["real", "check mode"])
def test_every_module_says_the_same_both_ways(play: Play, check: bool) -> None:
    tasks = [{**task, "ignore_errors": True, "diff": True, "check_mode": check} for task in READS + CHANGES]
    here, there = (play(tasks, direct=direct) for direct in (True, False))
    assert len(here.direct) == len(tasks)
    assert len(here.results) == len(there.results) == len(tasks)
    for mine, its in zip(here.results, there.results, strict=True):
        assert without_figures(mine) == without_figures(its)


def test_where_it_could_make_a_difference_the_normal_way_is_gone(play: Play) -> None:
    quick = {"virtfleet.trial.probe": {"name": "x"}}
    tasks = [
        {**quick, "environment": {"PROBE_REGION": "us-2"}},
        {**quick, "async": 30, "poll": 1},
        {**quick, "vars": {"virtfleet_direct": False}},
        {**quick, "vars": {"ansible_become": True, "ansible_become_user": "root"}, "ignore_errors": True},
        {**quick, "delegate_to": "localhost"},
    ]
    run = play(tasks, direct=True)
    assert run.reasons == [
        "the task brings its own environment",
        "the task is asynchronous",
        "direct execution is switched off",
        "the task becomes another user",
    ]
    assert run.results[0]["result"]["params"]["region"] == "us-2"
    assert len(run.direct) == 1  # the last one: it is delegated to this very machine


def test_on_another_machine_only_a_uri_that_names_a_host_is_used_from_here(play: Play) -> None:
    tasks = [
        {"virtfleet.trial.probe": {"uri": uri, "src": src}, "ignore_unreachable": True}
        for uri, src in {
            "qemu:///system": None,
            "qemu+tcp://localhost/system": None,
            "qemu+tcp://127.0.0.1/system": None,
            "qemu+tls://kvm1.example/system": None,
            "qemu+ssh://kvm1.example/system": "/etc/hostname",
        }.items()
    ]
    unreachable = {"connection": "ssh", "vars": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    run = play([*tasks, {**tasks[3], "delegate_to": "elsewhere"}], direct=True, **unreachable)
    here = "its URI means the libvirt of the host that it runs on"
    assert run.reasons == [
        *(here, here, here, "src is a file of the host that it runs on"),
        "the task is delegated to another host",
    ]
    assert len(run.direct) == 1


@pytest.mark.parametrize(
    ("uri", "another"),
    [
        ("qemu+ssh://root@kvm1/system", True),
        ("qemu+tcp://10.77.0.11/system", True),
        ("qemu+tls://[2001:db8::1]:16514/system", True),
        ("qemu:///system", False),
        ("qemu+unix:///system?socket=/run/x", False),
        ("test:///default", False),
        ("qemu+tcp://localhost/system", False),
        ("qemu+tcp://[::1]/system", False),
        ("qemu+tcp://127.0.0.2/system", False),
        ("qemu+tcp://[bad/system", False),
    ],
)
def test_uris_that_name_another_host(uri: str, another: bool) -> None:
    assert names_another_host(uri) is another


def test_every_module_has_an_action_plugin_and_a_place_in_the_action_group() -> None:
    modules = {path.stem for path in (CORE / "plugins/modules").glob("*.py")}
    assert {path.stem for path in (CORE / "plugins/action").glob("*.py")} == modules
    assert set(yaml.safe_load((CORE / "meta/runtime.yml").read_text())["action_groups"]["all"]) == modules


def test_both_ways_take_the_same_rules_of_every_module() -> None:
    taken = set(inspect.signature(ArgumentSpecValidator).parameters)
    for path in (CORE / "plugins/modules").glob("*.py"):
        module = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{path.stem}")
        assert set(module.RULES) <= taken, path.stem
        assert callable(module.execute), path.stem
