# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module of the collection shares: its common options, its result, and the way it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.virtfleet.core.plugins.module_utils.connection import HAS_LIBVIRT, LIBVIRT_IMPORT_ERROR
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError  # never raised: without libvirt a module ends before it does anything

# A module's SPEC is {**COMMON, ...}; both are documented in the fragment virtfleet.core.common.
COMMON: dict[str, Any] = {
    "uri": {"type": "str", "required": True},
    "connect_timeout": {"type": "float", "default": 10.0},
    "timeout": {"type": "float", "default": 60.0},
}


@dataclass
class Result:
    """What `execute` returns. `values` join the module's result; `before` and `after` make its diff."""

    changed: bool
    values: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


Execute = Callable[[dict[str, Any], bool, bool], Result]


def deadlines(params: dict[str, Any]) -> tuple[Deadline, Deadline]:
    """Return the deadline of the whole task and, not after it, that of connecting."""
    for name in ("timeout", "connect_timeout"):
        if not 0 < params[name] <= 86400:
            hint = "Use a number of seconds above 0, at most 86400 (a day)."
            raise VirtfleetError(f"use {params[name]} as {name}", "no such time can be waited", hint, "invalid")
    whole = Deadline(params["timeout"])
    return whole, whole.at_most(params["connect_timeout"])


def success(result: Result, diff: bool) -> dict[str, Any]:
    """Return a `Result` as the keyword arguments of `exit_json`."""
    answer = {**result.values, "changed": result.changed}
    if diff and (result.before is not None or result.after is not None):
        answer["diff"] = {"before": result.before or {}, "after": result.after or {}}
    return answer


def failure(error: VirtfleetError) -> dict[str, Any]:
    """Return a `VirtfleetError` as the keyword arguments of `fail_json`."""
    return {**error.values, "msg": str(error), "error": error.as_dict()}


def outcome(name: str, execute: Execute, params: dict[str, Any], *, check: bool, diff: bool) -> dict[str, Any]:
    """Call `execute` and return the module's result; `failed` is true in it when something could not be done."""
    try:
        return success(execute(params, check, diff), diff)
    except VirtfleetError as error:
        return {**failure(error), "failed": True}
    except libvirtError as error:
        # Each call names what it wanted; this is the net below them.
        return {**failure(translate(error, f"finish {name}")), "failed": True}


def run(spec: dict[str, Any], execute: Execute, **module_options: Any) -> None:
    """Build the module, call `execute(params, check, diff)` and exit. `module_options` go to AnsibleModule.

    This is the normal way, a process for the task; `plugin_utils/direct.py` has the other one.
    """
    module = AnsibleModule(argument_spec=spec, **{"supports_check_mode": True, **module_options})
    if not HAS_LIBVIRT:
        module.fail_json(
            msg=missing_required_lib("libvirt-python", url="https://libvirt.org/python.html"),
            exception=LIBVIRT_IMPORT_ERROR,
        )
    answer = outcome(module._name, execute, module.params, check=module.check_mode, diff=module._diff)
    if answer.pop("failed", False):
        module.fail_json(**answer)
    module.exit_json(**answer)
