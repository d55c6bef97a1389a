#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module swift_files: the rings of OpenStack Swift on one of its hosts."""

from __future__ import annotations

import base64
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: swift_files
short_description: The rings of OpenStack Swift on one of its hosts
description:
  - Writes files that are not text, each at once or not at all. Swift's servers notice a new ring by themselves.
options:
  settings:
    description: The folder of Swift's settings.
    type: path
    required: true
  files:
    description: What M(swift_rings) returned, names of files with their content in base64.
    type: dict
    required: true
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
written:
  description: The files that were others before.
  returned: always
  type: list
  elements: str
"""

MODE = 0o644


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    written = []
    for name, text in sorted(module.params["files"].items()):
        target = Path(module.params["settings"], name)
        wanted = base64.b64decode(text)
        if target.is_file() and target.read_bytes() == wanted:
            continue
        written.append(name)
        if not module.check_mode:
            source = Path(module.tmpdir, name)
            source.write_bytes(wanted)
            source.chmod(MODE)
            module.atomic_move(str(source), str(target))
    module.exit_json(changed=bool(written), written=written)


if __name__ == "__main__":
    main()
