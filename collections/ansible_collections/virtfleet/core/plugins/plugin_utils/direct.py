# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Direct execution: a module of the collection is called in the task's own worker instead of in a new process.

To spawn a Python, unpack the module and import it costs 0.2 s a task; libvirt needs some milliseconds. A module reaches
its host only through libvirt's URI, so it does the same wherever it runs, and its result here is the one it would print
there: options go through the same JSON and the same checks, and what is `no_log` is removed from what comes back.

Where running here could be something else than running there, the task goes the normal way by itself.
`virtfleet_direct: false` (a variable) or VIRTFLEET_DIRECT=0 (in the environment) switch direct execution off.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible.module_utils.common.json import Direction, get_module_decoder, get_module_encoder
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.errors import UnsupportedError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action.normal import ActionModule as NormalWay
from ansible.utils.display import Display
from ansible_collections.virtfleet.core.plugins.module_utils.connection import HAS_LIBVIRT
from ansible_collections.virtfleet.core.plugins.module_utils.module import outcome

VARIABLE = "virtfleet_direct"
ENVIRONMENT = "VIRTFLEET_DIRECT"
PROFILE = "legacy"
"""How ansible-core writes options for modules that ask for nothing newer, and reads their results."""

display = Display()


class DirectAction(NormalWay):
    """The action plugin of a module that can be executed directly. A subclass names its `module`."""

    module: ModuleType

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module here, or run it the normal way where that could make a difference."""
        variables = task_vars or {}
        reason = self._reason_against(variables)
        if reason is None:
            arguments = self._arguments()
            validator = ModuleArgumentSpecValidator(self.module.SPEC, **self.module.RULES)
            reason = self._reason_to_run_there(arguments)
            if reason is None:
                display.vvv(f"{self._task.action} runs in this worker", host=variables.get("inventory_hostname"))
                return self._as_from_a_process(self._call(validator, arguments))
        display.vvv(f"{self._task.action} runs the normal way: {reason}", host=variables.get("inventory_hostname"))
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result

    def _reason_against(self, variables: Mapping[str, Any]) -> str | None:
        """Return why this task must not be executed directly, whatever its options say."""
        wish = self._templar.template(variables.get(VARIABLE, os.environ.get(ENVIRONMENT, "1")))
        delegated = self._task.delegate_to not in (None, variables.get("inventory_hostname"))
        reasons = {
            "direct execution is switched off": not boolean(wish),
            "this Python lacks libvirt-python; that of the module may have it": not HAS_LIBVIRT,
            "the task is asynchronous": self._task.async_val,
            "the task becomes another user": self._connection.become is not None,
            "the task brings its own environment": any(self._task.environment or ()),
            "the task is delegated to another host": delegated and not self._is_local,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    @property
    def _is_local(self) -> bool:
        return bool(self._connection.transport == "local")

    def _reason_to_run_there(self, arguments: Mapping[str, Any]) -> str | None:
        """Return why a task of a host that is not this machine must run there: it means something that is there."""
        if self._is_local:
            return None
        uri = arguments.get("uri")
        if not isinstance(uri, str) or not names_another_host(uri):
            return "its URI means the libvirt of the host that it runs on"
        path = next(_given_paths(self.module.SPEC, arguments), None)
        return f"{path} is a file of the host that it runs on" if path else None

    def _arguments(self) -> dict[str, Any]:
        """Return the task's options as a module gets them: plain data, secrets of the vault readable."""
        encoder = get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
        decoder = get_module_decoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
        arguments: dict[str, Any] = json.loads(json.dumps(dict(self._task.args), cls=encoder), cls=decoder)
        return arguments

    def _call(self, validator: ModuleArgumentSpecValidator, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return what the module would print."""
        checked = validator.validate(arguments)
        hidden = checked._no_log_values
        params = {**arguments, **checked.validated_parameters}
        if checked.error_messages:
            text = checked.errors.msg
            if isinstance(checked.errors[0], UnsupportedError):
                text = f"Unsupported parameters for ({self._task.action}) module: {text}"
            answer: dict[str, Any] = {"failed": True, "msg": text}
        else:
            name = self._task.action
            try:
                answer = outcome(name, self.module.execute, params, check=self._task.check_mode, diff=self._task.diff)
            except Exception as error:  # a defect: its text, too, must not tell a secret
                raise AnsibleActionFail(remove_values(f"{type(error).__name__}: {error}", hidden)) from None
        answer["invocation"] = {"module_args": params}
        if not hidden:
            return answer
        plain = {key: value for key, value in answer.items() if value is None or isinstance(value, bool)}
        return {**remove_values(answer, hidden), **plain}

    def _as_from_a_process(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return a module's answer as if it had come from a process: nothing in it can be a template, for one."""
        text = json.dumps(answer, cls=get_module_encoder(PROFILE, Direction.MODULE_TO_CONTROLLER))
        result: dict[str, Any] = self._parse_returned_data({"stdout": text}, PROFILE)
        for stream in ("stdout", "stderr"):
            if stream in result and f"{stream}_lines" not in result:
                result[f"{stream}_lines"] = (result[stream] or "").splitlines()
        return result


def names_another_host(uri: str) -> bool:
    """Tell whether a libvirt URI means the same host wherever it is used."""
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return False
    if not host or host == "localhost" or host.startswith("localhost."):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    return not (address.is_loopback or address.is_unspecified)


def _given_paths(spec: Mapping[str, Any], values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of options that are given and are files where the module runs."""
    for each in values if isinstance(values, list) else [values]:
        if not isinstance(each, Mapping):
            continue
        for name, option in spec.items():
            given = next((each[key] for key in (name, *option.get("aliases", ())) if each.get(key) is not None), None)
            if given is None:
                continue
            if option.get("type") == "path":
                yield prefix + name
            yield from _given_paths(option.get("options") or {}, given, f"{prefix}{name}.")
