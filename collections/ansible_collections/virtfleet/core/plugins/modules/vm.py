#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Machines of a host
version_added: 0.1.0
description:
  - Makes machines with their disks and cloud-init seed, starts, stops, pauses, reboots and removes them.
  - Several machines of one host are given as O(vms) and worked on side by side; one that fails stops no other.
  - When making a machine fails, all that was made for it is removed again. A disk with data in it, kept from an earlier
    machine, is never replaced.
  - Of an existing machine only what is named is compared and changed. C(plan) of the result says when each holds, at
    once (C(live)) or from the next boot on (C(next_boot)). vCPUs up to O(max_vcpus), memory up to O(max_memory),
    O(io), O(metadata) and O(autostart) change while it runs. Its power is only cycled if O(allow_power_cycle) says so.
  - Disks and network cards of an existing machine are not changed; C(differences) of the result tells of the latter.
    Use M(virtfleet.core.vm_disk) and M(virtfleet.core.vm_nic).
options:
  name:
    description: The name of the machine.
    type: str
  uuid:
    description: Its UUID, random if left out. A machine of the same name with another UUID is never touched.
    type: str
  state:
    description:
      - V(present) is defined and otherwise left as it is; V(running), V(stopped) and V(paused) also make it so.
      - V(restarted) reboots it, or starts it if it is stopped.
      - V(saved) saves its memory on the host and stops it. Started again it goes on where it was, and until then its
        settings cannot be changed. One that is stopped already and has no memory saved is refused.
      - V(absent) cuts its power and undefines it. Volumes stay unless they are named.
    type: str
    choices: [present, running, stopped, paused, restarted, saved, absent]
    default: present
  vcpus:
    description: Number of vCPUs in use. Needed to make a machine.
    type: int
  memory:
    description: Memory in use, with a unit, such as V(512MiB). Needed to make a machine.
    type: str
  accel:
    description: KVM, emulation, or KVM where the host has it.
    type: str
    choices: [auto, kvm, tcg]
    default: auto
  machine:
    description: The machine type, such as V(q35); the host's own default when left out.
    type: str
  cpu_model:
    description: A CPU model of libvirt's, or V(host-model), V(host-passthrough), V(maximum).
    type: str
  disks:
    description: The disks of a new machine, the one it boots from first.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the volume; made from the machine's name and UUID when left out.
        type: str
      pool:
        description: The pool the volume lies in.
        type: str
        default: default
      size:
        description: The size with a unit. Without it an overlay is as large as its image.
        type: str
      image:
        description:
          - The base volume in the same pool that the disk lies over.
          - With neither image nor size the volume must be there, and stays when the machine goes.
        type: str
      format:
        description: The format of an empty volume.
        type: str
        choices: [qcow2, raw]
      serial:
        description: The serial number that the machine sees.
        type: str
  networks:
    description: The network cards of a new machine.
    type: list
    elements: dict
    suboptions:
      bridge:
        description: The bridge to join. One of this and O(networks[].network) is needed.
        type: str
      network:
        description: The libvirt network to join.
        type: str
      mac:
        description: The MAC address. Needed with O(cloud_init).
        type: str
      model:
        description: The model of the card.
        type: str
        default: virtio
      address:
        description: The fixed address with its prefix length, set by cloud-init; DHCP when left out.
        type: str
      gateway:
        description: The gateway that goes with it.
        type: str
      dns:
        description: Name servers.
        type: list
        elements: str
      filter:
        description:
          - The network filter (M(virtfleet.core.nwfilter)) that says what the card may send and get; V(none) for none.
        type: str
  cloud_init:
    description: What a new machine finds in its NoCloud seed. Without this it gets no seed.
    type: dict
    suboptions:
      hostname:
        description: The host name; the machine's name when left out.
        type: str
      ssh_keys:
        description: Public SSH keys that may log in.
        type: list
        elements: str
      user_data:
        description: User data as cloud-init takes them, passed on as they are.
        type: str
      user_data_src:
        description: A file with them B(where the module runs).
        type: path
  metadata:
    description:
      - Kept with the machine by libvirt, such as owner, project and id. Joined to those it has.
      - An C(attempt) lower than the one kept already is refused.
    type: dict
  wait_for:
    description:
      - What to wait for until the task's deadline once the machine runs, V(none), V(running) (the same), an V(address)
        that leases, agent or ARP table show, or the V(agent).
    type: str
    choices: [none, running, address, agent]
    default: running
  grace:
    description: Seconds that stopping or rebooting cleanly may take.
    type: float
    default: 60.0
  force:
    description: Whether to cut the power, or press reset, when the machine did not obey in time.
    type: bool
    default: false
  managed_only:
    description:
      - Whether to refuse a machine that is there but was not made by virtfleet, which its metadata would say.
    type: bool
    default: false
  max_vcpus:
    description:
      - How many vCPUs it can have without a reboot; as many as O(vcpus) when left out. Changed from the next boot on.
    type: int
  max_memory:
    description:
      - How much memory it can have without a reboot; as much as O(memory) when left out. Changed from the next boot on.
      - Between the two a balloon in the machine takes and gives memory, for which it needs a driver.
    type: str
  topology:
    description: How the vCPUs look. Their product must be O(max_vcpus); sockets follow when left out.
    type: dict
    suboptions:
      sockets:
        description: Number of sockets.
        type: int
      cores:
        description: Number of cores in a socket, 1 when left out.
        type: int
      threads:
        description: Number of threads in a core, 1 when left out.
        type: int
  hugepages:
    description: The size of the huge pages that its memory lies in, such as V(2MiB), or V(default), or V(off).
    type: str
  firmware:
    description: What starts it.
    type: str
    choices: [bios, uefi]
  boot:
    description: The kinds of devices it boots from, in their order.
    type: list
    elements: str
    choices: [hd, cdrom, network, fd]
  video:
    description: The video card.
    type: str
    choices: [none, vga, virtio, qxl, cirrus, bochs]
  serial:
    description: The serial port, with the console on it.
    type: str
    choices: [none, pty]
  rng:
    description: Whether it has a source of random numbers.
    type: bool
  watchdog:
    description: What a watchdog does when the machine stops feeding it; V(none) has none.
    type: str
    choices: [none, reset, shutdown, poweroff, pause, dump]
  tpm:
    description: Whether it has an emulated TPM 2.0. Refused where the host has no swtpm.
    type: bool
  autostart:
    description: Whether it starts with its host.
    type: bool
  io:
    description:
      - Limits of each disk that it can write to; those left out are none. Limits for both directions and for one
        exclude each other. Those of one disk are set with M(virtfleet.core.vm_disk).
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
  new_name:
    description:
      - What a machine that is there is to be called. It must be stopped for that, or O(allow_power_cycle) be true. Its
        volumes keep their names.
    type: str
  xml_patch:
    description:
      - Changes of libvirt's document for what has no option, after all others. They hold from the next boot on, and
        libvirt's schema must allow them.
    type: list
    elements: dict
    suboptions:
      path:
        description:
          - The element below C(<domain>), in the XPath of Python's ElementTree, such as C(devices/memballoon). One that
            is not there is made when the path consists of plain names.
        type: str
        required: true
      attribute:
        description: The attribute; the element's text is meant when left out.
        type: str
      value:
        description: What it is to be, as text.
        type: str
      state:
        description: Whether it is to be there.
        type: str
        choices: [present, absent]
        default: present
  allow_power_cycle:
    description:
      - Whether to shut a running machine down and start it again when changes hold only from the next boot on. O(grace)
        and O(force) say how. Without this C(needs_power_cycle) of the result tells of them.
    type: bool
    default: false
  delete_volumes:
    description: Volumes to delete with the machine. One that others need is refused.
    type: list
    elements: dict
    suboptions:
      pool:
        description: The pool.
        type: str
        required: true
      name:
        description: The volume.
        type: str
        required: true
  delete_made_volumes:
    description:
      - Whether to delete with the machine the volumes whose metadata say that they were made for it, and what a broken
        run left of such. Bases, ISO images and volumes that were attached are none of those.
    type: bool
    default: false
  vms:
    description:
      - Several machines, each with the options of one.
      - O(state), O(accel), O(wait_for), O(grace), O(force), O(managed_only), O(allow_power_cycle) and
        O(delete_made_volumes) hold for each that has none.
      - No machine may stand in it twice.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the machine.
        type: str
      uuid:
        description: Its UUID, random if left out. A machine of the same name with another UUID is never touched.
        type: str
      state:
        description:
          - V(present) is defined and otherwise left as it is; V(running), V(stopped) and V(paused) also make it so.
          - V(restarted) reboots it, or starts it if it is stopped.
          - V(saved) saves its memory on the host and stops it. Started again it goes on where it was, and until then
            its settings cannot be changed. One that is stopped already and has no memory saved is refused.
          - V(absent) cuts its power and undefines it. Volumes stay unless they are named.
        type: str
        choices: [present, running, stopped, paused, restarted, saved, absent]
      vcpus:
        description: Number of vCPUs in use. Needed to make a machine.
        type: int
      memory:
        description: Memory in use, with a unit, such as V(512MiB). Needed to make a machine.
        type: str
      accel:
        description: KVM, emulation, or KVM where the host has it.
        type: str
        choices: [auto, kvm, tcg]
      machine:
        description: The machine type, such as V(q35); the host's own default when left out.
        type: str
      cpu_model:
        description: A CPU model of libvirt's, or V(host-model), V(host-passthrough), V(maximum).
        type: str
      disks:
        description: The disks of a new machine, the one it boots from first.
        type: list
        elements: dict
        suboptions:
          name:
            description: The name of the volume; made from the machine's name and UUID when left out.
            type: str
          pool:
            description: The pool the volume lies in.
            type: str
            default: default
          size:
            description: The size with a unit. Without it an overlay is as large as its image.
            type: str
          image:
            description:
              - The base volume in the same pool that the disk lies over.
              - With neither image nor size the volume must be there, and stays when the machine goes.
            type: str
          format:
            description: The format of an empty volume.
            type: str
            choices: [qcow2, raw]
          serial:
            description: The serial number that the machine sees.
            type: str
      networks:
        description: The network cards of a new machine.
        type: list
        elements: dict
        suboptions:
          bridge:
            description: The bridge to join. One of this and O(vms[].networks[].network) is needed.
            type: str
          network:
            description: The libvirt network to join.
            type: str
          mac:
            description: The MAC address. Needed with O(vms[].cloud_init).
            type: str
          model:
            description: The model of the card.
            type: str
            default: virtio
          address:
            description: The fixed address with its prefix length, set by cloud-init; DHCP when left out.
            type: str
          gateway:
            description: The gateway that goes with it.
            type: str
          dns:
            description: Name servers.
            type: list
            elements: str
          filter:
            description:
              - The network filter (M(virtfleet.core.nwfilter)) that says what the card may send and get; V(none) for
                none.
            type: str
      cloud_init:
        description: What a new machine finds in its NoCloud seed. Without this it gets no seed.
        type: dict
        suboptions:
          hostname:
            description: The host name; the machine's name when left out.
            type: str
          ssh_keys:
            description: Public SSH keys that may log in.
            type: list
            elements: str
          user_data:
            description: User data as cloud-init takes them, passed on as they are.
            type: str
          user_data_src:
            description: A file with them B(where the module runs).
            type: path
      metadata:
        description:
          - Kept with the machine by libvirt, such as owner, project and id. Joined to those it has.
          - An C(attempt) lower than the one kept already is refused.
        type: dict
      wait_for:
        description:
          - What to wait for until the task's deadline once the machine runs, V(none), V(running) (the same), an
            V(address) that leases, agent or ARP table show, or the V(agent).
        type: str
        choices: [none, running, address, agent]
      grace:
        description: Seconds that stopping or rebooting cleanly may take.
        type: float
      force:
        description: Whether to cut the power, or press reset, when the machine did not obey in time.
        type: bool
      managed_only:
        description:
          - Whether to refuse a machine that is there but was not made by virtfleet, which its metadata would say.
        type: bool
      max_vcpus:
        description:
          - How many vCPUs it can have without a reboot; as many as O(vms[].vcpus) when left out. Changed from the
            next boot on.
        type: int
      max_memory:
        description:
          - How much memory it can have without a reboot; as much as O(vms[].memory) when left out. Changed from the
            next boot on.
          - Between the two a balloon in the machine takes and gives memory, for which it needs a driver.
        type: str
      topology:
        description: How the vCPUs look. Their product must be O(vms[].max_vcpus); sockets follow when left out.
        type: dict
        suboptions:
          sockets:
            description: Number of sockets.
            type: int
          cores:
            description: Number of cores in a socket, 1 when left out.
            type: int
          threads:
            description: Number of threads in a core, 1 when left out.
            type: int
      hugepages:
        description: The size of the huge pages that its memory lies in, such as V(2MiB), or V(default), or V(off).
        type: str
      firmware:
        description: What starts it.
        type: str
        choices: [bios, uefi]
      boot:
        description: The kinds of devices it boots from, in their order.
        type: list
        elements: str
        choices: [hd, cdrom, network, fd]
      video:
        description: The video card.
        type: str
        choices: [none, vga, virtio, qxl, cirrus, bochs]
      serial:
        description: The serial port, with the console on it.
        type: str
        choices: [none, pty]
      rng:
        description: Whether it has a source of random numbers.
        type: bool
      watchdog:
        description: What a watchdog does when the machine stops feeding it; V(none) has none.
        type: str
        choices: [none, reset, shutdown, poweroff, pause, dump]
      tpm:
        description: Whether it has an emulated TPM 2.0. Refused where the host has no swtpm.
        type: bool
      autostart:
        description: Whether it starts with its host.
        type: bool
      io:
        description:
          - Limits of each disk that it can write to; those left out are none. Limits for both directions and for one
            exclude each other. Those of one disk are set with M(virtfleet.core.vm_disk).
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
      new_name:
        description:
          - What a machine that is there is to be called. It must be stopped for that, or O(vms[].allow_power_cycle) be
            true. Its volumes keep their names.
        type: str
      xml_patch:
        description:
          - Changes of libvirt's document for what has no option, after all others. They hold from the next boot on, and
            libvirt's schema must allow them.
        type: list
        elements: dict
        suboptions:
          path:
            description:
              - The element below C(<domain>), in the XPath of Python's ElementTree, such as C(devices/memballoon). One
                that is not there is made when the path consists of plain names.
            type: str
            required: true
          attribute:
            description: The attribute; the element's text is meant when left out.
            type: str
          value:
            description: What it is to be, as text.
            type: str
          state:
            description: Whether it is to be there.
            type: str
            choices: [present, absent]
            default: present
      allow_power_cycle:
        description:
          - Whether to shut a running machine down and start it again when changes hold only from the next boot on.
            O(vms[].grace) and O(vms[].force) say how. Without this C(needs_power_cycle) of the result tells of them.
        type: bool
      delete_volumes:
        description: Volumes to delete with the machine. One that others need is refused.
        type: list
        elements: dict
        suboptions:
          pool:
            description: The pool.
            type: str
            required: true
          name:
            description: The volume.
            type: str
            required: true
      delete_made_volumes:
        description:
          - Whether to delete with the machine the volumes whose metadata say that they were made for it, and what a
            broken run left of such. Bases, ISO images and volumes that were attached are none of those.
        type: bool
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: A running machine over an image
  virtfleet.core.vm:
    uri: "{{ virtfleet_uri }}"
    name: web1
    state: running
    vcpus: 1
    memory: 512MiB
    disks:
      - image: debian-12
        size: 10GiB
    networks:
      - bridge: vmbr0
        mac: "52:54:00:12:34:56"
        address: 10.78.0.20/24
        gateway: 10.78.0.1
    cloud_init:
      ssh_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
    wait_for: address

