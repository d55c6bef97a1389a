# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One machine as it is wanted: the options of module vm, checked before anything reaches a host."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import patch
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_settings
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, shown
from ansible_collections.virtfleet.core.plugins.module_utils.nwfilter_rules import check_filter_name

MAX_SERIAL_LENGTH = 20
"""What a virtio disk shows to its machine; the rest would be cut off without a word."""
MAX_DISKS = 25
"""vda to vdz, one of them for the seed."""
LONGEST_GRACE_SECONDS = 86400.0
NO_FILTER = "none"
"""The filter of a card that has none."""
NETWORKS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "bridge": {"type": "str"},
        "network": {"type": "str"},
        "mac": {"type": "str"},
        "model": {"type": "str", "default": "virtio"},
        "address": {"type": "str"},
        "gateway": {"type": "str"},
        "dns": {"type": "list", "elements": "str"},
        "filter": {"type": "str"},
    },
}
CLOUD_INIT: dict[str, Any] = {
    "type": "dict",
    "options": {
        "hostname": {"type": "str"},
        "ssh_keys": {"type": "list", "elements": "str", "no_log": False},
        "user_data": {"type": "str", "no_log": True},
        "user_data_src": {"type": "path"},
    },
}
"""The options `networks` and `cloud_init` of the modules that make machines."""


@dataclass
class Wanted:
    """One machine as the module's options give it, checked. `name` is empty when only the UUID is given."""

    options: dict[str, Any]
    name: str
    uuid: str | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Wanted:
        """Check one set of options. Raises VirtfleetError `invalid`."""
        name, uuid = identity(options["name"], options["uuid"])
        wanted = cls(options, name or "", uuid)
        wanted._check_numbers()
        wanted._check_words()
        return wanted

    def _check_numbers(self) -> None:
        options, wanted = self.options, f"work on machine {self.name or self.uuid}"
        grace, disks = options["grace"], options["disks"] or []
        vm_settings.settings_of(options)
        patch.steps(options["xml_patch"] or [])
        if not 0 <= grace <= LONGEST_GRACE_SECONDS:  # also false for what is no number (nan)
            hint = f"Use 0 to {LONGEST_GRACE_SECONDS:g} seconds."
            raise VirtfleetError(wanted, f"nobody can wait {grace} seconds as grace", hint, "invalid")
        if len(disks) > MAX_DISKS:
            raise VirtfleetError(wanted, f"{len(disks)} disks are too many", f"Use at most {MAX_DISKS}.", "invalid")

    def _check_words(self) -> None:
        """libvirt takes many of these as they are, and fails on them late and obscurely."""
        if self.options["new_name"] is not None:
            check_name(self.options["new_name"], "machine")
        for nic in self.options["networks"] or []:
            if nic["model"] is not None:
                check_name(nic["model"], "card model")
            if nic["filter"] is not None:
                check_filter_name(nic["filter"])
        for disk in self.options["disks"] or []:
            if disk["serial"] is not None:
                check_serial(disk["serial"])

    @property
    def state(self) -> str:
        """The wanted state."""
        return str(self.options["state"])

    @property
    def attempt(self) -> int:
        """The number of the attempt, 0 when nobody counts."""
        attempt = (self.options.get("metadata") or {}).get("attempt")
        return attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 0

    @property
    def memory_bytes(self) -> int | None:
        """The wanted memory in whole MiB; None when none is given."""
        return None if self.options["memory"] is None else vm_settings.memory_bytes(self.options["memory"])

    @property
    def fixed_addresses(self) -> list[str]:
        """The addresses, with prefix length, that its cards are given; those with DHCP have none."""
        return [nic["address"] for nic in self.options["networks"] or [] if nic["address"]]


@dataclass
class Done:
    """What was (or in check mode would be) done with one machine."""

    changed: bool
    vm: dict[str, Any] | None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    differences: list[dict[str, Any]] = field(default_factory=list)
    update: plan.Update = field(default_factory=plan.Update)
    power_cycled: bool = False
    needs_power_cycle: bool = False


def identity(name: str | None, uuid: str | None) -> tuple[str | None, str | None]:
    """Return the name and UUID of a machine, checked; one of them must be given. Raises VirtfleetError `invalid`."""
    if name is None and uuid is None:
        raise VirtfleetError("find a machine", "neither a name nor a uuid is given", "Give one of them.", "invalid")
    return check_name(name, "machine") if name is not None else None, check_uuid(uuid) if uuid is not None else None


def check_uuid(uuid: str) -> str:
    """Return a UUID as libvirt writes it. Raises VirtfleetError `invalid`."""
    try:
        return str(uuids.UUID(uuid))
    except ValueError:
        hint = "Write it like 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11, or leave it out."
        raise VirtfleetError(f"use {shown(uuid)} as a UUID", "it is not one", hint, "invalid") from None


def check_serial(serial: str) -> str:
    """Return a disk's serial number as a machine can see it. Raises VirtfleetError `invalid`."""
    if len(check_name(serial, "serial number")) > MAX_SERIAL_LENGTH:
        text = f"a machine sees only {MAX_SERIAL_LENGTH} characters of it"
        raise VirtfleetError(f"use {shown(serial)} as serial number", text, "Use a shorter one.", "invalid")
    return serial


def check_distinct(machines: Sequence[dict[str, Any]]) -> None:
    """Refuse a list that names a machine twice: both would be worked on at once. Raises VirtfleetError `invalid`."""
    for key, plain in (("name", str), ("uuid", check_uuid)):
        values = [plain(machine[key]) for machine in machines if machine[key]]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            named = ", ".join(shown(value) for value in twice[:3])
            hint = "Name each machine once, with the state that it is to end in."
            raise VirtfleetError("work on several machines", f"the list has {key} {named} twice", hint, "invalid")


def source_of(nic: dict[str, Any]) -> tuple[str, str]:
    """Return what a card is joined to: bridge or network, and its name. Raises VirtfleetError `invalid`."""
    if (nic["bridge"] is None) == (nic["network"] is None):
        hint = "Give each of networks a bridge or a network."
        raise VirtfleetError("join a machine to a network", "it needs just one of bridge and network", hint, "invalid")
    return ("bridge", nic["bridge"]) if nic["bridge"] is not None else ("network", nic["network"])
