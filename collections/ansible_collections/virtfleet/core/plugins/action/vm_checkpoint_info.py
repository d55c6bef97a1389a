# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Executes the module of the same name directly."""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.modules import vm_checkpoint_info
from ansible_collections.virtfleet.core.plugins.plugin_utils.direct import DirectAction


class ActionModule(DirectAction):
    """Module vm_checkpoint_info, called in the task's worker."""

    module = vm_checkpoint_info
