# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import (
    bounded,
    check_uri,
    open_host,
    opened_host,
    uri_for_peers,
)
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers, as a frozen libvirt daemon does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_host_opens() -> None:
    with opened_host("test:///default", Deadline(5)) as connection:
        assert connection.getType() == "TEST"


def test_a_frozen_daemon_is_given_up_and_named(silent_port: int) -> None:
    uri = f"qemu+tcp://127.0.0.1:{silent_port}/system"
    began = time.monotonic()
    with pytest.raises(VirtfleetError) as caught:
        open_host(uri, Deadline(0.3))
    assert caught.value.code == "host_frozen"
    assert uri in str(caught.value)
    assert time.monotonic() - began < 2


def test_a_host_without_daemon_is_unreachable(closed_port: int) -> None:
    uri = f"qemu+tcp://127.0.0.1:{closed_port}/system"
    with pytest.raises(VirtfleetError) as caught:
        open_host(uri, Deadline(5))
    assert caught.value.code == "host_unreachable"
    assert uri in str(caught.value)
    assert caught.value.hint


def test_over_ssh_the_hint_says_how_to_try_the_login(closed_port: int) -> None:
    with pytest.raises(VirtfleetError) as caught:
        open_host(f"qemu+ssh://root@127.0.0.1:{closed_port}/system", Deadline(20))
    assert caught.value.code == "host_unreachable"
    assert f"ssh -o BatchMode=yes -p {closed_port} root@127.0.0.1 true" in caught.value.hint


def test_a_frozen_host_does_not_hold_up_another(silent_port: int) -> None:
    def open_frozen() -> None:
        with pytest.raises(VirtfleetError):
            open_host(f"qemu+tcp://127.0.0.1:{silent_port}/system", Deadline(2))

    frozen = threading.Thread(target=open_frozen)
    frozen.start()
    began = time.monotonic()
    open_host("test:///default", Deadline(5)).close()
    assert time.monotonic() - began < 1
    frozen.join()


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            "qemu",
            "//host/system",
            "qemu+ssh://ho st/system",
            "qemu:///sys\0tem",
            "qemu://host:99999/system",
            "😀:///",
        ),
        "qemu+tcp://" + "a" * 5000,
        # What would run a program here or on the host.
        "qemu+ext:///system?command=/tmp/evil",
        "qemu+ext://host/system",
        "qemu+ssh://host/system?command=/tmp/evil",
        "qemu+ssh://host/system?COMMAND=/tmp/evil",
        "qemu+ssh://host/system?no_tty=1&netcat=/tmp/evil",
        "qemu+ssh://-oProxyCommand=evil/system",
        "qemu+ssh://-oProxyCommand=evil@host/system",
    ],
)
def test_a_uri_that_is_none_or_runs_a_program_is_refused(uri: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        open_host(uri, Deadline(5))
    assert caught.value.code == "invalid"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("uri", "used"),
    [
        ("test:///default", "test:///default"),
        ("qemu+tcp://10.0.0.1/system", "qemu+tcp://10.0.0.1/system"),
        ("qemu+tls://host.example:1234/system", "qemu+tls://host.example:1234/system"),
        # Nothing may wait for somebody to type a password.
        ("qemu+ssh://root@host/system", "qemu+ssh://root@host/system?no_tty=1"),
        ("qemu+ssh://root@host/system?keyfile=/k/id", "qemu+ssh://root@host/system?keyfile=/k/id&no_tty=1"),
        ("qemu+ssh://root@host/system?no_tty=0", "qemu+ssh://root@host/system?no_tty=0"),
    ],
)
def test_a_uri_is_used_as_it_is_written(uri: str, used: str) -> None:
    assert check_uri(uri) == used


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("qemu+tcp://10.0.0.1/system", "qemu+tcp://10.0.0.1/system"),
        ("qemu+tls://10.0.0.1/system?pkipath=/home/me/pki", "qemu+tls://10.0.0.1/system"),
        ("qemu+ssh://root@h/system?keyfile=/k/id&no_verify=1&known_hosts=/k/h", "qemu+ssh://root@h/system?no_verify=1"),
    ],
)
def test_a_peer_is_not_sent_to_key_files_of_ours(ours: str, theirs: str) -> None:
    assert uri_for_peers(ours) == theirs


def test_an_abandoned_call_is_undone_when_it_comes_back() -> None:
    go_on, undone = threading.Event(), threading.Event()

    def slow() -> str:
        go_on.wait(5)
        return "late"

    with pytest.raises(VirtfleetError) as caught:
        bounded(slow, Deadline(0.05), "start pool p", undo=lambda value: undone.set() if value == "late" else None)
    assert caught.value.code == "timeout"
    assert str(caught.value).startswith("Failed to start pool p: no answer within 0.05 s")
    go_on.set()
    assert undone.wait(5)


def test_a_bounded_call_returns_and_raises_as_it_would_alone() -> None:
    assert bounded(lambda: 7, Deadline(5), "count") == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, Deadline(5), "divide")


def in_a_process(program: str) -> subprocess.CompletedProcess[str]:
    base = "ansible_collections.virtfleet.core.plugins.module_utils"
    head = f"from {base}.connection import *\nfrom {base}.errors import *\nimport os\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_process_with_an_abandoned_opening_still_ends(silent_port: int) -> None:
    ended = in_a_process(
        f"""
        try:
            open_host("qemu+tcp://127.0.0.1:{silent_port}/system", Deadline(0.2))
        except VirtfleetError as error:
            print(error.code)
        """
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "host_frozen\n", "")


def test_a_child_of_a_process_that_used_libvirt_is_told_so_instead_of_hanging() -> None:
    ended = in_a_process(
        """
        open_host("test:///default", Deadline(5))
        if os.fork() == 0:
            try:
                open_host("test:///default", Deadline(5))
            except VirtfleetError as error:
                print(error.obstacle, flush=True)
            os._exit(0)
        os.wait()
        """
    )
    assert ended.stdout == "this process was forked from one that already used it\n"


def test_the_event_loop_starts_after_a_fork() -> None:
    ended = in_a_process(
        """
        if os.fork() == 0:
            print(open_host("test:///default", Deadline(5)).getType(), flush=True)
            os._exit(0)
        os.wait()
        print(open_host("test:///default", Deadline(5)).getType())
        """
    )
    assert (ended.stdout, ended.stderr) == ("TEST\nTEST\n", "")


def test_libvirt_prints_nothing_on_stderr() -> None:
    ended = in_a_process(
        """
        connection = open_host("test:///default", Deadline(5))
        try:
            connection.lookupByName("nobody")
        except Exception:
            pass
        """
    )
    assert ended.stderr == ""


def test_a_missing_libvirt_names_the_python_that_lacks_it(tmp_path: os.PathLike[str]) -> None:
    ended = in_a_process(
        """
        import sys
        from ansible_collections.virtfleet.core.plugins.module_utils import connection
        connection.HAS_LIBVIRT = False
        try:
            open_host("test:///default", Deadline(5))
        except VirtfleetError as error:
            print(sys.executable in str(error), "libvirt-python" in str(error))
        """
    )
    assert ended.stdout == "True True\n"
