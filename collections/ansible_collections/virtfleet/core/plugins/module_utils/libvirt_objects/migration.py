# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a machine from one host to another: begun, proven, taken back when it fails, mended after a broken run.

The source's libvirt leads the migration by itself (peer to peer). So one whose client dies goes on to its end, and the
next run takes it up where it is. The rule for every mending: a machine that runs is never touched, and of two
definitions the one of the running machine stays; when none runs, that of the source.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration_preflight as preflight
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration_storage as storage
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration_volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_preflight import Verdict
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_run import (
    Crossing,
    Progress,
    Report,
    Wish,
    cut_off,
    is_incoming,
    is_leaving,
    is_left_waiting,
    is_live,
    stopped,
    told_to_stop,
)
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_LOOK_AGAIN_SECONDS = 0.5


@dataclass
class Moved:
    """What was done, or in check mode would be. `before` is the side it was on, `on` where it is: source or target."""

    changed: bool
    vm: dict[str, Any]
    before: str
    migration: dict[str, Any] | None = None
    verdict: Verdict | None = None
    mended: list[str] = field(default_factory=list)
    on: str = "target"
    left: list[str] = field(default_factory=list)
    """Volumes on the other side that were made for it and could not be removed."""


def move(
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    wish: Wish,
    *,
    check: bool,
    deadline: Deadline,
    report: Report = lambda _progress: None,
) -> Moved:
    """Bring a machine to `target`, wherever of the two it is.

    Raises VirtfleetError; its `values["on"]` says where the machine is then: source, target, both, nowhere or unknown.
    """
    moving = _Move(source, target, wish, check=check, deadline=deadline, report=report)
    return _as_they_are(moving.run, deadline, wish.goal)


def end(source: libvirt.virConnect, wish: Wish, *, check: bool, deadline: Deadline) -> bool:
    """End a migration of the machine that is on its way; tell whether there was one. Needs no word of the target.

    It may come to its good end meanwhile: `settle` says which it was. Raises VirtfleetError.
    """
    here = vms.find(source, wish.name, wish.uuid)
    if here is None or not is_leaving(here):
        return False
    if not check:
        cut_off(here, wish.goal, deadline)
    return True


def settle(
    source: libvirt.virConnect, target: libvirt.virConnect, wish: Wish, *, check: bool, deadline: Deadline, ended: bool
) -> Moved:
    """Put right what a broken migration has left, wherever the machine has come to; nothing is moved.

    `ended`: one that was on its way has just been ended (`end`). Raises VirtfleetError, as `move` does.
    """
    settling = _Move(source, target, wish, check=check, deadline=deadline, report=lambda _progress: None)
    if ended:
        settling.mended.append("a migration that was on its way was ended")
    return _as_they_are(settling.settle, deadline, wish.goal)


def _as_they_are(work: Callable[[], Moved], deadline: Deadline, goal: str) -> Moved:
    """Do work that begins by looking at both hosts, again when a machine has gone from one of them meanwhile.

    A host clears away by itself, in a while, what a run that died has left there half received.
    """
    while True:
        try:
            return work()
        except libvirtError as error:
            if code_of(error) != "not_found" or deadline.passed:
                raise translate(error, goal) from error
            time.sleep(_LOOK_AGAIN_SECONDS)


def is_surely_here(source: libvirt.virConnect, wish: Wish) -> bool:
    """Tell by the source alone whether the machine is there, so that whatever the target has of it is nothing."""
    with contextlib.suppress(VirtfleetError, libvirtError):
        here = vms.find(source, wish.name, wish.uuid)
        return here is not None and bool(here.isActive()) and not is_leaving(here) and not is_left_waiting(here)
    return False


