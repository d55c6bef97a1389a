# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent inside a machine: programs run there, files read and written, and what it tells of itself.

What is inside a machine may say anything: an answer of another shape than the agent's is an error, never trusted.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    import libvirt_qemu  # type: ignore[import-untyped]
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

ANSWER_SECONDS = 10.0
"""What an agent that is alive may take for one answer."""
LONGEST_INPUT_BYTES = 2**16
"""libvirt 9.0 never got a message of 330 KB through to an agent, and lost the agent for seconds (seen)."""
LONGEST_OUTPUT_BYTES = 2**20
"""More of a program's output is cut off."""
POLL_SECONDS = (0.02, 0.5)
"""How soon a program is first looked after, and how often at least."""
CHUNK_BYTES = 48 * 2**10


def ask(
    domain: libvirt.virDomain, command: str, arguments: dict[str, Any] | None, deadline: Deadline, wanted: str
) -> Any:
    """Return what the agent answers to a command of its own language.

    Raises VirtfleetError `refused` (the machine does not run, has no agent, or its agent refuses), `timeout` (the agent
    is silent), `internal` (it speaks nonsense).
    """
    seconds = max(1, math.ceil(min(deadline.left(), ANSWER_SECONDS)))
    message = {"execute": command, **({"arguments": arguments} if arguments else {})}
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps(message), seconds, 0)
        return json.loads(answer)["return"]
    except libvirtError as error:
        raise _explained(error, wanted) from error
    except (ValueError, KeyError, TypeError):
        hint = "Look at the agent inside the machine."
        raise VirtfleetError(wanted, f"its agent answered {command} with nonsense", hint) from None


def _explained(error: Exception, wanted: str) -> VirtfleetError:
    failed = translate(error, wanted)
    if failed.code == "timeout":
        failed.hint = "The agent inside the machine does not answer: is it still booting, or busy?"
    elif failed.code == "refused":
        failed.hint = "The machine must run, with qemu-guest-agent running inside it and a channel for it."
    elif failed.code == "internal":
        # The agent itself said no: there is no such file, program or command.
        failed.code, failed.hint = "refused", "That is what the agent inside the machine said."
    return failed


@dataclass(frozen=True)
class Ended:
    """How a program inside a machine ended. `rc` is null when a signal ended it; output that was cut off is marked."""

    rc: int | None
    signal: int | None
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool


def run(domain: libvirt.virDomain, argv: Sequence[str], stdin: bytes | None, deadline: Deadline, wanted: str) -> Ended:
    """Run a program inside a machine, without a shell, and wait for its end.

    Raises VirtfleetError `timeout` when the deadline passes first: the program is killed then, as far as the agent can.
    """
    if stdin is not None and len(stdin) > LONGEST_INPUT_BYTES:
        text = f"its input has {len(stdin)} bytes, and {LONGEST_INPUT_BYTES} are the most that can be sent"
        raise VirtfleetError(wanted, text, "Write it to a file in the machine first, in parts.", "invalid")
    arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if stdin is not None:
        arguments["input-data"] = base64.b64encode(stdin).decode()
    number = _member(ask(domain, "guest-exec", arguments, deadline, wanted), "pid", int, wanted)
    pause = POLL_SECONDS[0]
    while True:
        status = _status(domain, number, deadline, wanted)
        if _member(status, "exited", bool, wanted):
            return _ended(status)
        if deadline.passed:
            _kill(domain, number)
            hint = "Allow more time with timeout, or see in the machine what it waits for."
            text = f"{argv[0]} did not end within {deadline.seconds:g} s, and was killed"
            raise VirtfleetError(wanted, text, hint, "timeout")
        time.sleep(min(pause, deadline.left()))
        pause = min(pause * 1.5, POLL_SECONDS[1])


def _status(domain: libvirt.virDomain, number: int, deadline: Deadline, wanted: str) -> Any:
    try:
        return ask(domain, "guest-exec-status", {"pid": number}, deadline, wanted)
    except VirtfleetError as error:
        if error.code == "host_unreachable" and domain.connect().isAlive():
            text = "it ended, but what it printed is more than libvirt can carry"
            raise VirtfleetError(wanted, text, "Have it write to a file in the machine.", "refused") from error
        raise


