#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_clone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_clone
short_description: A machine like another one
version_added: 0.1.0
description:
  - Makes a machine of the same shape as another one of the host, with disks of its own. The other one is left as it is.
  - New are the UUID, the MAC addresses, the names of the volumes, the UEFI variables, a TPM's content and, for a
    machine that has a seed of cloud-init, the seed. The new machine does not start with its host.
  - Disks that are read-only or shareable are used by both. A machine that has a device of its host for itself is
    refused.
  - A machine of that name that was made from the same one is left as it is, and only started if it is to run.
options:
  name:
    description: The name of the new machine.
    type: str
    required: true
  uuid:
    description: Its UUID; made up if left out.
    type: str
  source:
    description: The name of the machine that it is to be like.
    type: str
  source_uuid:
    description: The UUID of that machine.
    type: str
  mode:
    description:
      - With V(full), each disk is an independent copy.
      - With V(linked), only what lies over the image is copied, and the image lies below both. The image can be removed
        only when both machines are gone. Each disk must lie directly over an image of its pool.
      - With V(fresh), nothing is copied. Disks over an image become new ones over the same image, others are empty.
    type: str
    choices: [full, linked, fresh]
    default: full
  snapshot:
    description:
      - A snapshot of the source; the disks are then as they were in it. Its memory is not copied, the new machine boots
        as after a power cut.
      - Without a snapshot, and with one that lies inside the disks, the source must be stopped. From an external one
        a machine is cloned also while it runs.
    type: str
  networks:
    description:
      - The network cards. Left out, they are like the source's, with new MACs, and ask for addresses by DHCP.
    type: list
    elements: dict
    suboptions:
      bridge:
        description: A bridge of the host.
        type: str
      network:
        description: A network of libvirt's.
        type: str
      mac:
        description: The MAC address; made from the UUID if left out.
        type: str
      model:
        description: The model of the card.
        type: str
        default: virtio
      address:
        description: A fixed address with its prefix length, given by the seed.
        type: str
      gateway:
        description: The gateway, given by the seed.
        type: str
      dns:
        description: Name servers, given by the seed.
        type: list
        elements: str
      filter:
        description:
          - The network filter (M(virtfleet.core.nwfilter)) of the card; V(none) for none. Left out, that of the same
            card of the source.
        type: str
  cloud_init:
    description:
      - The seed. Left out, a source that has one gets the new machine a new one, with its own name and addresses, but
        without the source's keys and user data.
    type: dict
    suboptions:
      hostname:
        description: The name inside the machine; O(name) if left out.
        type: str
      ssh_keys:
        description: Public keys that may log in.
        type: list
        elements: str
      user_data:
        description: The user data of cloud-init.
        type: str
      user_data_src:
        description: A file, where the module runs, with the user data.
        type: path
  metadata:
    description:
      - What to write into the new machine's metadata. C(cloned_from), the UUID of the source, is added. With
        C(attempt), a lower one than it has is refused.
    type: dict
  state:
    description: Whether the new machine is to run, wait in its first moment, or just be there.
    type: str
    choices: [present, running, paused]
    default: present
  wait_for:
    description: What to wait for with V(running).
    type: str
    choices: [none, running, address, agent]
    default: running
  timeout:
    description:
      - Seconds for all that the task does. A copy by libvirt cannot be broken off, so that one that is too slow is
        removed only after its end.
    type: float
    default: 1800.0
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
notes:
  - Full copies are made by libvirt on the host. With O(mode=linked), and from a snapshot inside the disks, the disks'
    bytes go through the machine where the module runs.
seealso:
  - module: virtfleet.core.vm
  - module: virtfleet.core.vm_snapshot
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A copy of a stopped machine
  virtfleet.core.vm_clone:
    uri: "{{ virtfleet_uri }}"
    source: web1
    name: web2
    state: running

- name: One as it was before the upgrade, over the same image
  virtfleet.core.vm_clone:
    uri: "{{ virtfleet_uri }}"
    source: web1
    name: web1-before
    mode: linked
    snapshot: before-upgrade

- name: A new one like it, without what is on its disk
  virtfleet.core.vm_clone:
    uri: "{{ virtfleet_uri }}"
    source: web1
    name: web3
    mode: fresh
    cloud_init:
      ssh_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
"""

RETURN = r"""
vm:
  description: The new machine, as in M(virtfleet.core.vm_info). In check mode what is known of it before.
  returned: success
  type: dict
  sample:
    name: web2
    uuid: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11
    state: running
disks:
  description: Its own disks, and how each was or would be made. Empty when the machine was there.
  returned: success
  type: list
  elements: dict
  sample:
    - target: vda
      serial: root
      pool: default
      name: web2-5c2b3d0e-root
      made: copy
      from: web1-7be1a3c0-root
      image: null
      size_bytes: 10737418240
cleaned:
  description: Whether all that was made was removed again.
  returned: failure
  type: bool
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_clone_parts import FULL, MODES
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_cloning import Wish, clone
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import (
    CLOUD_INIT,
    NETWORKS,
    identity,
)
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

UNDO_SECONDS = 600.0
"""What a copy that cannot be broken off may take longer than the deadline; after that libvirt itself hangs."""

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "uuid": {"type": "str"},
    "source": {"type": "str"},
    "source_uuid": {"type": "str"},
    "mode": {"type": "str", "choices": list(MODES), "default": FULL},
    "snapshot": {"type": "str"},
    "networks": NETWORKS,
    "cloud_init": CLOUD_INIT,
    "metadata": {"type": "dict"},
    "state": {"type": "str", "choices": ["present", "running", "paused"], "default": "present"},
    "wait_for": {"type": "str", "choices": ["none", "running", "address", "agent"], "default": "running"},
    "timeout": {"type": "float", "default": 1800.0},
}
RULES: dict[str, Any] = {"required_one_of": [("source", "source_uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Make the clone, unless it is there."""
    name, uuid = identity(params["name"], params["uuid"])
    source, source_uuid = identity(params["source"], params["source_uuid"])
    goal = f"clone machine {source or source_uuid} to {name}"
    if name in (None, source) or (uuid is not None and uuid == source_uuid):
        raise VirtfleetError(goal, "a machine cannot be its own clone", "Choose another name and UUID.", "invalid")
    if params["snapshot"] is not None and params["mode"] == "fresh":
        text = "a fresh one has nothing of the source's disks, and so nothing of a snapshot"
        raise VirtfleetError(goal, text, "Leave snapshot out, or use mode full or linked.", "invalid")
    wish = Wish(
        name=str(name),
        uuid=uuid,
        source=source,
        source_uuid=source_uuid,
        mode=params["mode"],
        snapshot=check_name(params["snapshot"], "snapshot") if params["snapshot"] is not None else None,
        networks=params["networks"],
        cloud_init=params["cloud_init"],
        metadata=params["metadata"] or {},
        state=params["state"],
        wait_for=params["wait_for"],
    )
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        done, parts = bounded(
            lambda: clone(connection, wish, check=check, deadline=whole), Deadline(whole.left() + UNDO_SECONDS), goal
        )
    values = {"vm": done.vm, "disks": [part.as_dict(wish.mode) for part in parts]}
    return Result(done.changed, values, done.before, done.after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
