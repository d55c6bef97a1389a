#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module volume_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_info
short_description: Volumes of storage pools as they are
version_added: 0.1.0
description:
  - Reads the volumes of one pool, or of all active ones, and which machines have them as disks. Changes nothing.
options:
  pool:
    description: The pool; all that are active when left out.
    type: str
  name:
    description: The name of one volume. None of that name is an empty list, no error.
    type: str
  users:
    description: Whether to tell the machines too, which reads the definition of every machine of the host.
    type: bool
    default: true
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
seealso:
  - module: virtfleet.core.volume
  - module: virtfleet.core.host_info
    description: Tells of the pools themselves.
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Read which volumes no machine has
  virtfleet.core.volume_info:
    uri: "{{ virtfleet_uri }}"
    pool: default
  register: found

- name: Tell their names
  ansible.builtin.debug:
    msg: "{{ found.volumes | rejectattr('users') | map(attribute='name') }}"
"""

RETURN = r"""
volumes:
  description:
    - The volumes in the order of pools and names, each as in M(virtfleet.core.volume), with C(users), the names of the
      machines, running or not, that have it as a disk, themselves or below one. It is null without O(users).
  returned: success
  type: list
  elements: dict
  sample:
    - name: web1.root
      pool: default
      path: /var/lib/libvirt/images/web1.root
      format: qcow2
      capacity_bytes: 21474836480
      allocation_bytes: 200704
      physical_bytes: 196624
      image: /var/lib/libvirt/images/debian-12
      users: [web1]
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

SPEC: dict[str, Any] = {
    **COMMON,
    "pool": {"type": "str"},
    "name": {"type": "str"},
    "users": {"type": "bool", "default": True},
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Read the volumes."""
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        if params["pool"] is not None:
            chosen = [pools.active_pool(connection, params["pool"], "read volumes")]
        else:
            chosen = pools.all_active(connection)
        found = []
        for pool in chosen:
            pools.refresh(pool, whole)  # what others put there
            found += [each for each in volumes.all_of(pool) if params["name"] in (None, each["name"])]
        users = volume_users.users_of(connection) if params["users"] else None
    told = [{**each, "users": users.get(each["path"], []) if users is not None else None} for each in found]
    return Result(False, {"volumes": told})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
