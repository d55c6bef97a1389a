#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_exec."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_exec
short_description: Run a program inside machines by their guest agent
version_added: 0.1.0
description:
  - Runs a program inside machines, without a shell, and waits for its end. Needs qemu-guest-agent in them, no network.
  - What has run has changed something, as far as anybody knows. Check mode runs nothing.
  - Give secrets by O(stdin_src), O(stdin) or a file, never in O(argv). What stands in O(stdin) is taken out of all
    that the task returns, wherever it occurs.
options:
  name:
    description: The name of the machine.
    type: str
  uuid:
    description: Its UUID.
    type: str
  vms:
    description: Several machines, each by UUID, or by name when no UUID is given; they run it at the same time.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name.
        type: str
      uuid:
        description: The UUID.
        type: str
  argv:
    description: The program and its arguments. For a shell name one, such as V(sh), V(-c) and what it is to do.
    type: list
    elements: str
    required: true
  stdin:
    description: What the program reads from its input, at most 64 KiB.
    type: str
  stdin_src:
    description: A file with it B(where the module runs).
    type: path
  creates:
    description: A file inside the machine. Where it is there already, nothing is run.
    type: path
  check_rc:
    description: Whether a program that ends with another exit code than 0 fails the task.
    type: bool
    default: true
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: Nobody knows what a program changes.
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: See which kernel runs in a machine
  virtfleet.core.vm_exec:
    uri: "{{ virtfleet_uri }}"
    name: web1
    argv: [uname, -r]
  register: kernel

- name: Join two machines to a cluster once
  virtfleet.core.vm_exec:
    uri: "{{ virtfleet_uri }}"
    vms:
      - name: web1
      - name: web2
    argv: [/usr/sbin/join, --token-from-stdin]
    stdin: "{{ token }}"
    creates: /etc/joined
    timeout: 120
"""

RETURN = r"""
rc:
  description: The exit code of the program. Null when a signal ended it or it was not run.
  returned: when one machine was named
  type: int
  sample: 0
stdout:
  description: What it printed, at most 1 MiB.
  returned: when one machine was named
  type: str
  sample: "6.1.0-18-amd64\n"
stderr:
  description: What it printed as errors, at most 1 MiB.
  returned: when one machine was named
  type: str
  sample: ""
vms:
  description:
    - For each machine C(name), C(uuid), C(changed), C(rc), C(signal), C(stdout), C(stderr), C(stdout_truncated) and
      C(stderr_truncated); C(skipped) where O(creates) is there; one that failed has C(failed), C(msg) and C(error).
  returned: success
  type: list
  elements: dict
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import agent
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import check_distinct, identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

THREADS = 4
"""libvirt's daemon takes five requests of one client at once."""
NOT_RUN: dict[str, Any] = {
    "rc": None,
    "signal": None,
    "stdout": "",
    "stderr": "",
    "stdout_truncated": False,
    "stderr_truncated": False,
}

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "vms": {"type": "list", "elements": "dict", "options": {"name": {"type": "str"}, "uuid": {"type": "str"}}},
    "argv": {"type": "list", "elements": "str", "required": True},
    "stdin": {"type": "str", "no_log": True},
    "stdin_src": {"type": "path"},
    "creates": {"type": "path"},
    "check_rc": {"type": "bool", "default": True},
}
RULES: dict[str, Any] = {"mutually_exclusive": [("vms", "name"), ("vms", "uuid"), ("stdin", "stdin_src")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Run the program in each machine."""
    many = params["vms"] is not None
    asked = params["vms"] if many else [{"name": params["name"], "uuid": params["uuid"]}]
    for each in asked:
        identity(each["name"], each["uuid"])
    check_distinct(asked)
    if not params["argv"] or not params["argv"][0]:
        raise VirtfleetError("run a program", "argv names none", "Give the program and its arguments.", "invalid")
    stdin = _stdin(params)
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection, ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda each: _one(connection, each, whole, params, stdin=stdin, check=check), asked))
    shown = [each for each, _error in results]
    changed = any(each["changed"] for each in shown)
    values: dict[str, Any] = {"vms": shown}
    if not many:
        values |= {name: shown[0].get(name, NOT_RUN[name]) for name in ("rc", "stdout", "stderr")}
    errors = [error for _each, error in results if error is not None]
    if errors:
        errors[0].values = {**values, "changed": changed}
        raise errors[0]
    return Result(changed, values)


def _stdin(params: dict[str, Any]) -> bytes | None:
    if params["stdin_src"] is None:
        return None if params["stdin"] is None else str(params["stdin"]).encode("utf-8", "surrogateescape")
    try:
        with Path(params["stdin_src"]).open("rb") as file:
            return file.read(agent.LONGEST_INPUT_BYTES + 1)
    except OSError as error:
        hint = "stdin_src is a file where the module runs."
        raise VirtfleetError("read stdin_src", error.strerror or "it cannot be read", hint, "invalid") from None


def _one(
    connection: libvirt.virConnect,
    asked: dict[str, Any],
    deadline: Deadline,
    params: dict[str, Any],
    *,
    stdin: bytes | None,
    check: bool,
) -> tuple[dict[str, Any], VirtfleetError | None]:
    """Run the program in one machine; return what to show, and its error."""
    shown: dict[str, Any] = {"name": asked["name"], "uuid": asked["uuid"], "changed": False}
    wanted = f"run {params['argv'][0]} in machine {asked['name'] or asked['uuid']}"
    try:
        domain = vms.find(connection, asked["name"], asked["uuid"])
        if domain is None:
            raise VirtfleetError(wanted, "there is no such machine", "Name one that this host has.", "not_found")
        shown |= {"name": domain.name(), "uuid": domain.UUIDString()}
        if params["creates"] is not None and agent.file_exists(domain, params["creates"], deadline, wanted):
            return {**shown, **NOT_RUN, "skipped": True}, None
        shown["changed"] = True
        if check:
            return {**shown, **NOT_RUN}, None
        ended = agent.run(domain, params["argv"], stdin, deadline, wanted)
        shown |= asdict(ended)
        if ended.rc != 0 and params["check_rc"]:
            how = f"it ended with {ended.rc}" if ended.rc is not None else f"signal {ended.signal} ended it"
            said = ended.stderr.strip()[-500:]
            raise VirtfleetError(wanted, f"{how}{': ' + said if said else ''}", "See its output.", "refused")
    except VirtfleetError as error:
        failed = error
    except libvirtError as error:
        failed = translate(error, wanted)
    else:
        return shown, None
    return {**shown, "failed": True, "msg": str(failed), "error": failed.as_dict()}, failed


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
