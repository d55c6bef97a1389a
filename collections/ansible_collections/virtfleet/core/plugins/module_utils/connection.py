# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only place that opens libvirt.

A frozen libvirt daemon (SIGSTOP) makes `virConnectOpen` hang for ever, and no alarm interrupts it. So it is opened in a
thread that can be abandoned; once open, libvirt's keepalive ends a call into a daemon that has frozen since. Keepalive
and events need libvirt's event loop: one daemon thread, started at the first opening, after any fork.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    HAS_LIBVIRT = False
    LIBVIRT_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    HAS_LIBVIRT = True
    LIBVIRT_IMPORT_ERROR = None

T = TypeVar("T")

KEEPALIVE_INTERVAL = 3  # seconds; with the count below a call into a frozen daemon fails after (3 + 1) x 3 = 12 s
KEEPALIVE_COUNT = 3
# Once a deadline has passed there is still this long to find out whether the host or only its daemon is dead.
PROBE_SECONDS = 1.0

_PORTS = {"tcp": 16509, "tls": 16514, "": 16514, "ssh": 22, "libssh": 22, "libssh2": 22}
# `ext` and `command` run any program where we are, `netcat` any program on the host: a URI is data, not a program.
_FORBIDDEN_PARAMETERS = {"command", "netcat"}
# These name files of the machine that opens the URI. Another machine has its own, in the places where libvirt looks.
_FILE_PARAMETERS = {"keyfile", "known_hosts", "pkipath"}

_loop_lock = threading.Lock()
_loop_pid: int | None = None


def open_host(uri: str, deadline: Deadline, *, events: bool = True) -> libvirt.virConnect:
    """Open the libvirt of one host, before `deadline` (plus a second to say why it failed).

    Raises VirtfleetError `host_frozen` (the host takes connections, its daemon does not answer), `host_unreachable`,
    `refused` (authentication) or `invalid` (a URI that cannot be one, or one that would run a program).

    Without `events` there is no event loop and no keepalive: a call costs half the processor time, and one into a
    daemon that has frozen never ends. That is for a process that somebody else ends in time.
    """
    wanted = f"connect to {_shown(uri)}"
    address = check_uri(uri)
    if not HAS_LIBVIRT:
        hint = "Install the package libvirt-python (python3-libvirt) for that Python, or choose another with "
        raise VirtfleetError(wanted, f"{sys.executable} lacks libvirt-python", f"{hint}ansible_python_interpreter.")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it prints on stderr otherwise
    if events:
        _start_event_loop()

    def opened() -> libvirt.virConnect:
        connection = libvirt.open(address)
        if not events:
            return connection
        # The test driver, for one, works inside this process and has nothing to keep alive.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        return connection

    try:
        return bounded(opened, deadline, wanted, undo=lambda connection: connection.close())
    except VirtfleetError as error:
        if error.code == "timeout":
            raise _no_answer(uri, wanted, deadline) from None
        raise
    except libvirt.libvirtError as error:
        translated = translate(error, wanted)
        if code_of(error) in ("internal", "not_found", "timeout"):
            # While a connection is opened there is nothing else that these could be about.
            translated.code = "host_unreachable"
            translated.hint = "Check that the host is up, that its libvirt daemon runs and that the URI is right."
        translated.hint = _hint_for_ssh(address) or translated.hint
        raise translated from error


@contextlib.contextmanager
def opened_host(uri: str, deadline: Deadline, *, events: bool = True) -> Iterator[libvirt.virConnect]:
    """Open a host for the length of a `with` block; closing it never hides the block's own error.

    An error of the block that is about the host as a whole says which host it is.
    """
    connection = open_host(uri, deadline, events=events)
    try:
        yield connection
    except VirtfleetError as error:
        if error.code in ("host_frozen", "host_unreachable"):
            error.wanted += f" on {_shown(uri)}"
        raise
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def bounded(call: Callable[[], T], deadline: Deadline, wanted: str, undo: Callable[[T], Any] | None = None) -> T:
    """Return what `call` returns, or give it up when `deadline` passes and raise VirtfleetError `timeout`.

    For calls that may hang although the daemon lives, such as a pool on a dead file server. The thread
    that was given up goes on as a daemon; if the call comes back after all, its result goes to `undo`. Exceptions of
    `call` go through.
    """
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    handover = threading.Lock()
    abandoned = False

    def run() -> None:
        try:
            result: tuple[bool, Any] = (True, call())
        except BaseException as error:  # handed to the caller whole, in its own thread
            result = (False, error)
        with handover:
            if not abandoned:
                outcome.put(result)
                return
        if result[0] and undo is not None:
            with contextlib.suppress(Exception):
                undo(result[1])

    threading.Thread(target=run, name=f"virtfleet: {wanted}", daemon=True).start()
    try:
        succeeded, value = outcome.get(timeout=deadline.left())
    except queue.Empty:
        with handover:
            abandoned = outcome.empty()
        if abandoned:
            hint = "Look at the host, or allow more time with the option timeout."
            raise VirtfleetError(wanted, f"no answer within {deadline.seconds:g} s", hint, "timeout") from None
        succeeded, value = outcome.get()
    if not succeeded:
        raise value
    result: T = value
    return result


