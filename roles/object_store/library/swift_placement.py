#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module swift_placement: which partitions a host holds, and whether it should."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENTATION = r"""
module: swift_placement
short_description: Which partitions of OpenStack Swift a host holds, and whether it should
description:
  - Compares what lies on the devices of a host with its rings. Changes nothing.
options:
  settings:
    description: The folder of the rings.
    type: path
    required: true
  folder:
    description: The folder that holds a folder for each device.
    type: path
    required: true
  address:
    description: The address that the host has in the rings.
    type: str
    required: true
  stored:
    description: The partitions that hold anything anywhere, as C(held) has them.
    type: list
    elements: str
    default: []
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
held:
  description: The partitions that hold anything here, such as C(object/17).
  returned: always
  type: list
  elements: str
misplaced:
  description: Those with their device, which the rings place elsewhere.
  returned: always
  type: list
  elements: str
missing:
  description: Those with their device, which the rings place here, which are stored elsewhere and not here.
  returned: always
  type: list
  elements: str
"""

STORED = (".data", ".meta", ".ts", ".db")
KINDS = ("account", "container", "object")


def holds_anything(partition: Path) -> bool:
    """Say whether a folder of a partition is more than an empty frame, without following it to its end."""
    return any(name.endswith(STORED) for _, _, names in os.walk(partition) for name in names)


def held(folder: Path, kind: str) -> Iterable[tuple[str, int]]:
    """Yield device and partition of what is stored on a host."""
    for partitions in sorted(folder.glob(f"*/{kind}s")):
        for partition in partitions.iterdir():
            if partition.name.isdigit() and holds_anything(partition):
                yield partitions.parent.name, int(partition.name)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "address": {"type": "str", "required": True},
            "stored": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    from swift.common.ring import RingData  # type: ignore[import-not-found] # noqa: PLC0415 - the role installs it

    given = module.params
    stored = set(given["stored"])
    found: set[str] = set()
    misplaced, missing = [], []
    for kind in KINDS:
        ring = RingData.load(str(Path(given["settings"], f"{kind}.ring.gz")))
        own = {device["id"]: device["device"] for device in ring.devs if device and device["ip"] == given["address"]}
        here = set(held(Path(given["folder"]), kind))
        found |= {f"{kind}/{partition}" for _, partition in here}
        wanted = {
            (own[device], partition)
            for row in ring._replica2part2dev_id
            for partition, device in enumerate(row)
            if device in own
        }
        misplaced += [f"{device} {kind}/{partition}" for device, partition in here - wanted]
        missing += [
            f"{device} {kind}/{partition}" for device, partition in wanted - here if f"{kind}/{partition}" in stored
        ]
    module.exit_json(changed=False, held=sorted(found), misplaced=sorted(misplaced), missing=sorted(missing))


if __name__ == "__main__":
    main()
