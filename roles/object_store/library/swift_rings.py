#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module swift_rings: the rings of OpenStack Swift, as a list of devices wants them."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENTATION = r"""
module: swift_rings
short_description: The rings of OpenStack Swift, as a list of devices wants them
description:
  - Takes the rings that this host has, or new ones, and returns what they must be. Writes nothing; M(swift_files) does.
  - At most one copy of a partition moves at a time. So what is stored stays within reach, given that all lies where
    it belongs before the next change.
options:
  settings:
    description: The folder with the builders of the rings.
    type: path
    required: true
  part_power:
    description: New rings have two to this power partitions.
    type: int
    required: true
  replicas:
    description: How many copies there are of each partition.
    type: int
    required: true
  ports:
    description: The ports of the C(account), C(container) and C(object) servers.
    type: dict
    required: true
  devices:
    description:
      - The devices, each with C(address), C(name), C(zone), C(weight) and C(host).
      - One with the weight 0 is to be emptied. One that is not named goes at once.
    type: list
    elements: dict
    required: true
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
files:
  description: The builders and rings by the names of their files, in base64.
  returned: always
  type: dict
differs:
  description: Whether they are others than this host has.
  returned: always
  type: bool
actions:
  description: What was done to which device of which ring.
  returned: always
  type: list
  elements: str
moved:
  description: How many copies of partitions get another place.
  returned: always
  type: int
"""

REGION = 1
ROUNDS = 3


def unlike(builder: Any, wanted: dict[tuple[str, str], dict[str, Any]], port: int) -> Iterable[str]:
    """Make the devices of a ring those that are wanted, and tell of each change."""
    there = {(device["ip"], device["device"]): device for device in builder.devs if device is not None}
    for key in sorted(there.keys() - wanted.keys()):
        builder.remove_dev(there[key]["id"])
        yield f"{there[key]['meta']} {key[1]} went"
    for key, device in sorted(wanted.items()):
        weight, zone = float(device["weight"]), int(device["zone"])
        label = f"{device['host']} {key[1]}"
        old = there.get(key)
        if old is None:
            place = {"region": REGION, "zone": zone, "ip": key[0], "port": port, "device": key[1], "weight": weight}
            builder.add_dev({**place, "replication_ip": key[0], "replication_port": port, "meta": str(device["host"])})
            yield f"{label} came, weight {weight:g}, zone {zone}"
            continue
        if old["weight"] != weight:
            builder.set_dev_weight(old["id"], weight)
            yield f"{label} has weight {weight:g}"
        if old["zone"] != zone:
            builder.set_dev_zone(old["id"], zone)
            yield f"{label} is in zone {zone}"


def rebalance(builder: Any) -> int:
    """Give each device its share and return how many copies of partitions moved."""
    first = not builder.ever_rebalanced
    moved = int(builder.rebalance(seed=builder.version)[0])
    for _ in range(ROUNDS if first else 0):  # nothing is stored yet
        moved += int(builder.rebalance(seed=builder.version)[0])
    builder.validate()
    return moved


def content(builder: Any, kind: str) -> dict[str, str]:
    """Return the builder and its ring as the files that Swift makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)  # Swift writes beside itself first, where it stands
        try:
            builder.save(f"{kind}.builder")
            builder.get_ring().save(f"{kind}.ring.gz")
            return {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(Path().iterdir())}
        finally:
            os.chdir(before)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "path", "required": True},
            "part_power": {"type": "int", "required": True},
            "replicas": {"type": "int", "required": True},
            "ports": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    # The role installs it.
    from swift.common.exceptions import (  # type: ignore[import-not-found] # noqa: PLC0415
        RingBuilderError,
        RingValidationError,
    )
    from swift.common.ring import RingBuilder  # type: ignore[import-not-found] # noqa: PLC0415

    given = module.params
    wanted = {(str(device["address"]), str(device["name"])): device for device in given["devices"]}
    files: dict[str, str] = {}
    actions: list[str] = []
    moved = 0
    for kind in ("account", "container", "object"):
        file = Path(given["settings"], f"{kind}.builder")
        try:
            # No hours in between: the role itself waits until everything is in its place.
            builder = (
                RingBuilder.load(str(file))
                if file.is_file()
                else RingBuilder(given["part_power"], given["replicas"], 0)
            )
            done = [f"{kind}: {action}" for action in unlike(builder, wanted, int(given["ports"][kind]))]
            if builder.replicas != given["replicas"]:
                builder.set_replicas(given["replicas"])
                done.append(f"{kind}: {given['replicas']} copies")
            if done:
                moved += rebalance(builder)
                files |= content(builder, kind)
            else:
                for path in (file, file.with_name(f"{kind}.ring.gz")):
                    files[path.name] = base64.b64encode(path.read_bytes()).decode()
        except (OSError, ValueError, RingBuilderError, RingValidationError) as error:
            module.fail_json(
                msg=f"Failed to build the {kind} ring: {type(error).__name__}: {error}. Nothing was written. "
                f"swift-ring-builder {file} shows the ring as it is."
            )
        actions += done
    module.exit_json(changed=False, files=files, differs=bool(actions), actions=actions, moved=moved)


if __name__ == "__main__":
    main()
