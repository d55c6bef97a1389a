#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module secret."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret
short_description: Secrets that libvirt keeps
version_added: 0.1.0
description:
  - Keeps a passphrase or key with a host's libvirt, that of an encrypted volume, Ceph, iSCSI, TLS or a virtual TPM.
  - A secret is known by what it is for, O(usage) and O(usage_id), of which libvirt has at most one.
  - Its value is in no result, no diff and no log.
options:
  usage:
    description: What it is for.
    type: str
    choices: [volume, ceph, iscsi, tls, vtpm]
    required: true
  usage_id:
    description: For which one. The path of a volume, the target of iSCSI, a name for the others.
    type: str
    required: true
  state:
    description:
      - V(present) is kept, V(absent) is not.
      - A secret that a machine or a pool names is not removed.
    type: str
    choices: [present, absent]
    default: present
  value:
    description:
      - The secret itself, as text. Without it and O(value_src) it stays as it is.
      - Where libvirt lets it be read, it is compared; see O(update_value) for what is O(private).
    type: str
  value_src:
    description: A file that holds the secret, on the machine where the module runs. All its bytes count.
    type: path
  update_value:
    description:
      - When an existing secret gets the value.
      - V(always) when it differs; one that is O(private) cannot be compared, and is set in each run.
      - V(on_create) only while it has none.
      - The default is V(always), and V(on_create) for one that is O(private).
    type: str
    choices: [always, on_create]
  uuid:
    description: The UUID that a new secret gets. Without it libvirt chooses one.
    type: str
  description:
    description: One line about it.
    type: str
  ephemeral:
    description:
      - Whether it is kept in memory only, until libvirt's daemon ends. A new one is on disk unless told otherwise.
    type: bool
  private:
    description: Whether libvirt tells its value to nobody. That cannot be taken back. A new one is not unless told so.
    type: bool
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: The passphrase of an encrypted volume
  virtfleet.core.secret:
    uri: "{{ virtfleet_uri }}"
    usage: volume
    usage_id: /var/lib/libvirt/images/web1.root
    value: "{{ vault_web1_passphrase }}"

- name: A key of Ceph, which nobody can read back
  virtfleet.core.secret:
    uri: "{{ virtfleet_uri }}"
    usage: ceph
    usage_id: client.virtfleet
    private: true
    value_src: /etc/ceph/client.virtfleet.key

- name: Forget it
  virtfleet.core.secret:
    uri: "{{ virtfleet_uri }}"
    usage: ceph
    usage_id: client.virtfleet
    state: absent
"""

RETURN = r"""
secret:
  description: What is kept, without its value; null if it is absent. In check mode what it would be.
  returned: success
  type: dict
  contains:
    uuid:
      description: Its UUID, by which disks and pools name it. In check mode null for a new one without O(uuid).
      type: str
    usage:
      description: What it is for.
      type: str
    usage_id:
      description: For which one.
      type: str
    description:
      description: One line about it, or null.
      type: str
    ephemeral:
      description: Whether it is kept in memory only.
      type: bool
    private:
      description: Whether nobody can read it.
      type: bool
plan:
  description:
    - What changed or would change, each with C(what), C(before), C(after) and C(effect).
    - Of the value it says V(none), V(another), V(unreadable) or V(set), and nothing else.
  returned: success
  type: list
  elements: dict
"""

import uuid as uuids
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import secret as secrets
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import shown
from ansible_collections.virtfleet.core.plugins.module_utils.secret_usage import check_text, check_usage

SPEC: dict[str, Any] = {
    **COMMON,
    "usage": {"type": "str", "choices": list(secrets.USAGES), "required": True},
    "usage_id": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "value": {"type": "str", "no_log": True},
    "value_src": {"type": "path"},
    "update_value": {"type": "str", "choices": ["always", "on_create"]},
    "uuid": {"type": "str"},
    "description": {"type": "str"},
    "ephemeral": {"type": "bool"},
    "private": {"type": "bool"},
}
RULES: dict[str, Any] = {"mutually_exclusive": [("value", "value_src")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the secret into the wanted state."""
    usage, usage_id = params["usage"], check_usage(params["usage"], params["usage_id"])
    if params["description"] is not None:
        check_text(params["description"], "description")
    uuid = _uuid(params["uuid"])
    present = params["state"] == "present"
    value = _value(params) if present else None
    _whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        secret = secrets.find(connection, usage, usage_id)
        if present:
            wanted = {name: params[name] for name in ("usage", "usage_id", "description", "ephemeral", "private")}
            todo = secrets.plan_present(secret, wanted, value, params["update_value"])
            if todo.changed and not check:
                secret = secrets.apply(connection, secret, todo, value, uuid)
        else:
            todo = plan.compare(secrets.settings(secret) if secret is not None else None, None)
            if secret is not None:
                secrets.check_unused(connection, secret)
                if not check:
                    secrets.remove(secret)
        described = None
        if todo.after is not None:
            kept = {name: each for name, each in todo.after.items() if name != "value"}
            described = {"uuid": secret.UUIDString() if secret is not None else uuid, **kept}
    return Result(todo.changed, {"secret": described, "plan": todo.as_list()}, todo.before, todo.after)


def _uuid(text: str | None) -> str | None:
    try:
        return None if text is None else str(uuids.UUID(text))
    except ValueError:
        hint = "Leave it out for one that libvirt chooses."
        raise VirtfleetError(f"use {shown(text or '')} as UUID of a secret", "it is none", hint, "invalid") from None


def _value(params: dict[str, Any]) -> bytes | None:
    wanted = f"keep the secret for {params['usage']} {params['usage_id']}"
    if params["value_src"] is not None:
        try:
            with Path(params["value_src"]).open("rb") as file:
                value = file.read(secrets.LONGEST_VALUE_BYTES + 1)
        except OSError as error:
            text = f"value_src cannot be read ({error.strerror})"
            raise VirtfleetError(wanted, text, "It is a file where the module runs.", "invalid") from None
    elif params["value"] is not None:
        value = params["value"].encode("utf-8", "surrogateescape")
    else:
        return None
    if not 0 < len(value) <= secrets.LONGEST_VALUE_BYTES:
        text = "its value has no length that libvirt can keep"
        raise VirtfleetError(wanted, text, f"Use 1 to {secrets.LONGEST_VALUE_BYTES} bytes.", "invalid")
    return bytes(value)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
