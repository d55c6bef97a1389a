#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_migrate_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate_info
short_description: Whether a machine could be moved to other hosts, and why not
version_added: 0.1.0
description:
  - Finds out for each of several hosts whether M(virtfleet.core.vm_migrate) could bring a machine there.
  - Changes nothing.
  - A host that does not answer is a verdict too.
options:
  name:
    description: The name of the machine.
    type: str
  uuid:
    description: Its UUID. A machine of that O(name) with another UUID is not meant.
    type: str
  targets:
    description: The hosts to ask.
    type: list
    elements: dict
    required: true
    suboptions:
      uri:
        description: The libvirt URI of the host.
        type: str
        required: true
      name:
        description: What the verdict calls it; the URI if left out.
        type: str
  copy_storage:
    description: Whether disks that the hosts do not share may be copied.
    type: bool
    default: true
  shared_pools:
    description: Pools that are the same storage on all hosts, as for M(virtfleet.core.vm_migrate).
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
attributes:
  diff_mode:
    support: none
    details: There is never a difference.
seealso:
  - module: virtfleet.core.vm_migrate
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Ask two hosts
  virtfleet.core.vm_migrate_info:
    uri: qemu+tls://h1.example.org/system
    name: web1
    targets:
      - uri: qemu+tls://h2.example.org/system
      - uri: qemu+tls://h3.example.org/system
"""

RETURN = r"""
verdicts:
  description:
    - One for each of O(targets), in that order. C(checks) has for each of host, identity, machine_type, cpu, memory,
      networks, devices, state, names, ports and disks one of ok, refused and unknown; what is unknown refuses nothing.
      C(warnings) are sentences about what may go wrong although nothing refuses it.
      C(disks) tells of each disk whether it is shared, mirrored (by QEMU, while the machine runs) or copied.
    - The codes of C(reasons) are same_host, host_unreachable, host_frozen, name_taken, architecture, virtualization,
      machine_type, cpu, memory, network_missing, filter_missing, bridge_missing, host_device, saved_state,
      has_snapshots, tpm_state, tpm_missing, paused_since_migration, not_remote, name_unresolved, disk_unknown,
      disk_not_reachable, disk_exists, copy_not_allowed, base_missing, pool_missing, pool_path_differs and pool_full.
  returned: success
  type: list
  elements: dict
  sample:
    - host: h2
      ok: false
      reasons:
        - code: bridge_missing
          text: the target has no bridge vmbr0
      warnings: []
      checks:
        networks: refused
      disks:
        - target: vda
          pool: default
          volume: web1-5c2b3d0e-root
          how: mirror
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import check_uri, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_run import Wish
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "targets": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"uri": {"type": "str", "required": True}, "name": {"type": "str"}},
    },
    "copy_storage": {"type": "bool", "default": True},
    "shared_pools": {"type": "list", "elements": "str", "default": []},
}
RULES: dict[str, Any] = {"required_one_of": [("name", "uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Ask each target."""
    name, uuid = identity(params["name"], params["uuid"])
    pools = tuple(check_name(pool, "pool") for pool in params["shared_pools"])
    whole, connecting = deadlines(params)
    verdicts = []
    with opened_host(params["uri"], connecting) as source:
        domain = vms.find(source, name, uuid)
        if domain is None:
            hint = "Name the host that it is on."
            raise VirtfleetError(f"judge where machine {name or uuid} could go", "it is not here", hint, "not_found")
        for each in params["targets"]:
            wish = Wish(name, uuid, check_uri(each["uri"]), None, True, params["copy_storage"], pools)
            try:
                with opened_host(each["uri"], whole.at_most(params["connect_timeout"])) as target:
                    verdict = migration.judge(source, target, domain, wish).as_dict()
            except VirtfleetError as error:
                reason = {"code": error.code, "text": error.obstacle}
                checks = {"host": "refused"}
                verdict = {"ok": False, "reasons": [reason], "warnings": [], "checks": checks, "disks": []}
            verdicts.append({"host": each["name"] or each["uri"], **verdict})
    return Result(False, {"verdicts": verdicts})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
