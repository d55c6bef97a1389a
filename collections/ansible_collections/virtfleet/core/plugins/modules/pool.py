#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module pool."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: Storage pools of a host
version_added: 0.1.0
description:
  - Makes, changes, starts, stops and removes a storage pool of libvirt.
  - What somebody stored in a pool is never deleted unless O(delete_content=true).
options:
  name:
    description: The name of the pool.
    type: str
    required: true
  state:
    description:
      - V(present) is defined and active, V(inactive) is defined and not active, V(absent) is not defined.
      - An inactive pool that becomes V(absent) loses its definition only; what lies in it stays.
    type: str
    choices: [present, inactive, absent]
    default: present
  type:
    description:
      - What the pool is. V(dir) is a directory, V(fs) a file system on a device and V(netfs) an NFS export, both of
        which libvirt mounts, V(logical) a volume group of LVM. Device, export and group exist already.
      - A pool of type V(dir), V(fs) or V(netfs) that is made gets its directory made too; nothing is ever formatted.
    type: str
    choices: [dir, fs, netfs, logical]
    default: dir
  path:
    description:
      - Where its volumes lie on the host. Needed to make a pool, except for O(type=logical), where it is C(/dev/)
        and the name of the group.
      - Without O(path) and O(source) an existing pool is kept as it is defined, whatever its type.
    type: str
  source:
    description: Where the storage comes from, for any O(type) but V(dir).
    type: dict
    suboptions:
      host:
        description: The file server.
        type: str
      dir:
        description: The directory that the file server exports.
        type: str
      name:
        description: The name of the volume group.
        type: str
      device:
        description: The block device with the file system of O(type=fs).
        type: str
  autostart:
    description: Whether it is started with the host. A new pool that is made active is, unless told otherwise.
    type: bool
  restart:
    description: Whether an active pool may be stopped and started when its definition is to change.
    type: bool
    default: false
  delete_content:
    description: Whether O(state=absent) may delete the volumes of an active pool. Those that machines use never are.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A directory for the machines' disks
  virtfleet.core.pool:
    uri: "{{ virtfleet_uri }}"
    name: default
    path: /var/lib/libvirt/images

- name: A directory of a file server, shared by all hosts
  virtfleet.core.pool:
    uri: "{{ virtfleet_uri }}"
    name: shared
    type: netfs
    path: /var/lib/libvirt/shared
    source:
      host: files.example
      dir: /export/images

- name: Take a pool away, and keep what lies in it
  virtfleet.core.pool:
    uri: "{{ virtfleet_uri }}"
    name: old
    state: "{{ item }}"
  loop: [inactive, absent]
"""

RETURN = r"""
pool:
  description: The pool, or null if it is absent. In check mode what it would be, without figures. Sizes are bytes.
  returned: success
  type: dict
  sample:
    name: default
    type: dir
    path: /var/lib/libvirt/images
    source: {}
    active: true
    autostart: true
    shared: false
    capacity_bytes: 107374182400
    allocation_bytes: 10737418240
    available_bytes: 96636764160
    provisioned_bytes: 21474836480
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "inactive", "absent"], "default": "present"},
    "type": {"type": "str", "choices": list(pools.TYPES), "default": "dir"},
    "path": {"type": "str"},
    "source": {
        "type": "dict",
        "options": {name: {"type": "str"} for name in ("host", "dir", "name", "device")},
    },
    "autostart": {"type": "bool"},
    "restart": {"type": "bool", "default": False},
    "delete_content": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the pool into the wanted state."""
    name = check_name(params["name"], "pool")
    definition = None
    if params["state"] != "absent" and (params["path"] or params["source"]):
        definition = pools.wanted_definition(name, params["type"], params["path"], params["source"])
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        pool = pools.find(connection, name)
        before = pools.settings(pool) if pool is not None else None
        described: dict[str, Any] | None
        if params["state"] == "absent":
            todo, described = plan.compare(before, None), None
            if pool is not None:
                content = pools.check_removal(connection, pool, delete_content=params["delete_content"])
                if not check:
                    pools.remove(pool, content, whole)
        else:
            active = params["state"] == "present"
            todo = pools.plan_present(before, name, definition, active=active, autostart=params["autostart"])
            pools.check_restart(name, todo, restart=params["restart"])
            if todo.changed and not check:
                pool = pools.apply(connection, name, todo, restart=params["restart"], deadline=whole)
            described = todo.after if check or pool is None else pools.describe(pool)
    return Result(todo.changed, {"pool": described, "plan": todo.as_list()}, before, todo.after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
