#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_migrate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate
short_description: Move a machine to another host
version_added: 0.1.0
description:
  - Brings a machine from the host of O(uri) to that of O(target_uri), while it runs if it runs. A machine that is
    already there is left alone.
  - First it finds out whether the target can take the machine; M(virtfleet.core.vm_migrate_info) does that alone.
  - Disks on storage that both hosts have stay where they are, others are copied, and their old volumes removed when the
    machine runs on the target.
  - The migration is led by the source's libvirt. One whose task is killed goes on, and the next run takes it up; what a
    broken one left is removed. At the end the machine is defined on exactly one host, and it is checked that it is.
  - With O(abort) nothing is moved; a migration that nobody wants any more is ended and cleared away.
options:
  name:
    description: The name of the machine.
    type: str
  uuid:
    description: Its UUID. A machine of that O(name) with another UUID is not touched.
    type: str
  target_uri:
    description: The libvirt URI of the host that it is to be on afterwards, as this module reaches it.
    type: str
    required: true
  peer_uri:
    description:
      - The same as the source host reaches it. It must name a host.
      - When it is not given, O(target_uri) is taken, without C(pkipath), C(keyfile) and C(known_hosts), which name
        files of the machine that runs this module. The source host has its own, where libvirt looks for them.
    type: str
  address:
    description: The target's address or name for memory and disks, if another network carries them.
    type: str
  abort:
    description:
      - Whether to end a migration that is on its way instead, and to move nothing. What a broken one has left on either
        side is removed. The machine stays where it is then, which RV(on) tells; one that has arrived is on the target.
    type: bool
    default: false
  live:
    description: Whether a running machine goes on running while it is moved. Otherwise it is paused meanwhile.
    type: bool
    default: true
  copy_storage:
    description: Whether disks that the hosts do not share may be copied. If not, such a machine is refused.
    type: bool
    default: true
  shared_pools:
    description:
      - Pools that are the same storage on both hosts although libvirt cannot know that, such as a directory on a
        cluster file system. Pools of type C(netfs) with the same source need not be named.
      - This is tried out before it is relied upon. Libvirt sees by itself that NFS is shared. Where it cannot see that,
        it is asked for a migration that it calls unsafe, which RV(migration) tells; without this option never.
    type: list
    elements: str
    default: []
  bandwidth:
    description: How much may be sent in a second, with its unit, such as V(100MiB); counted in whole MiB.
    type: str
  max_downtime:
    description: Seconds for which the machine may stand still at the end. Libvirt's own choice is 0.3.
    type: float
  auto_converge:
    description: Whether to slow the machine down when it writes its memory faster than it can be sent.
    type: bool
    default: false
  post_copy:
    description:
      - Whether the machine may go on at the target before all of its memory is there. It always ends then, but a
        network that breaks meanwhile ends the machine.
    type: bool
    default: false
  progress_file:
    description: A file B(where the module runs) in which a line is kept that tells how far it is.
    type: path
  timeout:
    description:
      - Seconds for all that the task does. A migration that is not done by then is ended, and the machine goes on at
        the source.
    type: float
    default: 600.0
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
seealso:
  - module: virtfleet.core.vm_migrate_info
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Move a machine, at most 200 MiB a second
  virtfleet.core.vm_migrate:
    uri: qemu+tls://h1.example.org/system
    target_uri: qemu+tls://h2.example.org/system
    name: web1
    bandwidth: 200MiB

- name: Move a machine whose disk lies on a cluster file system, slowing it down if need be
  virtfleet.core.vm_migrate:
    uri: qemu+tls://h1.example.org/system
    target_uri: qemu+tls://h2.example.org/system
    name: db1
    shared_pools: [cluster]
    auto_converge: true
    timeout: 1800

- name: End a migration, and clear away what it has left
  virtfleet.core.vm_migrate:
    uri: qemu+tls://h1.example.org/system
    target_uri: qemu+tls://h2.example.org/system
    name: web1
    abort: true
"""

RETURN = r"""
vm:
  description: The machine as it is then, as in M(virtfleet.core.vm_info).
  returned: success
  type: dict
migration:
  description:
    - What it took; null when nothing was to be moved, and in check mode. Times are seconds; C(downtime) is what libvirt
      measured and null for a machine that did not run. C(bytes) is what was sent, C(disk_bytes) of that for disks.
      C(copied) are the volumes that were copied, C(left) old ones that are still on the source. C(unsafe) tells whether
      libvirt had to be told that the storage is shared, see O(shared_pools).
  returned: success
  type: dict
  sample:
    kind: live
    duration: 1.52
    downtime: 0.248
    bytes: 95657278
    disk_bytes: 720896
    iterations: 3
    unsafe: false
    copied: []
    left: []
verdict:
  description: What was found out before, as in M(virtfleet.core.vm_migrate_info); null when nothing was to be moved.
  returned: success, and when the target was refused
  type: dict
mended:
  description: What an earlier, broken run had left, and what was done about it.
  returned: success
  type: list
  elements: str
left:
  description: Volumes (pool/name) made for the machine on the other side that something else there still needs.
  returned: success, with O(abort)
  type: list
  elements: str
