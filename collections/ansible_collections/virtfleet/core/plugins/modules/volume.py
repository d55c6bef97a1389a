#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module volume."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Volumes of a storage pool
version_added: 0.1.0
description:
  - Makes a volume, empty, over an image, as a copy of another volume, of this host or another, or from a local file.
    Grows and removes it, and brings what is on it into a file.
  - A volume never shrinks, and one that a machine has as a disk is never deleted or wiped.
options:
  name:
    description: The name of the volume.
    type: str
    required: true
  pool:
    description: The pool that it lies in. It must be active.
    type: str
    required: true
  state:
    description:
      - Whether the volume is to be there.
      - V(wiped) empties a volume each time it is asked for. libvirt writes zeros over it, and what is not raw is made
        anew then, with the size and format that it had. Room that a sparse file never used is not written to.
        A volume that is not there is made with O(size) and O(format), for a run that died in between.
      - V(downloaded) brings its content, byte by byte, into the file O(dest). No machine that runs may have it, and
        it must not lie over an image.
    type: str
    choices: [present, absent, wiped, downloaded]
    default: present
  size:
    description:
      - The size that a machine sees, with a unit, such as V(10GiB). Needed for an empty volume; otherwise the size of
        O(image), O(copy_of) or O(src), unless more is asked for.
      - An existing volume that is smaller is grown. Asking for less than it has is an error.
      - It is rounded up to a whole KiB.
    type: str
  format:
    description:
      - The format. A new volume is V(qcow2) unless told otherwise, one from O(src) has the file's format, and one in a
        pool of type C(logical) must be V(raw).
    type: str
    choices: [qcow2, raw]
  image:
    description: The base volume in the same pool that the new volume lies over. The base is never written to.
    type: str
  copy_of:
    description:
      - The volume to copy. The copy is whole and independent.
      - One of another host comes through where the module runs, holes left out, and keeps its format. It must not be
        written to meanwhile, and must not lie over an image.
    type: dict
    suboptions:
      name:
        description: The name of the volume to copy.
        type: str
        required: true
      pool:
        description: The pool of the volume to copy, O(pool) unless told otherwise.
        type: str
      uri:
        description: The libvirt URI of the host that it lies on, if that is another one.
        type: str
  src:
    description:
      - A disk image file B(where the module runs), usually the controller, whose content the new volume gets.
      - Use M(virtfleet.core.image) for what other volumes are to lie over.
    type: path
  dest:
    description:
      - The file B(where the module runs) for O(state=downloaded), with its folder. It is replaced when it holds
        anything else, and readable to its owner only.
    type: path
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: An empty disk
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: data1
    size: 10GiB

- name: A disk over an image
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: web1.root
    image: debian-12
    size: 20GiB

- name: A copy of a volume of another host
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: data1-copy
    copy_of:
      uri: "{{ hostvars['kvm2'].virtfleet_uri }}"
      name: data1
    timeout: 1800

- name: Empty a volume that no machine has
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: data1
    state: wiped
    timeout: 600

- name: Bring what is on a volume to the controller
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: data1
    state: downloaded
    dest: /srv/backup/data1.qcow2
    timeout: 1800

- name: Upload an ISO image
  virtfleet.core.volume:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: rescue.iso
    src: /srv/iso/rescue.iso
    timeout: 600
"""

RETURN = r"""
volume:
  description:
    - The volume, or null if it is absent. In check mode what it would be, as far as that is known before. Sizes are
      bytes. C(image) is the path of the volume it lies over.
  returned: success
  type: dict
  sample:
    name: web1.root
    pool: default
    path: /var/lib/libvirt/images/web1.root
    format: qcow2
    capacity_bytes: 21474836480
    allocation_bytes: 200704
    physical_bytes: 196624
    image: /var/lib/libvirt/images/debian-12
file:
  description: The file that the volume was downloaded to. C(checksum) is that of its content.
  returned: when O(state=downloaded)
  type: dict
  sample:
    path: /srv/backup/data1.qcow2
    size_bytes: 196624
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
plan:
  description: What changed or would change, each with C(what), C(before), C(after) and C(effect).
  returned: success
  type: list
  elements: dict
"""

from contextlib import ExitStack
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_download, volume_recipe
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_disk_size

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "pool": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent", "wiped", "downloaded"], "default": "present"},
    "size": {"type": "str"},
    "format": {"type": "str", "choices": list(volumes.FORMATS)},
    "image": {"type": "str"},
    "copy_of": {
        "type": "dict",
        "options": {"name": {"type": "str", "required": True}, "pool": {"type": "str"}, "uri": {"type": "str"}},
    },
    "src": {"type": "path"},
    "dest": {"type": "path"},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("image", "copy_of", "src", "dest")],
    "required_if": [("state", "downloaded", ["dest"])],
}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the volume into the wanted state."""
    name, pool_name = check_name(params["name"], "volume"), check_name(params["pool"], "pool")
    state = params["state"]
    if params["dest"] is not None and state != "downloaded":
        text = f"dest says where a volume is downloaded to, and it is to be {state}"
        raise VirtfleetError(f"make volume {name} {state}", text, "Leave dest away.", "invalid")
    recipe = None
    if state == "downloaded":
        return _download(params, name, pool_name, check=check)
    if state != "absent":
        copy_of = params["copy_of"]
        recipe = volume_recipe.Recipe(
            name,
            size_bytes=parse_disk_size(params["size"], "the size of a volume") if params["size"] is not None else None,
            format=params["format"],
            image=params["image"],
            original=(copy_of["pool"] or pool_name, copy_of["name"]) if copy_of else None,
            src=params["src"],
        )
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection, ExitStack() as stack:
        if recipe is None and pools.find(connection, pool_name) is None:
            return Result(changed=False, values={"volume": None, "plan": []})
        pool = pools.active_pool(connection, pool_name, f"make volume {name} {state}")
        if recipe is not None and state == "wiped":
            todo = volume_recipe.wiped(connection, pool, recipe, check=check, deadline=whole)
        elif recipe is not None:
            there = params["copy_of"]["uri"] if params["copy_of"] else None
            other = stack.enter_context(opened_host(there, whole.at_most(params["connect_timeout"]))) if there else None
            todo = volume_recipe.present(connection, pool, recipe, check=check, deadline=whole, elsewhere=other)
        else:
            todo = volume_recipe.absent(connection, pool, name, check=check)
        volume = volumes.find(pool, name) if recipe is not None and not check else None
        described = volumes.describe(volume) if volume is not None else todo.after
    return Result(todo.changed, {"volume": described, "plan": todo.as_list()}, todo.before, todo.after)


def _download(params: dict[str, Any], name: str, pool_name: str, *, check: bool) -> Result:
    if params["size"] is not None or params["format"] is not None:
        text = "a file gets the size and the format that the volume has"
        raise VirtfleetError(f"download volume {name}", text, "Leave size and format away.", "invalid")
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        pool = pools.active_pool(connection, pool_name, f"download volume {name}")
        todo, file = volume_download.download(connection, pool, name, params["dest"], check=check, deadline=whole)
        described = volumes.describe(volumes.find(pool, name))
    return Result(todo.changed, {"volume": described, "file": file, "plan": todo.as_list()}, todo.before, todo.after)


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