@contextlib.contextmanager
def domain_events(connection: libvirt.virConnect, domain: libvirt.virDomain | None = None) -> Iterator[threading.Event]:
    """Yield an event that is set whenever a machine's life changes or its agent appears: `wait_for(..., event=...)`.

    Without `domain` it tells of every machine of the host. A driver without events yields one that is never set.
    """
    happened = threading.Event()

    def notice(*_arguments: Any) -> None:
        happened.set()

    kinds = (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE)
    callbacks = []
    for kind in kinds:
        with contextlib.suppress(libvirt.libvirtError):
            callbacks.append(connection.domainEventRegisterAny(domain, kind, notice, None))
    try:
        yield happened
    finally:
        for callback in callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(callback)


def check_uri(uri: str) -> str:
    """Return `uri` as libvirt is to get it, or raise VirtfleetError `invalid`.

    A URI may come from anybody who may register a host, so what would run a program is refused; and one over SSH gets
    `no_tty=1`, so that nothing ever waits for somebody to type a password.
    """
    wanted = f"use {_shown(uri)} as a libvirt URI"
    hint = "Write it like qemu+ssh://root@host/system, qemu+tls://host/system or test:///default."
    try:
        parts = urlsplit(uri)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise VirtfleetError(wanted, f"it cannot be read ({error})", hint, "invalid") from None
    driver, _plus, transport = parts.scheme.partition("+")
    if not driver or not uri.isascii() or not uri.isprintable() or " " in uri or len(uri) > 1024:
        raise VirtfleetError(wanted, "it is not a URI", hint, "invalid")
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    if transport == "ext" or _FORBIDDEN_PARAMETERS & {name.lower() for name, _value in parameters}:
        raise VirtfleetError(
            wanted, "it names a program to run", f"Leave ext, command and netcat out. {hint}", "invalid"
        )
    if (host or "").startswith("-") or (parts.username or "").startswith("-"):
        raise VirtfleetError(wanted, "a host or user cannot begin with '-'", hint, "invalid")
    if transport == "ssh" and "no_tty" not in dict(parameters):
        query = urlencode([*parameters, ("no_tty", "1")], quote_via=quote, safe="/")
        return urlunsplit(parts._replace(query=query))
    return uri


def uri_for_peers(uri: str) -> str:
    """Return `uri`, which works here, as another host is to use it: without the names of key files that lie here."""
    parts = urlsplit(uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in _FILE_PARAMETERS]
    return urlunsplit(parts._replace(query=urlencode(kept, quote_via=quote, safe="/")))


def _shown(uri: str) -> str:
    return repr(uri) if len(uri) > 200 or not uri.isprintable() else uri


def _hint_for_ssh(uri: str) -> str:
    """Return how to find out what SSH did not like, for a URI over SSH.

    That is most often a key, the host's or ours; of a failed `ssh` libvirt has no code, only its words.
    """
    parts = urlsplit(uri)
    if not parts.scheme.partition("+")[2].startswith(("ssh", "libssh")):
        return ""
    user = f"{parts.username}@" if parts.username else ""
    port = f"-p {parts.port} " if parts.port else ""
    return (
        "Check that the host is up and its libvirt daemon runs, that its host key is known here and that it lets a key "
        f"of ours in. As the user that runs virtfleet: ssh -o BatchMode=yes {port}{user}{parts.hostname} true"
    )


def _no_answer(uri: str, wanted: str, deadline: Deadline) -> VirtfleetError:
    """Say whether the host or only its libvirt daemon is silent."""
    parts = urlsplit(uri)
    waited = f"within {deadline.seconds:g} s"
    if parts.hostname:
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[2])
        try:
            socket.create_connection((parts.hostname, port or 16514), timeout=PROBE_SECONDS).close()
        except OSError as error:
            hint = "Check that the host is up and that this machine reaches it over the network."
            return VirtfleetError(wanted, f"no answer {waited} ({error})", hint, "host_unreachable")
    hint = "Look at the libvirt daemon on that host and restart it if it hangs; its machines go on meanwhile."
    text = f"the host takes connections, but its libvirt daemon did not answer {waited}"
    return VirtfleetError(wanted, text, hint, "host_frozen")


def _start_event_loop() -> None:
    """Register libvirt's event loop once in this process and run it in a daemon thread."""
    global _loop_pid  # noqa: PLW0603 -- libvirt has one event loop a process, and so have we
    with _loop_lock:
        if _loop_pid == os.getpid():
            return
        if _loop_pid is not None:
            # The thread did not survive the fork, and libvirt takes no second loop: calls could hang for ever.
            raise VirtfleetError(
                "use libvirt",
                "this process was forked from one that already used it",
                "Fork first and open libvirt in each child, or start the child afresh (spawn).",
            )
        libvirt.virEventRegisterDefaultImpl()
        _loop_pid = os.getpid()
        threading.Thread(target=_run_event_loop, name="virtfleet: libvirt events", daemon=True).start()


def _run_event_loop() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()
