#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Base images in a storage pool
version_added: 0.1.0
description:
  - Imports a disk image from a local file or a URL into a pool, where the disks of machines can lie over it.
  - The image is checked before anything is sent. One that refers to other files (a backing file, an external data file)
    is refused, as is one whose checksum differs.
  - An import counts as complete only when the small volume C(NAME.ok) lies beside it. What a crashed run has left is
    replaced. Of several runs that share the pool's directory one uploads and the others wait for it.
  - An image that is packed by gzip, xz or bzip2 is unpacked where the module runs, into the folder of C(TMPDIR); its
    checksum is that of the packed file, as its publisher tells it. What is compressed inside a qcow2 file stays so.
  - An image never changes once it is there.
options:
  name:
    description: The name of the base volume.
    type: str
    required: true
  pool:
    description: The pool, which must be active and hold files (types C(dir), C(fs) and C(netfs)).
    type: str
    required: true
  state:
    description:
      - Whether the image is to be there. It is not removed while volumes of the pool or machines use it.
      - With V(absent), what a crashed import has left of it goes too.
    type: str
    choices: [present, absent]
    default: present
  src:
    description: The image file B(where the module runs), usually the controller.
    type: path
  url:
    description:
      - Where to fetch the image from, by http or https, to where the module runs (into the folder of C(TMPDIR)).
      - It cannot hold a user name or password.
    type: str
  checksum:
    description:
      - The SHA-256 checksum that the file must have, as C(sha256:) and 64 hexadecimal digits.
      - With it an image that is there already is recognized without reading O(src) or O(url) again.
    type: str
  format:
    description:
      - The format that the file must have. It is found out if not given, but a V(raw) disk without partition table or
        file system is only taken if this says so.
    type: str
    choices: [qcow2, raw]
  timeout:
    description: Seconds for all that the task does, fetching and uploading included.
    type: float
    default: 1800.0
extends_documentation_fragment:
  - virtfleet.core.common
  - virtfleet.core.common.attributes
author:
  - virtfleet contributors (@virtfleet)
"""

EXAMPLES = r"""
- name: Import an image from the controller
  virtfleet.core.image:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: debian-12
    src: /srv/images/debian-12-generic-amd64.qcow2
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

- name: Import an image from the network
  virtfleet.core.image:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: debian-12
    url: https://images.example/debian-12-generic-amd64.qcow2
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

- name: Remove an image that no disk lies over any more
  virtfleet.core.image:
    uri: "{{ virtfleet_uri }}"
    pool: default
    name: debian-11
    state: absent
"""

RETURN = r"""
image:
  description:
    - The image, or null if it is absent. In check mode what it would be, as far as that is known before.
  returned: success
  type: dict
  contains:
    name:
      description: The name of the base volume.
      type: str
    pool:
      description: The pool.
      type: str
    path:
      description: The path of the base volume on the host.
      type: str
    format:
      description: Its format, V(qcow2) or V(raw).
      type: str
    virtual_size_bytes:
      description: The size that a machine sees.
      type: int
    size_bytes:
      description: The length of the file.
      type: int
    checksum:
      description: The SHA-256 checksum of the file.
      type: str
"""

from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import image_source, plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.module import COMMON, Result, deadlines, run
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

SPEC: dict[str, Any] = {
    **COMMON,
    "name": {"type": "str", "required": True},
    "pool": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "src": {"type": "path"},
    "url": {"type": "str"},
    "checksum": {"type": "str"},
    "format": {"type": "str", "choices": ["qcow2", "raw"]},
    "timeout": {"type": "float", "default": 1800.0},
}
RULES: dict[str, Any] = {
    "mutually_exclusive": [("src", "url")],
    "required_if": [("state", "present", ("src", "url"), True)],
}


def execute(params: dict[str, Any], check: bool, diff: bool) -> Result:
    """Bring the image into the wanted state."""
    name, pool_name = images.check_image_name(params["name"]), check_name(params["pool"], "pool")
    if params["checksum"] is not None:
        params = {**params, "checksum": image_source.check_checksum(params["checksum"])}
    if params["url"] is not None:
        image_source.check_url(params["url"])
    present = params["state"] == "present"
    wanted = f"{'import' if present else 'remove'} image {name}"
    whole, connecting = deadlines(params)
    with opened_host(params["uri"], connecting) as connection:
        if not present and pools.find(connection, pool_name) is None:
            return Result(changed=False, values={"image": None})
        pool = pools.active_pool(connection, pool_name, wanted)
        images.check_pool(pool, wanted)
        if present:
            found = images.look_again(pool, name, whole)
            before = images.describe(found)
            after = _present(connection, pool, found, params, check=check, deadline=whole)
        else:
            before, after = images.take_away(connection, pool, name, whole, check=check), None
    return Result(plan.compare(before, after).changed, {"image": after}, before, after)


def _present(
    connection: Any, pool: Any, found: images.Found, params: dict[str, Any], *, check: bool, deadline: Deadline
) -> dict[str, Any] | None:
    """Return the image as it is afterwards, or as it would be."""
    name, checksum, url = params["name"], params["checksum"], params["url"]
    images.check_same(found, name, params["pool"], checksum)
    if found.marker is not None and (checksum or (url and found.marker["source"] == image_source.origin_of(url))):
        return images.describe(found)
    if check and url is not None:
        # Fetching it would be more than looking.
        return {"name": name, "pool": params["pool"], "checksum": checksum, "complete": True}
    wanted = f"import image {name} into pool {params['pool']}"
    opening = image_source.local_file if url is None else image_source.download
    with opening(
        params["src"] if url is None else url,
        asked_format=params["format"],
        checksum=checksum,
        wanted=wanted,
        deadline=deadline,
    ) as source:
        images.check_same(found, name, params["pool"], source.checksum)
        if found.marker is not None:
            return images.describe(found)
        images.check_room(pool, source.data_bytes, wanted)
        if check:
            return images.predict(pool, name, source)
        return images.describe(images.import_file(connection, pool, name, source, deadline))


def main() -> None:
    """Run as an Ansible module."""
    run(SPEC, execute, **RULES)


if __name__ == "__main__":
    main()
