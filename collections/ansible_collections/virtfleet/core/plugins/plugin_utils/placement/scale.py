# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scaling decisions as pure state machines over a history of samples: the same history and policy decide the same.

Three kinds. `resize` makes one machine larger or smaller, or moves the machine that loads a host (S2.12-S2.17, C3).
`group_cpu` adds machines to a group by its mean CPU (S4.5-S4.8). `group_requests` does so by the change of its request
rate (S5.9, C8). A metric without a source is unknown: never 0, never acted on. Every metric that leads to nothing says
why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import Door
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale_group import group_cpu, group_requests
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scale_resize import resize

KINDS: dict[str, Callable[[Door, Door], dict[str, Any]]] = {
    "resize": resize,
    "group_cpu": group_cpu,
    "group_requests": group_requests,
}


def scale(history: object, policy: object) -> dict[str, Any]:
    """Decide whether to scale. `policy.kind` is one of `resize`, `group_cpu`, `group_requests`.

    The answer's `action` is `none`, `ask_up`, `force_up` or `ask_down` for `resize`, and `none`, `up`, `down` or
    `replace` for the groups. Raises SchemaError naming the field that is wrong.
    """
    rules = Door(policy, "policy")
    kind = rules.choice("kind", KINDS, "resize")
    past = Door(history, "history")
    answer = KINDS[kind](past, rules)
    past.done()
    rules.done()
    return answer
