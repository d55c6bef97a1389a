# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that every module of the collection shares."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of `module_utils.module.COMMON`, and what all modules need and support."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt URI of the host, such as V(qemu+ssh://root@host/system) or V(qemu+tls://host/system).
      - All work is done through it. The module itself may run anywhere, usually on the controller.
      - The transport C(ext) and the parameters C(command) and C(netcat) are refused, since they run programs.
    type: str
    required: true
  connect_timeout:
    description: Seconds after which a host that does not answer is given up.
    type: float
    default: 10.0
  timeout:
    description: Seconds for all that the task does, connecting included.
    type: float
    default: 60.0
requirements:
  - python >= 3.10
  - libvirt-python >= 9.0.0
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and tell what would change, without changing anything.
    support: full
  diff_mode:
    description: Returns what is before and what is after, when asked by C(--diff).
    support: full
  action_group:
    description: Is a member of the action group C(virtfleet.core.all), so C(module_defaults) can give it its O(uri).
    support: full
    membership:
      - virtfleet.core.all
"""