- name: Two vCPUs and more memory, as far as that goes without a reboot
  virtfleet.core.vm:
    uri: "{{ virtfleet_uri }}"
    name: web1
    vcpus: 2
    memory: 1GiB
  register: resized # resized.vm.needs_power_cycle tells whether that was enough

- name: A balloon is not for this one
  virtfleet.core.vm:
    uri: "{{ virtfleet_uri }}"
    name: web1
    xml_patch:
      - path: devices/memballoon
        attribute: model
        value: none
    allow_power_cycle: true

- name: Stop two machines, one after 30 seconds by force
  virtfleet.core.vm:
    uri: "{{ virtfleet_uri }}"
    vms:
      - name: web1
        state: stopped
      - name: web2
        state: stopped
        grace: 30
        force: true

- name: Remove a machine with what was made for it
  virtfleet.core.vm:
    uri: "{{ virtfleet_uri }}"
    name: web1
    state: absent
    delete_made_volumes: true
"""

RETURN = r"""
vm:
  description:
    - The machine. In check mode what it would be, as far as that is known before. Sizes are bytes.
    - C(plan) lists what changed or would change, each with C(what), C(before), C(after) and C(effect).
      What only a new machine could have, such as another image, stands in it as C(recreate) and is left.
      C(needs_power_cycle) says whether something holds only after its power was cycled, C(power_cycled) whether it was.
    - C(differences) tells in what else an existing machine is not as asked for.
    - One that failed has C(failed), C(msg), C(error), and C(cleaned), whether all that was made was removed again.
  returned: when one machine was asked for
  type: dict
  sample:
    name: web1
    uuid: 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11
    state: running
    vcpus: 1
    vcpus_maximum: 1
    memory_bytes: 536870912
    memory_current_bytes: 536870912
    addresses: [10.78.0.20]
    changed: true
    plan: []
    needs_power_cycle: false
    power_cycled: false
