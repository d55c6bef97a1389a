"""What a run gets is text where a person typed text, and nothing else."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from virtfleet.jobs import attempts
from virtfleet.jobs.attempts import CannotRun, Target

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = [
    "{{ lookup('pipe', 'touch /tmp/x') }}",
    "{% for x in y %}{% endfor %}",
    "{# comment #}",
    "!unsafe",
    "!!python/object/apply:os.system ['true']",
    "!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  00",
    "&anchor",
    "*alias",
    "- a\n- b",
    "a: b",
    "---\nx: 1\n...",
    "'\"\\",
    '" !unsafe "',
    "# no comment",
    "%YAML 1.1",
    "yes",
    "null",
    "~",
    "",
    " ",
    "0x10",
    "1e3",
    "1_000",
    "52:54:00:41:13:12",
    "2024-01-01",
    "<<",
    "=",
    "\0\x01\x07\x1b[31m\x7f\x85\x9f",
    "\u2028\u2029\ufeff\ufffe",
    "tab\there\r\nnew",
    "😀 ü 漢字",
    "x" * 5000,
    "word " * 2000,
]


class Reader(yaml.SafeLoader):
    """Reads what the dumper wrote; refuses text without a tag, unless it could mean something else than text."""


def _tagged(loader: Any, node: Any) -> str:
    return str(loader.construct_scalar(node))


def _plain(loader: Any, node: Any) -> str:
    meaning = loader.resolve(yaml.ScalarNode, node.value, (True, False))
    assert meaning != "tag:yaml.org,2002:str", f"text without a tag: {node.value!r}"
    assert "{" not in node.value
    return str(node.value)


Reader.add_constructor("!unsafe", _tagged)
Reader.add_constructor("tag:yaml.org,2002:str", _plain)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_is_written_unsafe_and_reads_back_as_it_was(text: str) -> None:
    data = {text or "key": text, "list": [text, {"deep": {text or "key": [text]}}], "tuple": (text,)}
    read = yaml.load(attempts.dump({**data, "tuple": [text]}), Loader=Reader)
    assert read == {**data, "tuple": [text]}


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    assert "\ufffd" in yaml.load(attempts.dump({"x": "a\ud800b"}), Loader=Reader)["x"]


def test_subclasses_of_text_are_text_too() -> None:
    class Clever(str):
        pass

    assert yaml.load(attempts.dump({Clever("{{ a }}"): Clever("{{ b }}")}), Loader=Reader) == {"{{ a }}": "{{ b }}"}


def test_numbers_and_truth_stay_what_they_are() -> None:
    data: dict[str, Any] = {"a": 1, "b": 1.5, "c": True, "d": None, "e": [], "f": {}}
    assert yaml.load(attempts.dump(data), Loader=Reader) == data


def test_what_is_not_plain_data_is_refused() -> None:
    with pytest.raises(yaml.YAMLError):
        attempts.dump({"x": object()})


def test_a_host_cannot_choose_what_ansible_runs() -> None:
    hostile = {
        "ansible_connection": "ssh",
        "ansible_python_interpreter": "/tmp/evil",
        "ansible_ssh_common_args": "-o ProxyCommand=evil",
        "ansible_become_exe": "evil",
        "not a name": "x",
        "ansible_user": "root",
        "rack": "4",
        "virtfleet_uri": "other",
    }
    made = attempts.inventory([Target("h1", "z", "qemu+tcp://h1/system", hostile)])
    assert made["all"]["hosts"]["h1"] == {
        "ansible_user": "root",
        "rack": "4",
        "virtfleet_uri": "qemu+tcp://h1/system",
        "virtfleet_zone": "z",
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
    }
    assert made["all"]["children"] == {"z": {"hosts": {"h1": {}}}}


def test_a_job_without_hosts_runs_on_this_machine() -> None:
    assert list(attempts.inventory([])["all"]["hosts"]) == ["localhost"]


def test_a_zone_cannot_take_the_name_of_a_built_in_group() -> None:
    assert "children" not in attempts.inventory([Target("h1", "all", "qemu+tcp://h1/system")])["all"]


def test_secrets_are_found_wherever_they_are() -> None:
    variables = {"a": [{"user_data_src": {"$secret": "sec_1"}}, {"$secret": "sec_2"}], "b": {"$secret": "sec_1"}}
    assert attempts.secret_ids(variables) == ["sec_1", "sec_2"]


@pytest.mark.parametrize("reference", ["../../etc/passwd", "a/b", "", 7, None, "sec\n1", "."])
def test_a_reference_to_a_secret_is_an_id_and_no_path(reference: Any) -> None:
    with pytest.raises(CannotRun):
        attempts.secret_ids({"x": {"$secret": reference}})


def test_ansible_runners_own_ways_to_pass_variables_are_not_used() -> None:
    # They lose the tag: `extravars` becomes JSON on the command line, `inventory` as data is written without tags.
    banned = {"extravars", "inventory", "envvars", "cmdline", "module_args", "passwords", "roles_path"}
    for file in (ROOT / "api/virtfleet").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and "Runner" in ast.unparse(node.func):
                used = {keyword.arg for keyword in node.keywords}
                assert not used & banned, f"{file}:{node.lineno} passes {used & banned} to ansible-runner"
                assert None not in used, f"{file}:{node.lineno} passes unknown arguments to ansible-runner"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ansible_runner"):
                names = {alias.name for alias in node.names}
                assert not names & {"run", "run_async", "run_command", "interface"}, f"{file}:{node.lineno}"


def test_nobodys_own_configuration_leaks_into_a_run() -> None:
    settings = attempts.environment("/run/folder", 3)
    for name in ("ANSIBLE_CONFIG", "ANSIBLE_HOME", "ANSIBLE_LOCAL_TEMP", "ANSIBLE_REMOTE_TEMP"):
        assert settings[name].startswith("/run/folder/")
    assert settings["ANSIBLE_INVENTORY_ENABLED"] == "ansible.builtin.yaml"
    assert (Path(settings["ANSIBLE_COLLECTIONS_PATH"]) / "ansible_collections/virtfleet/core").is_dir()
