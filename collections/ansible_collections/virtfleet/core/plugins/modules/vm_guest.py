#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_guest."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_guest
short_description: File systems, files, passwords and SSH keys inside a machine
version_added: 0.1.0
description:
  - Freezes and thaws the file systems of a machine, writes files, sets passwords and SSH keys, by its guest agent.
  - Needs qemu-guest-agent in the machine, no network. What is done is done in the order of thaw, file, keys, password,
    freeze.
options:
  name:
    description: The name of the machine.
    type: str
  uuid:
    description: Its UUID. One of this and O(name) is needed.
    type: str
  frozen:
    description:
      - Whether its file systems are to be frozen, so that what lies on its disks is whole while it is copied.
      - A machine whose file systems are frozen for long stops to work. Always thaw it, also after a failure.
    type: bool
  file:
    description: A file that is to be in the machine, of at most 1 MiB.
    type: dict
    suboptions:
      path:
        description: Its path inside the machine; the folder must be there.
        type: path
        required: true
      content:
        description: What it is to hold.
        type: str
      src:
        description: A file with that B(where the module runs).
        type: path
  user:
    description: The user inside the machine that O(ssh_keys) and O(password) are for.
    type: str
  ssh_keys:
    description: Public SSH keys that may log in as O(user).
    type: list
    elements: str
  only_ssh_keys:
    description: Whether no other key may.
    type: bool
    default: false
  password:
    description:
      - The password of O(user). Nobody can read it back, so setting it always counts as a change.
    type: str
  password_src:
    description: A file with the password B(where the module runs); a line break at its end is left out.
    type: path
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Let somebody in
  virtfleet.core.vm_guest:
    uri: "{{ virtfleet_uri }}"
    name: web1
    user: debian
    ssh_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]

- name: Copy the disk of a machine while nothing is written
  block:
    - name: Freeze
      virtfleet.core.vm_guest:
        uri: "{{ virtfleet_uri }}"
        name: web1
        frozen: true
    - name: Copy
      virtfleet.core.volume:
        uri: "{{ virtfleet_uri }}"
        pool: default
        name: web1-copy
        copy_of:
          name: web1-root
  always:
    - name: Thaw
      virtfleet.core.vm_guest:
        uri: "{{ virtfleet_uri }}"
        name: web1
        frozen: false
"""

RETURN = r"""
vm:
  description: The machine, C(name), C(uuid) and C(changed).
  returned: success
  type: dict
plan:
  description: What was changed, or in check mode would be, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
  sample:
    - what: frozen
      before: false
      after: true
      effect: live
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import agent
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_path
from ansible_collections.virtfleet.core.plugins.module_utils.plan import Plan, compare
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    libvirt = None

LONGEST_FILE_BYTES = 2**20
LONGEST_PASSWORD_BYTES = 1024

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "frozen": {"type": "bool"},
    "file": {
        "type": "dict",
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str"},
            "src": {"type": "path"},
        },
        "mutually_exclusive": [("content", "src")],
        "required_one_of": [("content", "src")],
    },
    "user": {"type": "str"},
    "ssh_keys": {"type": "list", "elements": "str", "no_log": False},
    "only_ssh_keys": {"type": "bool", "default": False, "no_log": False},
    "password": {"type": "str", "no_log": True},
    "password_src": {"type": "path", "no_log": False},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("password", "password_src")],
    "required_by": {"ssh_keys": ("user",), "password": ("user",), "password_src": ("user",)},
}


