#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_guest_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_guest_info
short_description: What the guest agents inside machines tell
version_added: 0.1.0
description:
  - Asks the guest agent inside machines for addresses, file systems, operating system and more. Changes nothing.
  - What is inside a machine may say anything; none of it is more than a claim.
options:
  vms:
    description: The machines, each by UUID, or by name when no UUID is given. One that is not there is an error.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name.
        type: str
      uuid:
        description: The UUID.
        type: str
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: See how full the file systems of a machine are
  virtfleet.core.vm_guest_info:
    uri: "{{ virtfleet_uri }}"
    vms:
      - name: web1
  register: inside
"""

RETURN = r"""
vms:
  description:
    - For each machine C(name), C(uuid), C(state) and C(guest), null where no agent answers, as C(reason) tells.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web1
      uuid: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11
      state: running
      reason: null
      guest:
        agent: {version: 7.2.9, commands: [guest-ping]}
        os: {id: debian, version_id: "12", kernel_release: 6.1.0-18-amd64}
        hostname: web1
        timezone: UTC
        users: []
        interfaces:
          - name: eth0
            mac: "52:54:00:12:34:56"
            addresses: [10.78.0.20/24]
        filesystems:
          - name: vda1
            mountpoint: /
            type: ext4
            used_bytes: 104857600
            total_bytes: 1073741824
        frozen: false
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import agent
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    libvirt = None

THREADS = 4
"""libvirt's daemon takes five requests of one client at once."""

SPEC: dict[str, Any] = {
    **COMMON,
    "vms": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"name": {"type": "str"}, "uuid": {"type": "str"}},
    },
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Ask the agent of each machine. Check mode is no different."""
    asked = [identity(each["name"], each["uuid"]) for each in params["vms"]]
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection, ThreadPoolExecutor(THREADS) as pool:
        told = list(pool.map(lambda each: _one(connection, each[0], each[1], whole), asked))
    return Result(False, {"vms": told})


def _one(connection: libvirt.virConnect, name: str | None, uuid: str | None, deadline: Deadline) -> dict[str, Any]:
    domain = vms.find(connection, name, uuid)
    if domain is None:
        wanted, hint = f"ask machine {name or uuid}", "Name one that this host has."
        raise VirtfleetError(wanted, "there is no such machine", hint, "not_found")
    shown = {"name": domain.name(), "uuid": domain.UUIDString(), "state": vms.state_of(domain)}
    if shown["state"] != "running":
        return {**shown, "guest": None, "reason": f"it is {shown['state']}"}
    try:
        return {**shown, "guest": agent.told(domain, deadline), "reason": None}
    except VirtfleetError as error:
        if error.code in ("host_frozen", "host_unreachable"):
            raise
        return {**shown, "guest": None, "reason": error.obstacle}


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