class _Move:
    def __init__(
        self,
        source: libvirt.virConnect,
        target: libvirt.virConnect,
        wish: Wish,
        *,
        check: bool,
        deadline: Deadline,
        report: Report,
    ) -> None:
        self.source = source
        self.target = target
        self.wish = wish
        self.check = check
        self.deadline = deadline
        self.report = report
        self.mended: list[str] = []
        self.progress = Progress()

    def run(self) -> Moved:
        """Find the machine, mend what is broken, and move it if it is not there yet."""
        began = time.monotonic()
        here = vms.find(self.source, self.wish.name, self.wish.uuid)
        adopted = here is not None and is_leaving(here)
        if here is not None and adopted:
            if self.check:
                return Moved(True, vms.describe(here), "source")
            uuid = here.UUIDString()
            self._take_up(here)
            here = vms.find(self.source, None, uuid)
        else:
            uuid = here.UUIDString() if here is not None else self.wish.uuid
        there = vms.find(self.target, None if uuid else self.wish.name, uuid)
        if here is None:
            return self._is_there(there, began if adopted else None)
        if there is not None:
            moved = self._meet(here, there)
            if moved is not None:
                return moved
        return self._migrate(here, began)

    def settle(self) -> Moved:
        """Find the machine, and take away what is on the other side."""
        here = vms.find(self.source, self.wish.name, self.wish.uuid)
        uuid = here.UUIDString() if here is not None else self.wish.uuid
        there = vms.find(self.target, None if uuid else self.wish.name, uuid)
        if here is None:
            moved = self._is_there(there, None)
        else:
            arrived = there is not None and not there.isActive()
            moved = (self._meet(here, there) if there is not None else None) or self._stays(here, arrived=arrived)
        side = self.source if moved.on == "target" else self.target
        other = self.target if moved.on == "target" else self.source
        if not self.check:
            still = migration_volumes.leftovers(side, other, moved.vm, self.wish.shared_pools)
            moved.left = [f"{disk.pool}/{disk.volume}" for disk in still]
        moved.changed = bool(self.mended)
        return moved

    def _stays(self, here: libvirt.virDomain, *, arrived: bool) -> Moved:
        """Free a machine that is on the source of what the target has of it."""
        if is_left_waiting(here) and not arrived:
            # Paused to be handed over, and never taken: otherwise the target would know it.
            if not self.check:
                vms.resume(here)
            self.mended.append("it was paused to be handed over, and goes on")
        machine = vms.describe(here)
        left = migration_volumes.leftovers(self.target, self.source, machine, self.wish.shared_pools)
        if left:
            if not self.check:
                migration_volumes.discard(self.target, left)
            self.mended.append("volumes that the migration had made on the target were removed")
        return Moved(False, machine, "source", mended=self.mended, on="source")

    # Where it is, and what an earlier run left.

    def _take_up(self, here: libvirt.virDomain) -> None:
        """Wait for a migration that an earlier run began."""
        with told_to_stop() as stop:
            crossing = Crossing(self.wish, here, self.target, deadline=self.deadline, report=self.report, stop=stop)
            crossing.follow()
            self.progress = crossing.progress
            if stop.is_set():
                raise stopped(self.wish.goal)
        self.mended.append("a migration that an earlier run had begun was taken up")

    def _is_there(self, there: libvirt.virDomain | None, began: float | None) -> Moved:
        if there is None:
            hint = "Look where it is: virtfleet vm show, or module vm_info on the other hosts."
            raise VirtfleetError(self.wish.goal, "neither host has it", hint, "not_found", values={"on": "nowhere"})
        machine = vms.describe(there)
        cleaned = self._clean_source(machine)
        if began is None:
            return Moved(cleaned, machine, "target", mended=self.mended)
        migration = self._figures(there, time.monotonic() - began, "live")
        return Moved(True, machine, "source", migration, mended=self.mended)

    def _clean_source(self, machine: dict[str, Any]) -> bool:
        """Remove the volumes that an earlier migration left on the source; tell whether there were any."""
        left = migration_volumes.leftovers(self.source, self.target, machine, self.wish.shared_pools)
        if left:
            if not self.check:
                migration_volumes.discard(self.source, left)
            self.mended.append("volumes that an earlier migration had left on the source were removed")
        return bool(left)

    def _meet(self, here: libvirt.virDomain, there: libvirt.virDomain) -> Moved | None:
        """Deal with a machine that both hosts know; None when it is still to be moved, and may be."""
        if is_live(here) and is_live(there):
            text = "it runs on both hosts at once"
            hint = "Stop at once the one that must not run, with module vm and force, before they spoil their disk."
            raise VirtfleetError(self.wish.goal, text, hint, "refused", values={"on": "both"})
        if is_live(there) or (there.isActive() and not here.isActive() and not is_incoming(there)):
            if not self.check:
                vms.destroy(here)  # all that it does is to wait for the word that it has arrived
                vms.undefine(here, keep_nvram=True)
            self.mended.append("it was on the target already: what was left of it on the source was removed")
            machine = vms.describe(there)
            if not self.check:
                self._clean_source(machine)
            return Moved(True, machine, "target", mended=self.mended)
        if not self.check:
            self._clear_target(here)
        self.mended.append("what an earlier migration had left of it on the target was removed")
        return None

    def _clear_target(self, here: libvirt.virDomain) -> None:
        """Remove what the target has of a machine that is on the source; never one that runs."""
        there = vms.find(self.target, None, here.UUIDString())
        if there is not None and there.isActive():
            if is_live(there) or not is_incoming(there):
                text = "the target has it too, and no migration explains that"
                hint = "Look at both; nothing was changed."
                raise VirtfleetError(self.wish.goal, text, hint, "refused", values={"on": "both"})
            vms.destroy(there)
            there = vms.find(self.target, None, here.UUIDString())
        if there is not None:
            vms.undefine(there, keep_nvram=True)

    # The migration itself.

    def _migrate(self, here: libvirt.virDomain, began: float) -> Moved:
        wish = self.wish
        verdict = judge(self.source, self.target, here, wish)
        try:
            preflight.refuse(verdict, wish.goal)
        except VirtfleetError as error:
            error.values["on"] = "source"
            raise
        machine = vms.describe(here)
        if self.check:
            return Moved(True, machine, "source", verdict=verdict, mended=self.mended)
        uuid, running = here.UUIDString(), bool(here.isActive())
        made: list[storage.DiskMove] = []
        try:
            migration_volumes.prove(self.source, self.target, verdict.storage, wish.goal)
            with told_to_stop() as stop:
                migration_volumes.prepare(self.source, self.target, verdict.storage, self.deadline, made)
                if stop.is_set():
                    raise stopped(wish.goal)
                crossing = Crossing(wish, here, self.target, deadline=self.deadline, report=self.report, stop=stop)
                self.progress = crossing.progress
                crossing.carry(verdict.storage, running=running)
        except (VirtfleetError, libvirtError) as error:
            failed = error if isinstance(error, VirtfleetError) else translate(error, wish.goal)
            if not self._arrived(uuid, running=running):
                raise self._give_up(failed, uuid, made, was_live=machine["state"] == "running") from error
        there = self._prove(uuid, running=running)
        kind = "offline" if not running else "live" if wish.live else "paused"
        migration = self._figures(there, time.monotonic() - began, kind)
        migration["copied"] = [disk.volume for disk in verdict.storage.copied]
        own, others = verdict.storage.made_for(machine)
        gone = migration_volumes.discard(self.source, own)
        migration["left"] = [disk.volume for disk in (others if gone else verdict.storage.copied)]
        return Moved(True, vms.describe(there), "source", migration, verdict, self.mended)

    # The end of it.

    def _arrived(self, uuid: str, *, running: bool) -> bool:
        """Tell whether the machine is on the target although an error came back: the good word may have been lost."""
        with contextlib.suppress(VirtfleetError, libvirtError):
            here, there = vms.find(self.source, None, uuid), vms.find(self.target, None, uuid)
            if there is None or (here is not None and (here.isActive() or not running)):
                return False
            return is_live(there) if running else here is None
        return False

    def _prove(self, uuid: str, *, running: bool) -> libvirt.virDomain:
        """Return the machine on the target; raise unless it is there, and there alone."""
        here, there = vms.find(self.source, None, uuid), vms.find(self.target, None, uuid)
        if here is not None and not here.isActive() and there is not None:
            vms.undefine(here, keep_nvram=True)
            here = vms.find(self.source, None, uuid)
        if there is not None and here is None and bool(there.isActive()) == running and there.isPersistent():
            return there
        on = "both" if here is not None and there is not None else "nowhere" if there is None else "target"
        text = "libvirt says that it was done, but the hosts do not show it"
        hint = "Look at the machine on both hosts before anything else is done with it."
        raise VirtfleetError(self.wish.goal, text, hint, "internal", values={"on": on})

    def _give_up(
        self, error: VirtfleetError, uuid: str, made: list[storage.DiskMove], *, was_live: bool
    ) -> VirtfleetError:
        """Take back what was begun, and say where the machine is."""
        on, clean = "unknown", not made
        with contextlib.suppress(VirtfleetError, libvirtError):
            here = vms.find(self.source, None, uuid)
            if here is not None and not is_leaving(here):
                on = "source"
                self._clear_target(here)
                if was_live and is_left_waiting(here):
                    vms.resume(here)  # it does not run there: that was just seen
                clean = migration_volumes.discard(self.target, made)
            elif here is None and vms.find(self.target, None, uuid) is not None:
                on = "target"
        stays = {"source": "The machine stays on the source.", "target": "The machine is on the target."}.get(on, "")
        left = "" if clean else "Some of what was made on the target is left there: the next run removes it."
        error.hint = " ".join(word for word in (error.hint, stays, left) if word)
        error.values |= {"on": on, "cleaned": clean}
        return error

    def _figures(self, there: libvirt.virDomain, seconds: float, kind: str) -> dict[str, Any]:
        said: dict[str, Any] = {}
        with contextlib.suppress(libvirtError):
            said = there.jobStats(preflight.LAST_JOB)
        downtime = said.get("downtime")
        return {
            "kind": kind,
            "duration": round(seconds, 3),
            "downtime": downtime / 1000 if downtime is not None else None,
            "bytes": said.get("data_processed", 0) + self.progress.disk_bytes,
            "disk_bytes": self.progress.disk_bytes,
            "iterations": said.get("memory_iteration"),
            "unsafe": self.progress.unsafe,
            "copied": [],
            "left": [],
        }


def judge(
    source: libvirt.virConnect, target: libvirt.virConnect, domain: libvirt.virDomain, wish: Wish
) -> preflight.Verdict:
    """Return whether a machine could be moved as wished."""
    return preflight.judge(
        source,
        target,
        domain,
        peer_uri=wish.peer_uri,
        address=wish.address,
        live=wish.live,
        shared_pools=wish.shared_pools,
        may_copy=wish.copy_storage,
    )
