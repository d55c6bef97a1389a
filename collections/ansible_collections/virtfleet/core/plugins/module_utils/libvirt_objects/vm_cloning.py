# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a machine like another one of its host, which is left as it is.

While it is made, a small volume `…-clone.part` says so: a run that finds it takes what an earlier one left for broken
and begins anew. The machine is started only after that volume is gone.
"""

from __future__ import annotations

import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import build
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import clone as clone_xml
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import snapshot as snapshots
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import (
    vm_addresses,
    vm_clone_snapshots,
    vm_making,
    volume_copy,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_clone_parts import (
    FRESH,
    FULL,
    LINKED,
    Part,
    cards_of,
    parts,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_recipe import refuse_older
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_undo import Undo
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import Done
from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

MARKER = "clone.part"
"""How the name of the marker ends; it holds the number of the attempt."""
_MARKER_BYTES = 64
CLONED_FROM = "cloned_from"
"""In a clone's metadata: the UUID of the machine that it was made from."""


@dataclass(frozen=True)
class Wish:
    """The clone that is wanted. `networks` and `cloud_init` are as module vm takes them; None: like the source's."""

    name: str
    uuid: str | None
    source: str | None
    source_uuid: str | None
    mode: str
    snapshot: str | None
    networks: Sequence[dict[str, Any]] | None
    cloud_init: dict[str, Any] | None
    metadata: dict[str, Any]
    state: str
    wait_for: str

    @property
    def attempt(self) -> int:
        """The number of the attempt, 0 when nobody counts."""
        attempt = self.metadata.get("attempt")
        return attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 0


def clone(connection: libvirt.virConnect, wish: Wish, *, check: bool, deadline: Deadline) -> tuple[Done, list[Part]]:
    """Make the clone unless it is there, or say in check mode what would be. Returns its own disks beside.

    Raises VirtfleetError; its `values["cleaned"]` says whether all that was made was removed again.
    """
    goal = f"clone machine {wish.source or wish.source_uuid} to {wish.name}"
    undo = Undo()
    try:
        source = vms.find(connection, wish.source, wish.source_uuid)
        if source is None:
            hint = "Look at module vm_info, or on the other hosts: a clone is made where its source is."
            raise VirtfleetError(goal, "this host has no such machine", hint, "not_found")
        domain = vms.find(connection, wish.name, wish.uuid)
        if domain is not None and domain.name() != wish.name:
            text = f"its UUID {wish.uuid} belongs to machine {domain.name()}"
            raise VirtfleetError(goal, text, "Choose another UUID, or leave it out.", "already_exists")
        if domain is not None and not _is_incomplete(connection, domain):
            return _keep(connection, wish, source, domain, goal, check=check, deadline=deadline), []
        uuid = wish.uuid or (domain.UUIDString() if domain is not None else str(uuids.uuid4()))
        maker = _Maker(connection, wish, source, uuid=uuid, goal=goal, deadline=deadline)
        maker.look()
        if not check:
            maker.clear()
            maker.make(undo)
            return maker.start(), maker.parts
        facts = {"name": wish.name, "uuid": wish.uuid, "state": _after(wish)}
        return Done(True, facts, None, _shown(wish)), maker.parts
    except VirtfleetError as error:
        undo.explain(error)
        raise
    except libvirtError as error:
        failed = translate(error, goal)
        undo.explain(failed)
        raise failed from error
    except BaseException:
        undo.run()
        raise


def _after(wish: Wish) -> str:
    return "stopped" if wish.state == "present" else wish.state


def _shown(wish: Wish) -> dict[str, Any]:
    return {"name": wish.name, "state": _after(wish), "mode": wish.mode, "snapshot": wish.snapshot}


def _markers(connection: libvirt.virConnect, name: str, uuid: str) -> list[dict[str, str]]:
    return [each for each in vms.leftovers(connection, name, uuid) if each["name"].endswith(f"-{MARKER}")]


def _is_incomplete(connection: libvirt.virConnect, domain: libvirt.virDomain) -> bool:
    return bool(_markers(connection, domain.name(), domain.UUIDString()))


