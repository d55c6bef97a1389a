#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module swift_member: what a host can store on, and which rings it has."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: swift_member
short_description: What a host can store on, and which rings of OpenStack Swift it has
description:
  - Looks at the devices of a host and at the builder of its rings. Changes nothing.
options:
  folder:
    description: The folder that holds a folder for each device.
    type: path
    required: true
  devices:
    description: The names of the devices.
    type: list
    elements: str
    required: true
  settings:
    description: The folder of Swift's settings.
    type: path
    required: true
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
devices:
  description:
    - Each device with C(name), C(weight), the size of its file system in GiB, C(mounted), C(empty),
      and C(attributes), whether its file system holds extended attributes.
  returned: always
  type: list
  elements: dict
objects:
  description: Whether any device holds an object, a container or an account.
  returned: always
  type: bool
builder:
  description: The C(id), C(version) and C(part_power) of its rings. Empty when it has none.
  returned: always
  type: dict
"""

STORED = (".data", ".meta", ".ts", ".db")


def holds_attributes(folder: Path) -> bool:
    """Say whether files in a folder can have attributes, tried on one without a name."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.setxattr(file.fileno(), "user.virtfleet", b"x")
    except OSError:
        return False
    return True


def nearest(path: Path) -> Path:
    """Return the path, or what there is of the folders above it."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def look(device: Path) -> dict[str, Any]:
    """Return what a device is like; its folder may be missing yet."""
    place = nearest(device)
    system = os.statvfs(place)
    return {
        "name": device.name,
        "weight": max(1, system.f_blocks * system.f_frsize >> 30),
        "attributes": holds_attributes(place),
        "mounted": device.is_mount(),
        "empty": not device.is_dir() or not {entry.name for entry in device.iterdir()} - {"lost+found"},
    }


def has_objects(device: Path) -> bool:
    """Say whether anything is stored on a device."""
    return any(name.endswith(STORED) for _, _, names in os.walk(device) for name in names)


def builder(settings: Path) -> dict[str, Any]:
    """Return what identifies the rings of this host; the object ring speaks for all of them."""
    file = settings / "object.builder"
    if not file.is_file():
        return {}
    read = pickle.loads(file.read_bytes())  # noqa: S301 - root's own file, in the format that Swift has for it
    return {name: read[name] for name in ("id", "version", "part_power")}


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "devices": {"type": "list", "elements": "str", "required": True},
            "settings": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    paths = [Path(module.params["folder"], name) for name in module.params["devices"]]
    module.exit_json(
        changed=False,
        devices=[look(path) for path in paths],
        objects=any(has_objects(path) for path in paths),
        builder=builder(Path(module.params["settings"])),
    )


if __name__ == "__main__":
    main()
