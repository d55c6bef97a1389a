"""The CLI against a real server: what it prints, and the code it exits with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from virtfleet import processes

from tests.lab.fleet import free_port, pid_of, wait_until


class Cli:
    """The command in a process of its own, with its own home and configuration."""

    def __init__(self, home: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
        own = {"VIRTFLEET_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
        self.environment = {**kept, **own, **environment}

    def __call__(self, *words: str, code: int = 0, text: str = "") -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
        done = subprocess.run(
            program, env=self.environment, input=text, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running fleet without hosts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTFLEET_HOME", str(folder))
        here, fresh = processes.start(f"127.0.0.1:{free_port()}")
        try:
            assert fresh
            assert processes.start(here.listen) == (here, False)
            with pytest.raises(processes.ProcessError, match="runs already"):
                processes.start("127.0.0.1:1")
            yield folder
        finally:
            assert processes.stop()
            assert not processes.stop()


@pytest.fixture
def cli(home: Path) -> Cli:
    return Cli(home)


def test_an_empty_list_says_so_to_people_and_is_an_empty_list_to_programs(cli: Cli) -> None:
    for noun in ("vm", "zone", "image", "flavor", "network"):
        assert "There are no" in cli(noun, "list").stderr
        assert json.loads(cli(noun, "list", "-o", "json").stdout) == []
        assert yaml.safe_load(cli(noun, "list", "-o", "yaml").stdout) == []
        assert cli(noun, "list", "-o", "name").stdout == ""


def test_a_host_is_registered_shown_changed_and_removed(cli: Cli) -> None:
    assert "t1 is registered" in cli("host", "add", "test:///default", "--name", "t1").stderr
    shown = json.loads(cli("host", "show", "t1", "-o", "json").stdout)
    assert (shown["state"], shown["zone"]) == ("up", "default")
    cli("host", "set", "t1", "--maintenance", "--reserved-memory", "1GiB")
    assert json.loads(cli("host", "show", "t1", "-o", "json").stdout)["maintenance"] is True
    assert "t1" in cli("host", "list").stdout
    assert "t1" in cli("capacity").stdout
    job = cli("host", "discover", "t1", "--no-wait").stdout.strip()
    assert job.startswith("job_")
    cli("job", "wait", job)
    told = cli("job", "events", job).stdout
    assert "Read the host" in told
    assert "succeeded" in cli("job", "show", job).stdout
    assert "virtfleet job" not in cli("job", "list", "-o", "name").stdout
    cli("job", "cancel", job, code=4)
    cli("host", "add", "test:///default", "--name", "t1", code=4)
    cli("host", "remove", "t1")
    cli("host", "show", "t1", code=3)


def test_a_host_that_cannot_be_reached_ends_with_its_reason(cli: Cli) -> None:
    failed = cli("host", "add", "qemu+tcp://127.0.0.1:9/system", "--name", "dead", code=1)
    assert "Failed to connect" in failed.stderr
    cli("host", "remove", "dead")


def test_what_is_wrong_is_said_with_a_code_of_its_own(cli: Cli, home: Path, tmp_path: Path) -> None:
    assert (
        "letters, digits"
        in cli("flavor", "add", "a b", "--vcpus", "1", "--memory", "1GiB", "--disk", "1GiB", code=2).stderr
    )
    assert "unit" in cli("flavor", "add", "a", "--vcpus", "1", "--memory", "1", "--disk", "1GiB", code=2).stderr
    cli("vm", "show", "../../x y", code=3)
    cli("vm", "create", "x", "--ssh-key", str(tmp_path / "none"), code=2)
    cli("nonsense", code=2)
    cli("vm", "list", "-o", "xml", code=2)
    assert "virtfleet serve" in Cli(home, VIRTFLEET_URL="http://127.0.0.1:9")("vm", "list", code=5).stderr
    assert "token" in Cli(home, VIRTFLEET_TOKEN="vf_wrong")("vm", "list", code=5).stderr


def test_a_context_keeps_url_and_token_for_its_owner_alone(home: Path, tmp_path: Path) -> None:
    token = (home / "admin.token").read_text()
    url = f"http://{(home / 'listen').read_text().strip()}"
    other = Cli(tmp_path / "elsewhere", XDG_CONFIG_HOME=str(tmp_path))
    other("vm", "list", code=5)
    other("context", "add", "here", "--url", url, text=token)
    kept = tmp_path / "virtfleet" / "contexts.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    other("vm", "list")
    listed = other("context", "list").stdout
    assert "here" in listed
    assert token.strip() not in listed
    other("context", "use", "nowhere", code=3)
    other("context", "remove", "here")
    other("vm", "list", code=5)


def test_nothing_is_started_when_a_file_of_s1_has_a_bad_line(tmp_path: Path) -> None:
    for name, text in (("pm", "10.0.0.1\nbad host\n"), ("images", "/x\n"), ("types", "{}")):
        (tmp_path / name).write_text(text)
    home = tmp_path / "home"
    files = [str(tmp_path / name) for name in ("pm", "images", "types")]
    told = Cli(home)("serve", *files, code=2).stderr
    assert "line 2" in told
    assert "Nothing was started" in told
    assert not (home / "processes.json").exists()
    Cli(home)("serve", files[0], code=2)


def test_an_address_that_is_taken_is_told(home: Path, tmp_path: Path) -> None:
    taken = (home / "listen").read_text().strip()
    assert "cannot listen" in Cli(tmp_path / "home")("serve", "--listen", taken, code=1).stderr


def test_a_process_that_dies_is_started_again(home: Path) -> None:
    worker = pid_of(home, "worker")
    os.kill(worker, signal.SIGKILL)

    def again() -> bool:
        try:
            return pid_of(home, "worker") != worker
        except LookupError:
            return False

    wait_until(again, 60, "the worker to be back")