@dataclass(frozen=True)
class Inside:
    """What is wanted inside the machine; None is left as it is."""

    content: bytes | None
    keys: list[str] | None
    password: str | None

    @property
    def writes(self) -> bool:
        """Whether anything is to be written there."""
        return any(each is not None for each in (self.content, self.keys, self.password))


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the inside of the machine into the wanted state."""
    name, uuid = identity(params["name"], params["uuid"])
    wanted = f"work inside machine {name or uuid}"
    inside = Inside(_content(params, wanted), _keys(params, wanted), _password(params, wanted))
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        domain = vms.find(connection, name, uuid)
        if domain is None:
            raise VirtfleetError(wanted, "there is no such machine", "Name one that this host has.", "not_found")
        frozen = agent.is_frozen(domain, whole, wanted)
        if frozen and inside.writes and params["frozen"] is not False:
            hint = "Thaw them first: frozen: false."
            raise VirtfleetError(wanted, "its file systems are frozen: nothing can be written", hint, "refused")
        if frozen and params["frozen"] is False and not check:
            agent.thaw(domain, whole, wanted)
        # Inside a machine that is frozen, and in check mode stays so, there is no looking.
        plan = _plan(domain, params, inside, frozen=frozen, looks=not (frozen and check), deadline=whole)
        if not check:
            _change(domain, params, inside, plan, whole)
        shown = {"name": domain.name(), "uuid": domain.UUIDString(), "changed": plan.changed}
    return Result(plan.changed, {"vm": shown, "plan": plan.as_list()}, plan.before, plan.after)


def _plan(
    domain: libvirt.virDomain, params: dict[str, Any], inside: Inside, *, frozen: bool, looks: bool, deadline: Deadline
) -> Plan:
    wanted = f"look inside machine {domain.name()}"
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    if params["frozen"] is not None:
        before["frozen"], after["frozen"] = frozen, params["frozen"]
    if inside.content is not None:
        path = params["file"]["path"]
        there = agent.read_file(domain, path, LONGEST_FILE_BYTES, deadline, wanted) if looks else None
        before["file"], after["file"] = _digest(there), _digest(inside.content)
    if inside.keys is not None:
        known = agent.authorized_keys(domain, params["user"], deadline, wanted) if looks else []
        missing = [key for key in inside.keys if key not in known]
        kept = [key for key in known if key in inside.keys or not params["only_ssh_keys"]]
        before["ssh_keys"], after["ssh_keys"] = known, kept + missing
    if inside.password is not None:
        before["password"], after["password"] = "as it was", "set"
    return compare(before, after)


def _change(domain: libvirt.virDomain, params: dict[str, Any], inside: Inside, plan: Plan, deadline: Deadline) -> None:
    """Make the changes of the plan but the thaw, which came before the looking."""
    wanted = f"work inside machine {domain.name()}"
    if plan.touches("file") and inside.content is not None:
        agent.write_file(domain, params["file"]["path"], inside.content, deadline, wanted)
    if plan.touches("ssh_keys") and inside.keys is not None:
        only = params["only_ssh_keys"]
        agent.set_authorized_keys(domain, params["user"], inside.keys, only=only, deadline=deadline, wanted=wanted)
    if inside.password is not None:
        agent.set_password(domain, params["user"], inside.password, deadline, wanted)
    if plan.touches("frozen") and params["frozen"]:
        agent.freeze(domain, deadline, wanted)


def _keys(params: dict[str, Any], wanted: str) -> list[str] | None:
    if params["ssh_keys"] is None:
        return None
    keys = [key.strip() for key in params["ssh_keys"]]
    if any(not key or not key.isprintable() for key in keys):
        raise VirtfleetError(wanted, "an SSH key is one line of text", "Give each key as one line.", "invalid")
    return list(dict.fromkeys(keys))


def _content(params: dict[str, Any], wanted: str) -> bytes | None:
    given = params["file"]
    if given is None:
        return None
    check_path(given["path"], "the path of a file")
    content = given["content"].encode() if given["content"] is not None else _read(given["src"], "src", wanted)
    if len(content) > LONGEST_FILE_BYTES:
        hint = "Copy files of that size over the network."
        raise VirtfleetError(wanted, f"the file has more than {LONGEST_FILE_BYTES} bytes", hint, "invalid")
    return bytes(content)


def _password(params: dict[str, Any], wanted: str) -> str | None:
    text = params["password"]
    if params["password_src"] is not None:
        text = _read(params["password_src"], "password_src", wanted).decode("utf-8", "replace").rstrip("\r\n")
    if text is not None and (not text or not text.isprintable() or len(text.encode()) > LONGEST_PASSWORD_BYTES):
        raise VirtfleetError(wanted, "a password is one line of text", "Give one without line breaks.", "invalid")
    return text if text is None else str(text)


def _read(path: str, option: str, wanted: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(LONGEST_FILE_BYTES + 1)
    except OSError as error:
        text = f"{option} cannot be read ({error.strerror})"
        raise VirtfleetError(wanted, text, f"{option} is a file where the module runs.", "invalid") from None


def _digest(content: bytes | None) -> str | None:
    return None if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