vms:
  description: The same for each machine of O(vms), in their order.
  returned: when O(vms) was given
  type: list
  elements: dict
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_recipe, vm_settings
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import (
    CLOUD_INIT,
    NETWORKS,
    Wanted,
    check_distinct,
)
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

THREADS = 4
"""Machines worked on at the same time; libvirt's daemon takes five requests of one client at once."""

UNDO_SECONDS = 45.0
"""What a machine may take longer than the deadline, to take back what was made; after that libvirt itself hangs."""

STATES = ["present", "running", "stopped", "paused", "restarted", "saved", "absent"]
VOLUME = {"pool": {"type": "str", "required": True}, "name": {"type": "str", "required": True}}
ONE: dict[str, Any] = {
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "state": {"type": "str", "choices": STATES, "default": "present"},
    "vcpus": {"type": "int"},
    "memory": {"type": "str"},
    "accel": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
    "machine": {"type": "str"},
    "cpu_model": {"type": "str"},
    "disks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str"},
            "pool": {"type": "str", "default": "default"},
            "size": {"type": "str"},
            "image": {"type": "str"},
            "format": {"type": "str", "choices": ["qcow2", "raw"]},
            "serial": {"type": "str"},
        },
    },
    "networks": NETWORKS,
    "cloud_init": CLOUD_INIT,
    "metadata": {"type": "dict"},
    "wait_for": {"type": "str", "choices": ["none", "running", "address", "agent"], "default": "running"},
    "grace": {"type": "float", "default": 60.0},
    "force": {"type": "bool", "default": False},
    "managed_only": {"type": "bool", "default": False},
    **vm_settings.SPEC,
    "allow_power_cycle": {"type": "bool", "default": False},
    "delete_volumes": {"type": "list", "elements": "dict", "options": VOLUME},
    "delete_made_volumes": {"type": "bool", "default": False},
}
FOR_ALL = (
    *("state", "accel", "wait_for", "grace", "force", "managed_only", "allow_power_cycle"),
    "delete_made_volumes",
)
"""Options that a machine of `vms` has from beside the list when it has none of its own."""


