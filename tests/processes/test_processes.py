"""The processes behind `serve`: started once, side by side with others, ended together; what stops them is told."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from virtfleet import processes

from tests.lab.fleet import free_port, pid_of, wait_until

BOUND = 180.0
"""Seconds; only tells what comes late on a busy machine from what never comes."""


class Home:
    """A VIRTFLEET_HOME and a port of its own; the commands run in processes of their own, as a user's do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listen = f"127.0.0.1:{free_port()}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment(), capture_output=True, text=True, check=False, timeout=180
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
        return {**kept, "VIRTFLEET_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config")}

    def serve(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("serve", "--listen", self.listen, *words)

    def processes(self) -> dict[str, int]:
        """Return the processes of this home by name, the watcher too."""
        found = {}
        for name in ("processes", *processes.NAMES):
            try:
                found[name] = pid_of(self.folder, name)
            except LookupError:
                continue
        return found

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.listen}/api/v1/readyz", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    if made.processes():
        made.run("down")
    assert made.processes() == {}


def test_two_fleets_run_side_by_side_and_end_apart(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    try:
        for each in (home, other):
            assert each.serve().returncode == 0
        for each in (home, other):
            assert each.ready()
            assert each.run("host", "list", "-o", "json").stdout.strip() == "[]"
        assert home.run("down").returncode == 0
        assert not home.ready()
        assert other.ready()
        assert set(other.processes()) == {"processes", *processes.NAMES}
    finally:
        other.run("down")
    assert other.processes() == {}


def test_of_two_starts_at_once_one_starts_and_the_other_finds_it(home: Home) -> None:
    with ThreadPoolExecutor() as pool:
        told = sorted(each.stderr for each in pool.map(lambda _: home.serve(), range(2)))
    assert "answered already" in told[0]
    assert "answers on" in told[1]
    workers = [each for each in Path("/proc").glob("[0-9]*") if _is_worker_of(each, home.folder)]
    assert len(workers) == 1


def _is_worker_of(process: Path, home: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"virtfleet.worker" in words and f"VIRTFLEET_HOME={home}".encode() in environment


def test_what_a_dead_watcher_left_behind_is_no_hindrance_and_nobody_else_is_ended(home: Home) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        home.folder.mkdir()
        # The number of a process that lives, but began at another time.
        left = f'{{"pid": {bystander.pid}, "began": "1", "listen": "127.0.0.1:1", "s1": false}}'
        (home.folder / "processes.json").write_text(left)
        assert "Nothing was up" in home.run("down").stderr
        assert home.serve().returncode == 0
        assert home.ready()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_processes_end_when_their_watcher_is_killed(home: Home) -> None:
    assert home.serve().returncode == 0
    os.kill(home.processes()["processes"], signal.SIGKILL)
    wait_until(lambda: home.processes() == {}, BOUND, "the processes to end")
    again = home.serve()
    assert again.returncode == 0, again.stderr
    assert home.ready()


def test_a_start_that_is_interrupted_leaves_nothing_running(home: Home) -> None:
    for _ in range(10):
        starting = subprocess.Popen(home.command("serve", "--listen", home.listen), env=home.environment())
        wait_until(lambda: "processes" in home.processes(), BOUND, "the watcher")
        starting.send_signal(signal.SIGINT)
        if starting.wait(BOUND) != 0:
            break
        home.run("down")  # it was up before it could be interrupted
    else:
        pytest.fail("no start could be interrupted")
    assert home.processes() == {}


def test_in_the_foreground_it_stays_until_it_is_told_to_end(home: Home) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        staying = subprocess.Popen(
            home.command("serve", "--listen", home.listen, "--foreground"),
            env=home.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert staying.stderr is not None
        assert any("Ctrl-C ends it" in line for line in staying.stderr)
        assert home.ready()
        staying.send_signal(number)
        assert staying.wait(BOUND) == 0
        assert home.processes() == {}


def test_a_fleet_that_cannot_start_says_why_and_leaves_nothing(home: Home) -> None:
    home.folder.mkdir()
    (home.folder / "virtfleet.db").write_text("this is no database")
    told = home.serve()
    assert told.returncode == 1
    assert "file is not a database" in told.stderr
    assert home.processes() == {}
    (home.folder / "virtfleet.db").unlink()
    (home.folder / "config.toml").write_text("nonsense = 1\n")
    told = home.serve()
    assert told.returncode == 1
    assert "nonsense" in told.stderr


def test_s1s_files_are_refused_by_a_fleet_that_runs_without_its_routes(home: Home, tmp_path: Path) -> None:
    assert home.serve().returncode == 0
    (tmp_path / "hosts").write_text("127.0.0.1\n")
    (tmp_path / "image.img").write_bytes(bytes(510) + b"\x55\xaa")
    (tmp_path / "images").write_text(f"{tmp_path / 'image.img'}\n")
    (tmp_path / "types").write_text('{"types": [{"tid": 1, "cpu": 1, "ram": 64, "disk": 1}]}')
    told = home.serve(*(str(tmp_path / name) for name in ("hosts", "images", "types")))
    assert told.returncode == 1
    assert "without the routes of S1" in told.stderr


@pytest.mark.parametrize("wrong", ["nowhere", "127.0.0.1:0", "127.0.0.1:65536", "::1:8080", "a b:80", "127.0.0.1:x"])
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(processes.ProcessError, match="HOST:PORT"):
        processes.address(wrong)


def test_nothing_is_started_on_an_address_that_is_none(home: Home) -> None:
    told = home.run("serve", "--listen", "nowhere")
    assert told.returncode == 1
    assert "HOST:PORT" in told.stderr


def test_a_port_alone_is_an_address_of_this_machine_only() -> None:
    assert processes.address("8197") == "127.0.0.1:8197"
    assert processes.address(":8197") == "0.0.0.0:8197"
    assert processes.address("[::1]:8197") == "[::1]:8197"
