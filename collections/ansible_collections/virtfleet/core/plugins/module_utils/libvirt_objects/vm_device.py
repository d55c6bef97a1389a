# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugging devices in and out: of a machine's kept definition, and of the machine while it runs."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import written
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_update
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

LET_GO_SECONDS = 30.0
"""How long a machine may take to let go of a device."""
Find = Callable[[ET.Element], "ET.Element | None"]


@dataclass
class Machine:
    """A machine whose devices are changed, with its two documents as they were."""

    connection: libvirt.virConnect
    domain: libvirt.virDomain
    kept: ET.Element | None
    live: ET.Element | None
    paused: bool
    undo: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.domain.name())

    @property
    def documents(self) -> list[ET.Element]:
        """The documents that there are."""
        return [root for root in (self.kept, self.live) if root is not None]


@dataclass
class Done:
    """What was (or in check mode would be) done with one device."""

    update: plan.Update
    device: dict[str, Any] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    needs_power_cycle: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def machine(
    connection: libvirt.virConnect, name: str | None, uuid: str | None, wanted: str, *, managed_only: bool
) -> Machine:
    """Return the machine with its documents. Raises VirtfleetError `not_found`, `refused` for one that is not ours."""
    domain = vms.find(connection, name, uuid)
    if domain is None:
        hint = "Check its name and the host."
        raise VirtfleetError(wanted, f"the host has no machine {name or uuid}", hint, "not_found")
    if managed_only and not vms.describe(domain)["managed"]:
        text = f"virtfleet did not make machine {domain.name()}: it has no metadata of ours"
        raise VirtfleetError(wanted, text, "Leave it to whoever made it, or set managed_only to false.", "refused")
    state = vms.state_of(domain)
    if state in ("stopped", "crashed") and vms.is_saved(domain):
        text = f"the memory of machine {domain.name()} is saved, and goes with the devices that it had"
        raise VirtfleetError(wanted, text, "Start it first.", "refused")
    kept, live = vm_update.documents(domain, active=state in ("running", "paused"))
    return Machine(connection, domain, kept, live, state == "paused")


def effects(of: Machine, hot: tuple[str, ...]) -> plan.EffectOf:
    """Return what tells when a change of a device holds; those of `hot` do while the machine runs."""

    def effect_of(name: str, _now: Any, wanted: Any) -> str:
        if of.live is None or name not in ("attached", *hot):
            return plan.NEXT_BOOT
        # A machine that is halted cannot let go of anything.
        return plan.NEXT_BOOT if name == "attached" and wanted is False and of.paused else plan.LIVE

    return effect_of


@contextlib.contextmanager
def undoing(of: Machine, wanted: str) -> Iterator[None]:
    """Take back what was done before something failed."""
    try:
        yield
    except (VirtfleetError, libvirtError) as error:
        for step in reversed(of.undo):
            with contextlib.suppress(VirtfleetError, libvirtError):
                step()
        if isinstance(error, VirtfleetError):
            raise
        raise translate(error, wanted) from error


def attach(of: Machine, element: ET.Element, find: Find, *, live: bool, kept: bool) -> None:
    """Plug a device in, where it is not yet. `find` finds it in a document, and nothing else."""
    document = written(element)
    wheres = {libvirt.VIR_DOMAIN_AFFECT_LIVE: live, libvirt.VIR_DOMAIN_AFFECT_CONFIG: kept}
    for flag in (flag for flag, wanted in wheres.items() if wanted):
        # Noted before it is done: its answer may be lost.
        of.undo.append(partial(_unplug, of, find, flag))
        of.domain.attachDeviceFlags(document, flag)


def _unplug(of: Machine, find: Find, flag: int) -> None:
    now = again(of)
    root = now.live if flag == libvirt.VIR_DOMAIN_AFFECT_LIVE else now.kept
    element = find(root) if root is not None else None
    if element is not None:
        of.domain.detachDeviceFlags(written(element), flag)


def detach(of: Machine, find: Find, *, live: bool, deadline: Deadline, wanted: str) -> None:
    """Take a device out: first of the running machine, which must let go of it, then of the definition.

    Raises VirtfleetError `timeout` when the machine does not let go.
    """
    in_live = find(of.live) if of.live is not None and live else None
    if in_live is not None:
        of.domain.detachDeviceFlags(written(in_live), libvirt.VIR_DOMAIN_AFFECT_LIVE)

        def gone() -> bool:
            return find(ET.fromstring(of.domain.XMLDesc(0))) is None

        try:
            wait_for(gone, deadline.at_most(LET_GO_SECONDS), f"machine {of.name} to let go of it", poll=0.1)
        except VirtfleetError as error:
            if error.code != "timeout":
                raise
            hint = "It may still be booting or use it: try again, or stop it first."
            raise VirtfleetError(wanted, error.obstacle, hint, "timeout") from error
    in_kept = find(of.kept) if of.kept is not None else None
    if in_kept is not None:
        of.domain.detachDeviceFlags(written(in_kept), libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def redefine(of: Machine, change: Callable[[ET.Element], None]) -> None:
    """Change the kept definition; the change gets a copy of it."""
    if of.kept is None:
        return
    before = written(of.kept)
    root = ET.fromstring(before)
    change(root)
    after = written(root)
    if after != before:
        of.undo.append(lambda: of.connection.defineXML(before))
        of.connection.defineXML(after)


def again(of: Machine) -> Machine:
    """Return the machine with its documents as they are now."""
    kept, live = vm_update.documents(of.domain, active=of.live is not None)
    return Machine(of.connection, of.domain, kept, live, of.paused)