def _kill(domain: libvirt.virDomain, number: int) -> None:
    """End a program inside the machine by one that is there on every Unix; the agent has no command for it."""
    arguments = {"path": "kill", "arg": ["-KILL", str(number)]}
    with contextlib.suppress(VirtfleetError):
        ask(domain, "guest-exec", arguments, Deadline(ANSWER_SECONDS), "kill a program")


def _ended(status: dict[str, Any]) -> Ended:
    stdout, stdout_cut = _output(status, "out")
    stderr, stderr_cut = _output(status, "err")
    rc, signal = status.get("exitcode"), status.get("signal")
    return Ended(
        rc if isinstance(rc, int) else None,
        signal if isinstance(signal, int) else None,
        stdout,
        stderr,
        stdout_cut,
        stderr_cut,
    )


def _output(status: dict[str, Any], stream: str) -> tuple[str, bool]:
    try:
        data = base64.b64decode(status.get(f"{stream}-data") or "")
    except (TypeError, ValueError):
        data = b""
    cut = bool(status.get(f"{stream}-truncated")) or len(data) > LONGEST_OUTPUT_BYTES
    return data[:LONGEST_OUTPUT_BYTES].decode("utf-8", "replace"), cut


def _member(answer: Any, name: str, kind: type, wanted: str) -> Any:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise VirtfleetError(wanted, f"its agent's answer lacks {name}", "Look at the agent inside the machine.")
    return value


def file_exists(domain: libvirt.virDomain, path: str, deadline: Deadline, wanted: str) -> bool:
    """Tell whether the agent can open a file for reading."""
    try:
        handle = ask(domain, "guest-file-open", {"path": path, "mode": "r"}, deadline, wanted)
    except VirtfleetError as error:
        if error.code == "refused" and agent_is_there(domain, deadline):
            return False
        raise
    ask(domain, "guest-file-close", {"handle": handle}, deadline, wanted)
    return True


def agent_is_there(domain: libvirt.virDomain, deadline: Deadline) -> bool:
    """Tell whether the agent answers."""
    with contextlib.suppress(VirtfleetError):
        ask(domain, "guest-ping", None, deadline, "reach the agent")
        return True
    return False


def read_file(domain: libvirt.virDomain, path: str, most_bytes: int, deadline: Deadline, wanted: str) -> bytes | None:
    """Return what a file inside the machine holds; None when there is none.

    Raises VirtfleetError `refused` when it is larger than `most_bytes`.
    """
    if not file_exists(domain, path, deadline, wanted):
        return None
    handle = ask(domain, "guest-file-open", {"path": path, "mode": "r"}, deadline, wanted)
    content = b""
    try:
        while True:
            part = ask(domain, "guest-file-read", {"handle": handle, "count": CHUNK_BYTES}, deadline, wanted)
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                content += base64.b64decode(part.get("buf-b64") or "")
            if len(content) > most_bytes:
                hint = "Copy files of that size over the network."
                raise VirtfleetError(wanted, f"{path} has more than {most_bytes} bytes", hint, "refused")
            if not isinstance(part, dict) or part.get("eof") or not part.get("count"):
                return content
    finally:
        with contextlib.suppress(VirtfleetError):
            ask(domain, "guest-file-close", {"handle": handle}, Deadline(ANSWER_SECONDS), wanted)


def write_file(domain: libvirt.virDomain, path: str, content: bytes, deadline: Deadline, wanted: str) -> None:
    """Write a file inside the machine, in place of what it held."""
    handle = ask(domain, "guest-file-open", {"path": path, "mode": "w"}, deadline, wanted)
    try:
        for at in range(0, len(content), CHUNK_BYTES):
            part = base64.b64encode(content[at : at + CHUNK_BYTES]).decode()
            ask(domain, "guest-file-write", {"handle": handle, "buf-b64": part}, deadline, wanted)
        ask(domain, "guest-file-flush", {"handle": handle}, deadline, wanted)
    finally:
        with contextlib.suppress(VirtfleetError):
            ask(domain, "guest-file-close", {"handle": handle}, Deadline(ANSWER_SECONDS), wanted)


