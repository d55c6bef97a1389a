# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network cards of a machine that is there: attached, detached, joined elsewhere, their link cut."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import written
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import nwfilter, vm_device
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_device import Done, Machine
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
except ImportError:
    libvirt = None

NEW: dict[str, Any] = {"source": None, "model": "virtio", "link": "up", "filter": "none"}
"""How a card is when nothing else is said."""
_HOT = ("source", "link", "filter")
"""What changes while the machine runs."""


@dataclass(frozen=True)
class Wanted:
    """A card as it is wanted; None leaves it as it is. `source` is (bridge or network, its name).

    `filter` is the name of a network filter, or none.
    """

    mac: str
    source: tuple[str, str] | None = None
    model: str | None = None
    link: str | None = None
    filter: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was named of the card."""
        named: dict[str, Any] = {"model": self.model, "link": self.link, "filter": self.filter}
        if self.source is not None:
            named["source"] = {"kind": self.source[0], "name": self.source[1]}
        return {name: value for name, value in named.items() if value is not None}


def present(machine: Machine, wanted: Wanted, *, check: bool) -> Done:
    """Attach a card, or change one that is attached; in check mode only say what would be done. Raises VirtfleetError.

    What fails half-way is taken back.
    """
    goal = f"attach network card {wanted.mac} to machine {machine.name}"
    kept, live = (
        None if root is None else devices.read_nic(devices.find_nic(root, wanted.mac))
        for root in (machine.kept, machine.live)
    )
    if wanted.source is None and not any(state is not None and state["attached"] for state in (kept, live)):
        hint = "Give the bridge or network to join it to."
        raise VirtfleetError(goal, "it has no card of that address", hint, "not_found")
    if wanted.filter is not None and wanted.filter != NEW["filter"]:
        nwfilter.require(machine.domain.connect(), wanted.filter, goal)
    asked: dict[str, Any] = {"attached": True, **wanted.settings}
    for state in (kept, live):
        if state is not None and not state["attached"]:
            state.update(asked | {"attached": False})  # it comes with all that is asked for
    update = plan.update(asked, kept, live, vm_device.effects(machine, _HOT))
    done = Done(
        update,
        None,
        {"mac": wanted.mac, **{change.what: change.before for change in update.changes}},
        {"mac": wanted.mac, **{change.what: change.after for change in update.changes}},
        needs_power_cycle=machine.live is not None and bool(update.next_boot),
    )
    if not check and update.changed:
        with vm_device.undoing(machine, goal):
            _make_so(machine, wanted, update)
    done.device = described(machine if check else vm_device.again(machine), wanted.mac)
    return done


def absent(machine: Machine, mac: str, *, check: bool, deadline: Deadline) -> Done:
    """Detach a card. In check mode only say what would be done."""
    goal = f"detach network card {mac} from machine {machine.name}"
    find = partial(devices.find_nic, mac=mac)
    kept, live = (
        None if root is None else {"attached": find(root) is not None} for root in (machine.kept, machine.live)
    )
    update = plan.update({"attached": False}, kept, live, vm_device.effects(machine, ()))
    before = described(machine, mac) if update.changed else None
    waits = machine.live is not None and bool(update.next_boot)
    if not check and update.changed:
        with vm_device.undoing(machine, goal):
            vm_device.detach(machine, find, live=not machine.paused, deadline=deadline, wanted=goal)
    return Done(update, None, before, None, needs_power_cycle=waits)


def described(machine: Machine, mac: str) -> dict[str, Any] | None:
    """Return a card as it is: in the running machine if there is one, else in its definition."""
    for root in (machine.live, machine.kept):
        nic = devices.find_nic(root, mac) if root is not None else None
        if nic is not None:
            facts = devices.read_nic(nic)
            return {
                "mac": mac,
                "kind": facts["source"]["kind"],
                "source": facts["source"]["name"],
                "model": facts["model"],
                "link": facts["link"],
                "filter": facts["filter"],
            }
    return None


def _make_so(machine: Machine, wanted: Wanted, update: plan.Update) -> None:
    in_live = devices.find_nic(machine.live, wanted.mac) if machine.live is not None else None
    in_kept = devices.find_nic(machine.kept, wanted.mac) if machine.kept is not None else None
    names = update.names()
    if "attached" in names:
        asked = NEW | wanted.settings
        if asked["source"] is None:  # it is in one of the two documents, which says where it belongs
            there = in_live if in_live is not None else in_kept
            asked |= devices.read_nic(there) | wanted.settings
        element = devices.nic_element(asked, wanted.mac)
        live = machine.live is not None and in_live is None
        kept = machine.kept is not None and in_kept is None
        vm_device.attach(machine, element, partial(devices.find_nic, mac=wanted.mac), live=live, kept=kept)
    hot = [name for name in update.names(plan.LIVE) if name in _HOT]
    if in_live is not None and hot:
        before = written(in_live)
        changed = ET.fromstring(before)
        for name in hot:
            devices.write_nic(changed, name, wanted.settings[name])
        machine.undo.append(partial(machine.domain.updateDeviceFlags, before, libvirt.VIR_DOMAIN_AFFECT_LIVE))
        machine.domain.updateDeviceFlags(written(changed), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    if in_kept is not None:
        vm_device.redefine(machine, partial(_write, wanted, names))


def _write(wanted: Wanted, names: list[str], root: ET.Element) -> None:
    nic = devices.find_nic(root, wanted.mac)
    for name in names:
        if nic is not None and name in wanted.settings:
            devices.write_nic(nic, name, wanted.settings[name])