def _keep(
    connection: libvirt.virConnect,
    wish: Wish,
    source: libvirt.virDomain,
    domain: libvirt.virDomain,
    goal: str,
    *,
    check: bool,
    deadline: Deadline,
) -> Done:
    """Leave a clone that is there; it is only started if it is to run and does not."""
    facts = vms.describe(domain)
    if facts["metadata"].get(CLONED_FROM) != source.UUIDString():
        text = "there is a machine of that name already, and it is no clone of this one"
        raise VirtfleetError(goal, text, "Choose another name; the other machine is left alone.", "already_exists")
    refuse_older(wish.attempt, facts)
    starts = wish.state != "present" and facts["state"] in ("stopped", "crashed")
    before = {"name": facts["name"], "state": facts["state"]}
    after = {**before, "state": wish.state if starts else facts["state"]}
    if starts and not check:
        vms.start(domain, paused=wish.state == "paused")
    if starts and check:
        return Done(True, {**facts, "state": wish.state}, before, after)
    addresses: list[str] = []
    if wish.state == "running" and not check:
        addresses = vm_addresses.await_guest(connection, domain, wish.wait_for, facts["fixed_addresses"], deadline)
    return Done(starts, vms.describe(domain, addresses), before, after)


class _Maker:
    """One clone: what it takes is looked at first, then made."""

    def __init__(
        self,
        connection: libvirt.virConnect,
        wish: Wish,
        source: libvirt.virDomain,
        *,
        uuid: str,
        goal: str,
        deadline: Deadline,
    ) -> None:
        self.parts: list[Part] = []
        self._connection = connection
        self._wish = wish
        self._source = source
        self._uuid = uuid
        self._goal = goal
        self._deadline = deadline
        self._prefix = volume_prefix(wish.name, uuid)
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        self._root = ET.fromstring(source.XMLDesc(flags))
        self._inside: list[dict[str, Any]] = []
        """The source's snapshots that lie in its files."""
        self._networks: list[dict[str, Any]] = []
        self._cards: list[ET.Element] | None = None
        self._macs: list[str] = []
        self._seed: dict[str, bytes] | None = None

    def look(self) -> None:
        """Check all that can be checked without making anything. Raises VirtfleetError."""
        wish = self._wish
        snapshot = self._snapshot()
        if wish.mode != FRESH:
            self._refuse_in_use(snapshot)
        self.parts = parts(self._source, self._root, self._prefix, mode=wish.mode, snapshot=snapshot, goal=self._goal)
        self._plan_cards()
        self._plan_seed()
        for part in self.parts:
            if wish.mode != FRESH:
                images.check_room(part.pool, self._needed_bytes(part), self._goal)
        begun = _markers(self._connection, wish.name, self._uuid)
        for each in begun:
            self._refuse_older(each)
        if not begun:
            taken = [each["name"] for each in vms.leftovers(self._connection, wish.name, self._uuid)]
            if taken:
                text = f"there is a volume {taken[0]} already, and it is of no clone that was broken off"
                hint = "It may be of an earlier machine: delete it if nobody needs it."
                raise VirtfleetError(self._goal, text, hint, "already_exists")
        build.written(self._document({part.target: f"/{part.name}" for part in self.parts}, "/seed"))

    def _refuse_older(self, marker: dict[str, str]) -> None:
        """Leave alone what a later attempt is making: this run is one that was thought to be dead."""
        volume = volumes.find(pools.active_pool(self._connection, marker["pool"], self._goal), marker["name"])
        text = volumes.read_text(volume, _MARKER_BYTES).strip() if volume is not None else ""
        attempt = int(text) if text.isdecimal() else 0
        refuse_older(self._wish.attempt, {"name": self._wish.name, "metadata": {"attempt": attempt}})

    def _needed_bytes(self, part: Part) -> int:
        """Return what of its pool making a disk will take, while it is made."""
        own = int(part.described["allocation_bytes"])
        if self._wish.mode == LINKED:
            return own
        below = volumes.describe(part.image)["allocation_bytes"] if part.image is not None else 0
        return own + int(below) + (own if self._through_file(part) else 0)

    def _snapshot(self) -> dict[str, Any] | None:
        there = snapshots.all_of(self._source)
        self._inside = [each for each in there if each["mode"] == snapshots.INTERNAL]
        if self._wish.snapshot is None:
            return None
        found = next((each for each in there if each["name"] == self._wish.snapshot), None)
        if found is None:
            known = ", ".join(each["name"] for each in there) or "none at all"
            text = f"it has no snapshot {self._wish.snapshot}"
            raise VirtfleetError(self._goal, text, f"It has {known}.", "not_found")
        return found

    def _refuse_in_use(self, snapshot: dict[str, Any] | None) -> None:
        """Refuse what would copy disks that are written to meanwhile, or do not fit the memory that was saved."""
        if snapshot is not None and snapshot["mode"] == snapshots.EXTERNAL:
            return  # nobody writes to what it keeps
        state = vms.state_of(self._source)
        if self._source.isActive():
            text = f"it is {state}, and a copy of disks that are written to meanwhile would be broken"
            hint = "Stop it first, or clone it from an external snapshot, or make a fresh one like it."
            raise VirtfleetError(self._goal, text, hint, "refused")
        if self._source.hasManagedSaveImage(0) and snapshot is None:
            text = "its memory was saved to go on later, and its disks alone are not whole"
            raise VirtfleetError(self._goal, text, "Start it and shut it down first.", "refused")

    def _plan_cards(self) -> None:
        there = self._root.findall("devices/interface")
        given = self._wish.networks
        if given is None:
            self._macs = [clone_xml.mac_of(self._uuid, number) for number in range(len(there))]
            # What addresses the source's cards have is the source's: these ask for theirs.
            self._networks = [{"mac": mac, "address": None, "gateway": None, "dns": None} for mac in self._macs]
            return
        self._networks, self._cards = cards_of(self._connection, self._root, given, self._uuid, self._goal)

    def _plan_seed(self) -> None:
        given = self._wish.cloud_init
        if given is None and clone_xml.seed_of(self._root) is None:
            return
        nothing = {"hostname": None, "ssh_keys": None, "user_data": None, "user_data_src": None}
        self._seed = vm_making.seed_files(
            given or nothing, self._networks, instance_id=self._uuid, name=self._wish.name, wanted=self._goal
        )

    def _seed_pool(self) -> libvirt.virStoragePool:
        if self.parts:
            return self.parts[0].pool
        return pools.active_pool(self._connection, "default", self._goal)

    def clear(self) -> None:
        """Remove what an earlier run left that was broken off. The host may still be busy with a copy for it."""
        vm_making.drop(self._connection, self._uuid)
        left = vms.leftovers(self._connection, self._wish.name, self._uuid)
        # The marker goes last: until then another run knows that this is not whole.
        for each in sorted(left, key=lambda one: one["name"].endswith(f"-{MARKER}")):
            pool = pools.active_pool(self._connection, each["pool"], self._goal)
            ended = partial(_removed, pool, each["name"])
            wait_for(ended, self._deadline, "the end of a copy that was broken off")

    def make(self, undo: Undo) -> None:
        """Make the volumes and define the machine; what is made is noted in `undo` at once."""
        pool = self._seed_pool()
        marker = f"{self._prefix}{MARKER}"
        undo.add(lambda: volumes.delete(pool, marker))
        volumes.write_text(pool, marker, f"{self._wish.attempt}\n")
        copied = {part.target: self._make_disk(part, undo) for part in self.parts}
        seed_path = None
        if self._seed is not None:
            name = f"{self._prefix}seed.iso"
            undo.add(lambda: volumes.delete(pool, name))
            seed_path = volumes.write_bytes(pool, name, seed.image(self._seed)).path()
        self._take_out_snapshots(copied, undo)
        sources = {part.target: self._finished(part, copied[part.target], undo) for part in self.parts}
        document = build.written(self._document(sources, seed_path))
        vm_making.define(self._connection, self._wish.name, self._uuid, document, undo)
        volumes.delete(pool, marker)

    def start(self) -> Done:
        """Start the clone if that was wanted, and wait for what was asked."""
        wish = self._wish
        domain = vms.find(self._connection, None, self._uuid)
        addresses: list[str] = []
        if wish.state != "present":
            vms.start(domain, paused=wish.state == "paused")
        if wish.state == "running":
            wanted = [nic["address"] for nic in self._networks if nic["address"]]
            addresses = vm_addresses.await_guest(self._connection, domain, wish.wait_for, wanted, self._deadline)
        return Done(True, vms.describe(domain, addresses), None, _shown(wish))

    def _through_file(self, part: Part) -> bool:
        """Whether the bytes of a disk's file are copied, with the snapshots in it."""
        if self._wish.mode == LINKED:
            return True
        return self._wish.snapshot in {each["name"] for each in self._inside} and part.described["format"] == "qcow2"

    def _make_disk(self, part: Part, undo: Undo) -> libvirt.virStorageVol:
        mode, pool = self._wish.mode, part.pool
        draft = mode == FULL and self._through_file(part)
        name = f"{part.name}.part" if draft else part.name
        undo.add(lambda: volumes.delete(pool, name))
        if mode == FRESH:
            size, kind = part.described["capacity_bytes"], part.described["format"]
            if part.image is not None:
                return volumes.make_overlay(pool, name, part.image, size)
            return volumes.make_empty(pool, name, size, kind)
        before = volume_copy.stamp(part.origin)
        if self._through_file(part):
            made = volume_copy.copy_file(part.origin, pool, name, self._deadline)
        else:
            made = volumes.make_copy(pool, name, part.origin, None, part.described["format"])
        if volume_copy.stamp(part.origin) != before:
            text = f"its disk {part.target} was written to while it was copied"
            raise VirtfleetError(self._goal, text, "Keep it stopped meanwhile, and try again.", "refused")
        if self._deadline.passed:
            text = f"copying its disks took longer than {self._deadline.seconds:g} s"
            raise VirtfleetError(self._goal, text, "Allow more time with the option timeout.", "timeout")
        return made

    def _take_out_snapshots(self, copied: dict[str, libvirt.virStorageVol], undo: Undo) -> None:
        """Define the machine for a moment, so that libvirt works on the snapshots in its files."""
        through_file = self._wish.mode != FRESH and any(self._through_file(part) for part in self.parts)
        if not self._inside or not through_file:
            return
        document = build.written(self._document({target: made.path() for target, made in copied.items()}, None))
        domain = vm_making.define(self._connection, self._wish.name, self._uuid, document, undo)
        vm_clone_snapshots.take_out(domain, self._inside, self._wish.snapshot, self._deadline)
        vms.undefine(domain)

    def _finished(self, part: Part, made: libvirt.virStorageVol, undo: Undo) -> str:
        """Return the path of the finished disk; what was copied with an image below becomes independent of it."""
        if made.name() == part.name:
            return str(made.path())
        undo.add(lambda: volumes.delete(part.pool, part.name))
        finished = volumes.make_copy(part.pool, part.name, made, None, part.described["format"])
        volumes.delete(part.pool, made.name())
        return str(finished.path())

    def _document(self, sources: dict[str, str], seed_path: str | None) -> ET.Element:
        own = [{"pool": part.pool.name(), "name": part.name} for part in self.parts]
        kept: dict[str, Any] = {**self._wish.metadata, CLONED_FROM: self._source.UUIDString()}
        if self._seed is not None:
            own.append({"pool": self._seed_pool().name(), "name": f"{self._prefix}seed.iso"})
            fixed = [nic["address"].partition("/")[0] for nic in self._networks if nic["address"]]
            kept |= {"fixed_addresses": fixed} if fixed else {}
        new = clone_xml.Identity(
            name=self._wish.name,
            uuid=self._uuid,
            metadata={**kept, "made_volumes": own},
            sources=sources,
            cards=self._cards,
            macs=self._macs,
            seed=seed_path,
        )
        return clone_xml.clone(self._root, new)


def _removed(pool: libvirt.virStoragePool, name: str) -> bool:
    try:
        volumes.delete(pool, name)
    except VirtfleetError as error:
        if error.code != "refused":
            raise
        return False  # still being written
    return True
