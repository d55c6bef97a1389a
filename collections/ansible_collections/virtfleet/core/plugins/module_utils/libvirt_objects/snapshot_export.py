# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the disks held at a snapshot, brought out as volumes of their own that need neither machine nor snapshot.

An external snapshot lies in files that nobody writes to any more: they are copied whole, also while the machine runs.
An internal one lies inside the file that the machine writes to. That file is copied while the machine is stopped, and
libvirt, which goes back to snapshots of machines only, goes back to it in the copy by a machine of a moment.

While it is made, a small volume `NAME.part` says so: a run that finds it begins anew. `NAME.json` says that all of it
is there.
"""

from __future__ import annotations

import contextlib
import json
import uuid as uuids
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import build, devices
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import clone as clone_xml
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import (
    vm_clone_snapshots,
    vm_making,
    volume_copy,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.snapshot import INTERNAL
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_undo import Undo
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_NOTE_BYTES = 16384


@dataclass(frozen=True)
class _Part:
    """A disk of the snapshot, the volume that holds it, and the volume that it becomes."""

    target: str
    origin: libvirt.virStorageVol
    capacity_bytes: int
    name: str


class Export:
    """One snapshot of a machine and the volumes of a pool that its disks become."""

    def __init__(
        self, domain: libvirt.virDomain, there: list[dict[str, Any]], snapshot: str, pool: libvirt.virStoragePool
    ) -> None:
        self.goal = f"export snapshot {snapshot} of machine {domain.name()}"
        found = next((each for each in there if each["name"] == snapshot), None)
        if found is None:
            known = ", ".join(each["name"] for each in there) or "none at all"
            raise VirtfleetError(self.goal, "there is no such snapshot", f"It has {known}.", "not_found")
        self._domain = domain
        self._pool = pool
        self._there = [each for each in there if each["mode"] == INTERNAL]
        self._told = found
        self._internal = found["mode"] == INTERNAL
        self._name = ""
        self._parts: list[_Part] = []

    def look(self, name: str | None) -> bool:
        """Check all that can be checked without making anything; tell whether it is there already.

        `name` is how the names of the volumes begin. Raises VirtfleetError.
        """
        own = volume_prefix(self._domain.name(), self._domain.UUIDString())
        self._name = check_name(name or f"{own}{self._told['name']}", "volume")
        self._parts = [self._part(disk) for disk in self._told["disks"]]
        if not self._parts:
            raise VirtfleetError(self.goal, "it has no disk", "Choose another one.", "refused")
        begun = self._find("part") is not None
        note = None if begun else self._note()
        if note is not None and note != self._mark():
            text = f"pool {self._pool.name()} has an export {self._name} of something else"
            raise VirtfleetError(self.goal, text, "Choose another name for this one.", "already_exists")
        there = [volumes.find(self._pool, part.name) is not None for part in self._parts]
        if note is not None and all(there):
            return True
        if note is None and not begun and any(there):
            text = f"pool {self._pool.name()} has a volume {self._parts[there.index(True)].name} already"
            raise VirtfleetError(
                self.goal, text, "Choose another name, or delete it if nobody needs it.", "already_exists"
            )
        self._refuse_in_use()
        needed = sum(int(volumes.describe(part.origin)["allocation_bytes"]) for part in self._parts)
        images.check_room(self._pool, needed * (2 if self._internal else 1), self.goal)
        return False

    def shown(self) -> list[dict[str, Any]]:
        """Return where each disk of the snapshot is, or would be."""
        return [
            {"target": part.target, "pool": self._pool.name(), "volume": part.name, "size_bytes": part.capacity_bytes}
            for part in self._parts
        ]

    def make(self, deadline: Deadline) -> None:
        """Make the volumes. When that fails, nothing is left of them. Raises VirtfleetError."""
        self._clear()
        undo = Undo()
        try:
            undo.add(lambda: volumes.delete(self._pool, f"{self._name}.part"))
            volumes.write_text(self._pool, f"{self._name}.part", "")
            origins = self._brought_back(undo, deadline) if self._internal else {}
            for part in self._parts:
                undo.add(partial(volumes.delete, self._pool, part.name))
                origin = origins.get(part.target, part.origin)
                copy = partial(volumes.make_copy, self._pool, part.name, origin, None, "qcow2")
                bounded(copy, deadline, self.goal)
            for target in origins:
                volumes.delete(self._pool, self._draft(target))
            volumes.write_text(self._pool, f"{self._name}.json", json.dumps(self._mark()))
            volumes.delete(self._pool, f"{self._name}.part")
        except VirtfleetError as error:
            undo.explain(error)
            raise
        except libvirtError as error:
            failed = translate(error, self.goal)
            undo.explain(failed)
            raise failed from error
        except BaseException:
            undo.run()
            raise

    def _part(self, disk: dict[str, Any]) -> _Part:
        path, target = str(disk["path"]), str(disk["target"])
        try:
            origin = self._domain.connect().storageVolLookupByPath(path)
        except libvirtError as error:
            if code_of(error) != "not_found":
                raise translate(error, self.goal) from error
            text = f"what its disk {target} held lies in {path}, which is no volume of an active pool"
            raise VirtfleetError(self.goal, text, "Make a pool of that folder with module pool.", "refused") from None
        return _Part(target, origin, volumes.describe(origin)["capacity_bytes"], f"{self._name}-{target}.qcow2")

    def _refuse_in_use(self) -> None:
        if self._internal and self._domain.isActive():
            text = (
                f"the machine is {vms.state_of(self._domain)}, and the snapshot lies inside the files that it writes to"
            )
            hint = "Stop the machine first; external snapshots can be exported while it runs."
            raise VirtfleetError(self.goal, text, hint, "refused")

    def _mark(self) -> dict[str, Any]:
        told = {key: self._told[key] for key in ("name", "created_at", "mode")}
        return {"uuid": self._domain.UUIDString(), "vm": self._domain.name(), "snapshot": told, "disks": self.shown()}

    def _note(self) -> dict[str, Any] | None:
        note = self._find("json")
        if note is None:
            return None
        with contextlib.suppress(ValueError):
            return dict(json.loads(volumes.read_text(note, _NOTE_BYTES)))
        return {}

    def _find(self, suffix: str) -> libvirt.virStorageVol | None:
        return volumes.find(self._pool, f"{self._name}.{suffix}")

    def _draft(self, target: str) -> str:
        return f"{self._name}-{target}.draft"

    @property
    def _uuid(self) -> str:
        """The UUID of the machine of a moment: always the same, so that the next run finds what is left of it."""
        return str(uuids.uuid5(uuids.UUID(self._domain.UUIDString()), f"{self._pool.name()}/{self._name}"))

    def _clear(self) -> None:
        """Remove what an earlier run left that was broken off, or whose volumes were deleted since."""
        vm_making.drop(self._domain.connect(), self._uuid)
        for part in self._parts:
            volumes.delete(self._pool, self._draft(part.target))
            volumes.delete(self._pool, part.name)
        for suffix in ("json", "part"):
            volumes.delete(self._pool, f"{self._name}.{suffix}")

    def _brought_back(self, undo: Undo, deadline: Deadline) -> dict[str, libvirt.virStorageVol]:
        """Return copies of the files, by target, that hold what the disks held then, and no snapshots any more."""
        copies = {}
        for part in self._parts:
            name = self._draft(part.target)
            undo.add(partial(volumes.delete, self._pool, name))
            before = volume_copy.stamp(part.origin)
            copies[part.target] = volume_copy.copy_file(part.origin, self._pool, name, deadline)
            if volume_copy.stamp(part.origin) != before:
                text = f"its disk {part.target} was written to while it was copied"
                raise VirtfleetError(self.goal, text, "Keep the machine stopped meanwhile, and try again.", "refused")
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        root = ET.fromstring(self._domain.XMLDesc(flags))
        parent = root.find("devices")
        for disk in root.findall("devices/disk"):
            if parent is not None and devices.target_of(disk) not in copies:
                parent.remove(disk)
        sources = {target: copy.path() for target, copy in copies.items()}
        name = f"{self._name}.export"
        document = build.written(clone_xml.clone(root, clone_xml.Identity(name, self._uuid, {}, sources, cards=())))
        moment = vm_making.define(self._domain.connect(), name, self._uuid, document, undo)
        vm_clone_snapshots.take_out(moment, self._there, self._told["name"], deadline)
        vms.undefine(moment)
        return copies