def told(domain: libvirt.virDomain, deadline: Deadline) -> dict[str, Any]:
    """Return what the agent tells of its machine, each part null when it does not tell it.

    `{agent: {version, commands}, os, hostname, timezone, users, interfaces, filesystems, frozen}`. Raises
    VirtfleetError when there is no agent that answers.
    """
    wanted = f"ask the agent of machine {domain.name()}"
    info = ask(domain, "guest-info", None, deadline, wanted)
    commands = sorted(
        str(each["name"])
        for each in (info.get("supported_commands") or [] if isinstance(info, dict) else [])
        if isinstance(each, dict) and each.get("enabled") and isinstance(each.get("name"), str)
    )

    def part(command: str) -> Any:
        if command not in commands:
            return None
        try:
            return ask(domain, command, None, deadline, wanted)
        except VirtfleetError as error:
            if error.code == "refused":
                return None
            raise

    os = part("guest-get-osinfo")
    host, zone = part("guest-get-host-name"), part("guest-get-timezone")
    frozen = part("guest-fsfreeze-status")
    return {
        "agent": {"version": info.get("version") if isinstance(info, dict) else None, "commands": commands},
        "os": {key.replace("-", "_"): value for key, value in os.items()} if isinstance(os, dict) else None,
        "hostname": host.get("host-name") if isinstance(host, dict) else None,
        "timezone": zone.get("zone") if isinstance(zone, dict) else None,
        "users": _listed(part("guest-get-users"), _user),
        "interfaces": _listed(part("guest-network-get-interfaces"), _interface),
        "filesystems": _listed(part("guest-get-fsinfo"), _filesystem),
        "frozen": None if frozen is None else frozen == "frozen",
    }


def _listed(found: Any, shown: Any) -> list[dict[str, Any]] | None:
    return [shown(each) for each in found if isinstance(each, dict)] if isinstance(found, list) else None


def _user(user: dict[str, Any]) -> dict[str, Any]:
    return {"name": user.get("user"), "since": user.get("login-time")}


def _interface(card: dict[str, Any]) -> dict[str, Any]:
    given = card.get("ip-addresses")
    addresses = [
        f"{each.get('ip-address')}/{each.get('prefix')}"
        for each in (given if isinstance(given, list) else [])
        if isinstance(each, dict)
    ]
    return {"name": card.get("name"), "mac": card.get("hardware-address"), "addresses": addresses}


def _filesystem(mounted: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": mounted.get("name"),
        "mountpoint": mounted.get("mountpoint"),
        "type": mounted.get("type"),
        "used_bytes": mounted.get("used-bytes"),
        "total_bytes": mounted.get("total-bytes"),
    }


def is_frozen(domain: libvirt.virDomain, deadline: Deadline, wanted: str) -> bool:
    """Tell whether the file systems of a machine are frozen."""
    return bool(ask(domain, "guest-fsfreeze-status", None, deadline, wanted) == "frozen")


def freeze(domain: libvirt.virDomain, deadline: Deadline, wanted: str) -> None:
    """Write out what is in memory and hold all writing, until `thaw`. While frozen the agent does little else."""
    ask(domain, "guest-fsfreeze-freeze", None, deadline, wanted)


def thaw(domain: libvirt.virDomain, deadline: Deadline, wanted: str) -> None:
    """Let the machine write again."""
    ask(domain, "guest-fsfreeze-thaw", None, deadline, wanted)


def authorized_keys(domain: libvirt.virDomain, user: str, deadline: Deadline, wanted: str) -> list[str]:
    """Return the SSH keys that a user of a machine lets in."""
    answer = ask(domain, "guest-ssh-get-authorized-keys", {"username": user}, deadline, wanted)
    found = answer.get("keys") if isinstance(answer, dict) else None
    return [str(each).strip() for each in found if str(each).strip()] if isinstance(found, list) else []


def set_authorized_keys(
    domain: libvirt.virDomain, user: str, keys: Sequence[str], *, only: bool, deadline: Deadline, wanted: str
) -> None:
    """Let these SSH keys in too, or `only` these."""
    arguments = {"username": user, "keys": list(keys), "reset": only}
    ask(domain, "guest-ssh-add-authorized-keys", arguments, deadline, wanted)


def set_password(domain: libvirt.virDomain, user: str, password: str, deadline: Deadline, wanted: str) -> None:
    """Set the password of a user of a machine."""
    secret = base64.b64encode(password.encode()).decode()
    arguments = {"username": user, "password": secret, "crypted": False}
    ask(domain, "guest-set-user-password", arguments, deadline, wanted)