def _of_list() -> dict[str, Any]:
    options = copy.deepcopy(ONE)
    for name in FOR_ALL:
        del options[name]["default"]
    return options


SPEC: dict[str, Any] = {**COMMON, **ONE, "vms": {"type": "list", "elements": "dict", "options": _of_list()}}
RULES: dict[str, Any] = {"mutually_exclusive": [("vms", "name"), ("vms", "uuid")]}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the machine, or each of them, into the wanted state."""
    many = params["vms"] is not None
    beside = {name: params[name] for name in FOR_ALL}
    asked = [_filled(each, beside) for each in params["vms"]] if many else [{name: params[name] for name in ONE}]
    if many:
        check_distinct(asked)
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        if many and len(asked) > 1:
            with ThreadPoolExecutor(THREADS, "virtfleet: vm") as pool:
                results = list(pool.map(lambda each: _one(connection, each, check, whole), asked))
        else:
            results = [_one(connection, each, check, whole) for each in asked]
    shown = [each[0] for each in results]
    changed = any(each["changed"] for each in shown)
    values = {"vms": shown} if many else {"vm": shown[0]}
    errors = [each[1] for each in results if each[1] is not None]
    if errors:
        errors[0].values = {**values, "changed": changed}
        raise errors[0]
    before, after = {}, {}
    for each, _error, was, will in results:
        before[each["name"]] = was
        after[each["name"]] = will
    return Result(changed, values, before, after)


def _filled(machine: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    return {**machine, **{name: value for name, value in beside.items() if machine[name] is None}}


def _one(
    connection: libvirt.virConnect, options: dict[str, Any], check: bool, deadline: Deadline
) -> tuple[dict[str, Any], VirtfleetError | None, dict[str, Any] | None, dict[str, Any] | None]:
    """Bring one machine into its state; return what to show, its error, and what was before and is after."""
    named = {"name": options["name"], "uuid": options["uuid"]}
    label = f"finish machine {options['name'] or options['uuid']}"
    try:
        if deadline.passed:
            hint = "Allow more time with the option timeout, or name fewer machines."
            raise VirtfleetError(label, "no time was left to begin with it", hint, "timeout", {"cleaned": True})
        wanted = _checked(options)
        done = bounded(
            lambda: vm_recipe.bring(connection, wanted, check=check, deadline=deadline),
            Deadline(deadline.left() + UNDO_SECONDS),
            label,
        )
    except VirtfleetError as error:
        failed = error
    except libvirtError as error:
        failed = translate(error, label)
    except Exception as error:  # a defect of ours must not take the other machines' results along
        failed = VirtfleetError(label, f"{type(error).__name__}: {error}", "This is a defect: please report it.")
    else:
        shown = {
            **named,
            **(done.vm or {}),
            "changed": done.changed,
            "differences": done.differences,
            "plan": done.update.as_list(),
            "needs_power_cycle": done.needs_power_cycle,
            "power_cycled": done.power_cycled,
        }
        return shown, None, done.before, done.after
    shown = {
        **named,
        "changed": failed.values.get("changed", False),
        "failed": True,
        "msg": str(failed),
        "error": failed.as_dict(),
        "cleaned": failed.values.get("cleaned", False),
    }
    return shown, failed, None, None


def _checked(options: dict[str, Any]) -> Wanted:
    try:
        return Wanted.of(options)
    except VirtfleetError as error:
        error.values["cleaned"] = True  # nothing was made
        raise


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
