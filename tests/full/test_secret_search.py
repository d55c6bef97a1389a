"""What every scenario of a role with secrets ends its verify with: a search of all logs, which finds what is there."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checks.runner import ROOT
from tests.full.by_hand import ByHand
from tests.instances.group import Group

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

SECRET = "Zk3vR8qLw2Xn5Tb7Yc1M"
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
TASKS = ROOT / "tests/instances/molecule/no_secret_told.yml"


@pytest.fixture(scope="module")
def instance() -> Iterator[ByHand]:
    group = Group("secret-search")
    with group.alone():
        try:
            yield ByHand([group.up(["plain"])[0]["inventory"]])
        finally:
            group.down()


def search(instance: ByHand, folder: Path, said: str, code: int = 2) -> str:
    """Search for the secret and the key where Ansible said this; return what the search says."""
    (folder / "ansible.log").write_text(said)
    tasks = [{"ansible.builtin.include_tasks": str(TASKS), "vars": {"scenario_secrets": [SECRET, KEY]}}]
    play = [{"hosts": "plain", "gather_facts": False, "tasks": tasks}]
    (folder / "play.yml").write_text(json.dumps(play))
    where = json.dumps({"molecule_ephemeral_directory": str(folder)})
    answer = instance.run("ansible-playbook", str(folder / "play.yml"), "-e", where, code=code)
    assert SECRET not in answer
    assert ("Put no_log" in answer) == (code != 0), answer
    return answer


def test_nothing_is_found_where_nothing_was_told(instance: ByHand, tmp_path: Path) -> None:
    search(instance, tmp_path, "all is well\n", code=0)


@pytest.mark.parametrize(
    "said", [f"changed: {SECRET}!", json.dumps({"content": base64.b64encode(KEY.encode()).decode()})]
)
def test_what_ansible_said_is_searched(instance: ByHand, tmp_path: Path, said: str) -> None:
    assert "in 1 lines of what Ansible said" in search(instance, tmp_path, f"begin\n{said}\nend\n")


def test_log_files_and_journal_are_searched(instance: ByHand, tmp_path: Path) -> None:
    def on(module: str, words: str) -> None:
        instance.run("ansible", "plain", "-m", f"ansible.builtin.{module}", "-a", words)

    on("copy", f"content=told:{SECRET} dest=/var/log/trial.log")
    assert "in 1 lines of the logs of plain" in search(instance, tmp_path, "all is well\n")
    on("file", "path=/var/log/trial.log state=absent")
    search(instance, tmp_path, "all is well\n", code=0)
    on("command", f"logger {SECRET}")
    assert "of the logs of plain" in search(instance, tmp_path, "all is well\n")
