# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the filters over hosts and their machines share."""

from __future__ import annotations


class ModuleDocFragment:
    """What a filter may be told beside the values of `host_info`."""

    DOCUMENTATION = r"""
options:
  vcpu_ratio:
    description: Only with values of M(virtfleet.core.host_info). vCPUs that may be promised for each real one.
    type: float
    default: 8.0
  memory_ratio:
    description: Only with values of M(virtfleet.core.host_info). Memory that may be promised for each real byte.
    type: float
    default: 1.0
  disk_ratio:
    description: Only with values of M(virtfleet.core.host_info). Part of its virtual size that an overlay counts with.
    type: float
    default: 1.0
  groups:
    description: Only with values of M(virtfleet.core.host_info). Rules, as for P(virtfleet.core.place#filter).
    type: list
    elements: dict
  machines:
    description:
      - Only with values of M(virtfleet.core.host_info). By a machine's name, what its host does not tell, a mapping of
        any of C(groups), C(domain), C(exclude), C(tags), C(movable), C(stays) (why it must stay) and C(disks)
        (as in M(virtfleet.core.vm)).
      - Without its disks, a machine counts with vCPUs and memory only.
    type: dict
"""
