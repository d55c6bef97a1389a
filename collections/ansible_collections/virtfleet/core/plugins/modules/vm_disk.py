#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_disk
short_description: Disks of a machine that is there
version_added: 0.1.0
description:
  - Attaches a volume to a machine, running or not, changes and grows the disk, and detaches it.
  - A disk is known by its serial number, which the machine sees too. The first disk of a machine that
    M(virtfleet.core.vm) made has the serial C(root).
  - A disk never shrinks, and a volume is never deleted by being detached.
  - When the disk grows, the agent inside the machine lets the file system follow. Where that does not work the disk has
    grown all the same, and C(filesystem) of the result says why the file system has not. Running it again tries again.
options:
  name:
    description: The name of the machine. One of this and O(uuid) is needed.
    type: str
  uuid:
    description: The UUID of the machine. A machine of the same name with another UUID is never touched.
    type: str
  serial:
    description: The serial number of the disk, at most 20 characters.
    type: str
    required: true
  state:
    description: Whether the machine is to have the disk.
    type: str
    choices: [present, absent]
    default: present
  pool:
    description: The pool of the volume to attach, V(default) when left out.
    type: str
  volume:
    description:
      - The volume to attach. One that is not there is made, empty, with O(size); M(virtfleet.core.volume) makes others.
    type: str
  bus:
    description:
      - What the disk is plugged into, V(virtio) for a new one. Another bus holds from the next boot on.
    type: str
    choices: [virtio, scsi, usb]
  read_only:
    description: Whether the machine can only read it. A change holds from the next boot on.
    type: bool
  shareable:
    description:
      - Whether other machines may have the volume as a disk too, which takes a file system made for that. Without this
        a volume that another machine has is refused. A change holds from the next boot on.
    type: bool
  size:
    description: The size to have or grow to, with a unit. Asking for less than the disk has is an error.
    type: str
  grow_by:
    description:
      - How much to grow by, with a unit. Every run grows the disk again; O(size) is for what may be run twice.
    type: str
  grow_filesystem:
    description: Whether the file system is to follow when O(size) or O(grow_by) is given.
    type: bool
    default: true
  io:
    description:
      - Limits of the disk; those left out are none. Limits for both directions and for one exclude each other.
    type: dict
    suboptions:
      bytes_per_second:
        description: How much may be read and written in a second, with a unit, such as V(10MiB).
        type: str
      read_bytes_per_second:
        description: How much may be read in a second.
        type: str
      write_bytes_per_second:
        description: How much may be written in a second.
        type: str
      iops:
        description: How many times it may read and write in a second.
        type: int
      read_iops:
        description: How many times it may read in a second.
        type: int
      write_iops:
        description: How many times it may write in a second.
        type: int
  managed_only:
    description:
      - Whether to refuse a machine that was not made by virtfleet, which its metadata would say.
    type: bool
    default: false
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A disk for data, with the machine running
  virtfleet.core.vm_disk:
    uri: "{{ virtfleet_uri }}"
    name: web1
    serial: data
    volume: web1-data
    size: 20GiB

- name: Grow the first disk and the file system on it
  virtfleet.core.vm_disk:
    uri: "{{ virtfleet_uri }}"
    name: web1
    serial: root
    size: 40GiB

- name: Detach the disk; the volume stays
  virtfleet.core.vm_disk:
    uri: "{{ virtfleet_uri }}"
    name: web1
    serial: data
    state: absent
"""

RETURN = r"""
disk:
  description: The disk, or null if the machine has none of that serial. In check mode as it is before.
  returned: success
  type: dict
  sample:
    serial: data
    target: vdb
    path: /var/lib/libvirt/images/web1-data
    bus: virtio
    read_only: false
    shareable: false
    io: {}
    size_bytes: 21474836480
filesystem:
  description: Whether the file system C(grown), where it is C(mounted_at), and the C(reason) if it did not grow.
  returned: when O(size) or O(grow_by) was given for a disk that was attached
  type: dict
  sample:
    grown: true
    reason: null
    mounted_at: /
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
needs_power_cycle:
  description: Whether something of it holds only after the machine's power was cycled.
  returned: success
  type: bool
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.devices import BUSES
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.settings import io_limits
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_device, vm_disk, vm_settings
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import check_serial, identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_disk_size

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "serial": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "pool": {"type": "str"},
    "volume": {"type": "str"},
    "bus": {"type": "str", "choices": list(BUSES)},
    "read_only": {"type": "bool"},
    "shareable": {"type": "bool"},
    "size": {"type": "str"},
    "grow_by": {"type": "str"},
    "grow_filesystem": {"type": "bool", "default": True},
    "io": vm_settings.IO_SPEC,
    "managed_only": {"type": "bool", "default": False},
}
RULES: dict[str, Any] = {"required_one_of": [("name", "uuid")], "mutually_exclusive": [("size", "grow_by")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the disk into the wanted state."""
    name, uuid = identity(params["name"], params["uuid"])
    wanted = _wanted(params)
    whole, connecting = deadlines(params)
    present = params["state"] == "present"
    with opened_host(params["uri"], connecting) as connection:
        goal = f"make disk {wanted.serial} of machine {name or uuid} {params['state']}"
        try:
            machine = vm_device.machine(connection, name, uuid, goal, managed_only=params["managed_only"])
        except VirtfleetError as error:
            if error.code == "not_found" and not present:
                return Result(False, {"disk": None, "plan": [], "needs_power_cycle": False})
            raise
        if present:
            done = vm_disk.present(machine, wanted, check=check, deadline=whole)
        else:
            done = vm_disk.absent(machine, wanted.serial, check=check, deadline=whole)
    values = {"disk": done.device, "plan": done.update.as_list(), "needs_power_cycle": done.needs_power_cycle}
    return Result(done.update.changed, {**values, **done.more}, done.before, done.after)


def _wanted(params: dict[str, Any]) -> vm_disk.Wanted:
    for what in ("pool", "volume"):
        if params[what] is not None:
            check_name(params[what], what)
    size, more = (params[each] and parse_disk_size(params[each], f"{each} of a disk") for each in ("size", "grow_by"))
    if size == 0 or more == 0:
        raise VirtfleetError(
            "grow a disk", "nothing is no size", "Give what it is to have, or leave it out.", "invalid"
        )
    return vm_disk.Wanted(
        serial=check_serial(params["serial"]),
        pool=params["pool"],
        volume=params["volume"],
        bus=params["bus"],
        read_only=params["read_only"],
        shareable=params["shareable"],
        io=None if params["io"] is None else io_limits(params["io"]),
        size_bytes=size,
        grow_by_bytes=more,
        grow_filesystem=params["grow_filesystem"],
    )


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
