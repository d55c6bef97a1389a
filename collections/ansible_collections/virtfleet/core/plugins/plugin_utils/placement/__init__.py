# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placement: pure functions over plain data that decide where machines go, and say why.

Nothing here reads a clock, a file or the network; time and randomness are inputs. See `docs/placement.md`.
"""

from __future__ import annotations

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.capacity import capacity
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.consolidate import consolidate
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.drain import drain
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.htools import export_htools, import_htools
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.placing import algorithm, place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.policies import DEFAULT_POLICY, NAMED
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.reading import explain
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.rebalance import rebalance
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.replay import replay, replay_loads
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale import scale
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import SCHEMA_VERSION
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.score import score
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.what_if import what_if

__all__ = [
    "DEFAULT_POLICY",
    "NAMED",
    "SCHEMA_VERSION",
    "SchemaError",
    "algorithm",
    "capacity",
    "consolidate",
    "drain",
    "explain",
    "export_htools",
    "import_htools",
    "place",
    "rebalance",
    "replay",
    "replay_loads",
    "scale",
    "score",
    "what_if",
]