"on":
  description:
    - Where the machine is after a failure, one of source, target, both, nowhere and unknown. With O(abort) also after a
      success, source or target.
  returned: failure, and with O(abort)
  type: str
  sample: source
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import (
    check_uri,
    opened_host,
    uri_for_peers,
)
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration import (
    end,
    is_surely_here,
    move,
    settle,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_run import Progress, Wish
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import identity
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import about, parse_size
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "target_uri": {"type": "str", "required": True},
    "peer_uri": {"type": "str"},
    "address": {"type": "str"},
    "abort": {"type": "bool", "default": False},
    "live": {"type": "bool", "default": True},
    "copy_storage": {"type": "bool", "default": True},
    "shared_pools": {"type": "list", "elements": "str", "default": []},
    "bandwidth": {"type": "str"},
    "max_downtime": {"type": "float"},
    "auto_converge": {"type": "bool", "default": False},
    "post_copy": {"type": "bool", "default": False},
    "progress_file": {"type": "path"},
    "timeout": {"type": "float", "default": 600.0},
}
RULES: dict[str, Any] = {"required_one_of": [("name", "uuid")]}
LONGEST_DOWNTIME = 2000.0
TELL_SECONDS = 0.5


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Move the machine."""
    name, uuid = identity(params["name"], params["uuid"])
    wish = Wish(
        name=name,
        uuid=uuid,
        peer_uri=check_uri(params["peer_uri"] or uri_for_peers(params["target_uri"])),
        address=params["address"],
        live=params["live"],
        copy_storage=params["copy_storage"],
        shared_pools=tuple(check_name(pool, "pool") for pool in params["shared_pools"]),
        bandwidth_bytes=_bandwidth(params["bandwidth"]),
        max_downtime=_downtime(params["max_downtime"]),
        auto_converge=params["auto_converge"],
        post_copy=params["post_copy"],
    )
    whole, connecting = deadlines(params)
    if params["abort"]:
        with opened_host(params["uri"], connecting) as source:
            return _abort(source, params, wish, check=check, deadline=whole)
    with (
        opened_host(params["uri"], connecting) as source,
        opened_host(params["target_uri"], whole.at_most(params["connect_timeout"])) as target,
        contextlib.closing(_Teller(params["progress_file"])) as teller,
    ):
        moved = move(source, target, wish, check=check, deadline=whole, report=teller.tell)
    values = {
        "vm": moved.vm,
        "migration": moved.migration,
        "verdict": moved.verdict.as_dict() if moved.verdict else None,
        "mended": moved.mended,
    }
    if moved.verdict and moved.verdict.warnings:
        values["warnings"] = [f"Machine {moved.vm['name']}: {text}." for text in moved.verdict.warnings]
    before = {"name": moved.vm["name"], "on": moved.before}
    return Result(moved.changed, values, before, {**before, "on": "target"})


def _abort(source: Any, params: dict[str, Any], wish: Wish, *, check: bool, deadline: Deadline) -> Result:
    """End what is on its way, then put both sides right: the first does not need the target."""
    try:
        ended = end(source, wish, check=check, deadline=deadline)
        with opened_host(params["target_uri"], deadline.at_most(params["connect_timeout"])) as target:
            moved = settle(source, target, wish, check=check, deadline=deadline, ended=ended)
    except (VirtfleetError, libvirtError) as error:
        failed = error if isinstance(error, VirtfleetError) else translate(error, wish.goal)
        failed.values.setdefault("on", "source" if is_surely_here(source, wish) else "unknown")
        failed.values.setdefault("cleaned", False)
        raise failed from error
    values = {"vm": moved.vm, "migration": None, "verdict": None, "mended": moved.mended, "on": moved.on}
    before = {"name": moved.vm["name"], "mended": []}
    return Result(moved.changed, {**values, "left": moved.left}, before, {**before, "mended": moved.mended})


def _bandwidth(text: str | None) -> int | None:
    size = parse_size(text, "the bandwidth of a migration") if text is not None else None
    if size == 0:
        hint = "Leave it out for as much as the network can carry."
        raise VirtfleetError("use 0 as bandwidth", "nothing would ever be sent", hint, "invalid")
    return size


def _downtime(seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds <= LONGEST_DOWNTIME:
        hint = f"Use a number of seconds above 0, at most {LONGEST_DOWNTIME:g}."
        raise VirtfleetError(f"use {seconds} as max_downtime", "libvirt cannot do that", hint, "invalid")
    return seconds


class _Teller:
    """Keeps a line in a file that tells how far a migration is; nothing without a file."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._told = 0.0

    def tell(self, progress: Progress) -> None:
        """Write the line, at most twice a second."""
        now = time.monotonic()
        if self._path is None or not progress.total_bytes or now - self._told < TELL_SECONDS:
            return
        self._told = now
        again = f", pass {progress.iteration}" if progress.iteration > 1 else ""
        line = f"{progress.percent} % of {about(progress.total_bytes)}{again}"
        with contextlib.suppress(OSError):  # how far it is, is not worth to fail for
            self._path.write_text(f"{line}\n", encoding="utf-8")

    def close(self) -> None:
        """Remove the line: what it told is over."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
