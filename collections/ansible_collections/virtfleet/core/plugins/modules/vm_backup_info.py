#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_backup_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_backup_info
short_description: The backups in a pool, also of machines that are gone
version_added: 0.1.0
description:
  - Reads which backups a pool has, of one machine or of all, and on demand whether their files are what was written.
    Changes nothing.
options:
  vm:
    description: The name that the machine had. Those of all machines are read when neither it nor O(vm_uuid) is given.
    type: str
  vm_uuid:
    description: The UUID that it had.
    type: str
  pool:
    description: The pool.
    type: str
    default: backups
  verify:
    description: Whether to read all files and compare them with their SHA-256.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
seealso:
  - module: virtfleet.core.vm_backup
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Look whether the backups of a machine are sound
  virtfleet.core.vm_backup_info:
    uri: "{{ virtfleet_uri }}"
    vm: web1
    verify: true
    timeout: 3600
"""

RETURN = r"""
backups:
  description:
    - The backups, oldest first, as in M(virtfleet.core.vm_backup). C(intact) is whether its files and those that it
      lies over are what was written, null when nobody asked; C(problem) says what is not.
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import backup as backups
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

SPEC: dict[str, Any] = {
    **COMMON,
    "vm": {"type": "str"},
    "vm_uuid": {"type": "str"},
    "pool": {"type": "str", "default": "backups"},
    "verify": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Read the backups."""
    vm, uuid = None, None
    if params["vm"] is not None or params["vm_uuid"] is not None:
        vm, uuid = identity(params["vm"], params["vm_uuid"])
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        pool = backups.pool_of(connection, params["pool"], "read backups", whole)
        there = backups.all_in(pool, vm, uuid)
        found = [{**backups.shown(each, pool.name()), "intact": None, "problem": None} for each in there]
        for shown, each in zip(found, there, strict=True) if params["verify"] else ():
            try:
                backups.verify(pool, backups.chain(there, each), whole)
                shown["intact"] = True
            except VirtfleetError as error:
                if error.code not in ("not_found", "refused"):
                    raise
                shown |= {"intact": False, "problem": error.obstacle}
    return Result(False, {"backups": found})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
