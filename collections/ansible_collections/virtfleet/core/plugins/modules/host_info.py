#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: What a host has, what of it is promised to machines, and how busy it is
version_added: 0.1.0
description:
  - Reads a libvirt host, its processors, memory, storage pools, networks, machines and abilities. Changes nothing.
  - What it returns is what the filter P(virtfleet.core.place#filter) decides on.
options:
  name:
    description: The name to return instead of the one that the host gives itself, usually C(inventory_hostname).
    type: str
  shared_pools:
    description: Names of the pools that are known to lie on storage shared with other hosts.
    type: list
    elements: str
    default: []
  sample:
    description: Seconds for which the load is measured. With V(0) RV(host.load.cpu_percent) is null.
    type: float
    default: 0.0
  refresh:
    description: Whether libvirt reads the active pools anew first, to see what others have put into them.
    type: bool
    default: false
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
- name: See what a host has
  virtfleet.core.host_info:
    uri: qemu+ssh://root@host1.example/system
  register: found

- name: Measure the load for two seconds
  virtfleet.core.host_info:
    uri: "{{ virtfleet_uri }}"
    name: "{{ inventory_hostname }}"
    shared_pools: [shared]
    sample: 2
"""

RETURN = r"""
host:
  description: The host. All sizes are bytes.
  returned: success
  type: dict
  contains:
    name:
      description: The name asked for, or the host's own.
      type: str
    uri:
      description: The URI that reached it.
      type: str
    uuid:
      description: What identifies the host, from its capabilities. Null where libvirt does not say.
      type: str
    live:
      description: That the host answered.
      type: bool
    arch:
      description: The architecture of its processors.
      type: str
    kvm:
      description: Whether it says that it can run machines by KVM.
      type: bool
    libvirt_version:
      description: The version of its libvirt daemon.
      type: str
    hypervisor_version:
      description: The version of its hypervisor.
      type: str
    cpu:
      description: The processors.
      type: dict
      contains:
        model:
          description: What libvirt calls the model.
          type: str
        mhz:
          description: The clock.
          type: int
        cpus:
          description: How many logical processors are on line.
          type: int
        numa_nodes:
          description: How many NUMA nodes.
          type: int
        sockets:
          description: How many sockets in a node.
          type: int
        cores:
          description: How many cores in a socket.
          type: int
        threads:
          description: How many threads in a core.
          type: int
    vcpus:
      description: The C(total) of logical processors, and those C(allocated) to defined machines, running or not.
      type: dict
    memory:
      description:
        - RV(host.memory.total_bytes), RV(host.memory.allocated_bytes) (what all defined machines may have at most) and
          RV(host.memory.free_bytes) (free or only caching files, as the kernel measures it).
      type: dict
      contains:
        total_bytes:
          description: What the kernel manages.
          type: int
        allocated_bytes:
          description: What is promised to defined machines, running or not.
          type: int
        free_bytes:
          description: What the kernel could give away now.
          type: int
    pools:
      description:
        - The storage pools. The figures of an inactive pool are null. C(provisioned_bytes) is the sum of the sizes that
          machines see of all its volumes, overlays counted in full.
      type: list
      elements: dict
      sample:
        - name: default
          type: dir
          path: /var/lib/libvirt/images
          active: true
          autostart: true
          shared: false
          source: {}
          capacity_bytes: 107374182400
          allocation_bytes: 10737418240
          available_bytes: 96636764160
          provisioned_bytes: 21474836480
    networks:
      description:
        - The networks that libvirt knows, each with C(name), C(active), C(bridge), C(forward), and as module
          M(virtfleet.core.network) returns them C(mode), C(address), C(domain), C(dhcp), C(dns), C(autostart) and
          C(leases).
      type: list
      elements: dict
    nwfilters:
      description: The names of libvirt's network filters.
      type: list
      elements: str
    secrets:
      description: The secrets that libvirt keeps, each with C(uuid), C(usage) and C(usage_id), and never with a value.
      type: list
      elements: dict
    load:
      description: How busy its processors are.
      type: dict
      contains:
        cpu_busy_seconds:
          description: Seconds that all processors together were busy since the host started. Null if not known.
          type: float
        cpu_total_seconds:
          description: Seconds that all processors together were up since the host started. Null if not known.
          type: float
        cpu_percent:
          description: The load while O(sample) lasted, of all processors together. Null without it.
          type: float
    machines:
      description:
        - Every defined machine, running or not, with C(name), C(uuid), C(state), C(vcpus), C(vcpus_maximum),
          C(memory_bytes), C(memory_current_bytes), C(cpu_seconds) and C(metadata) (what virtfleet keeps in it).
      type: list
      elements: dict
    capabilities:
      description:
        - What machines of the host's architecture can be. C(domain_types), C(machine_types), C(emulator), C(max_vcpus),
          C(firmware) and C(migration_transports).
      type: dict
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import host as hosts
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "shared_pools": {"type": "list", "elements": "str", "default": []},
    "sample": {"type": "float", "default": 0.0},
    "refresh": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Read the host. Check mode is no different."""
    if params["sample"] < 0:
        wanted = f"measure the load for {params['sample']:g} s"
        raise VirtfleetError(wanted, "no such time can be measured", "Use 0 or more seconds.", "invalid")
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        host = hosts.describe(
            connection,
            uri=params["uri"],
            name=params["name"],
            shared_pools=params["shared_pools"],
            refresh=params["refresh"],
            sample_seconds=params["sample"],
            deadline=whole,
        )
    return Result(changed=False, values={"host": host})


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
