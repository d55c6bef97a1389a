# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a machine into a wanted state: what it takes, doing it, and undoing it when it fails half-way."""

from __future__ import annotations

import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import build
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import Disk, Nic, VmSpec
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

_KIB = 1024


@dataclass
class Wanted:
    """One machine as the module's options give it, checked."""

    options: dict[str, Any]
    name: str
    uuid: str | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Wanted:
        """Check one set of options. Raises VirtfleetError `invalid`."""
        name, uuid = options.get("name"), options.get("uuid")
        if name is None and uuid is None:
            raise VirtfleetError("find a machine", "neither a name nor a uuid is given", "Give one of them.", "invalid")
        if uuid is not None:
            try:
                uuid = str(uuids.UUID(uuid))
            except ValueError:
                hint = "Write it like 5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c11, or leave it out."
                raise VirtfleetError("use a UUID", "it is not one", hint, "invalid") from None
        return cls(options, check_name(name, "machine") if name is not None else "", uuid)

    @property
    def state(self) -> str:
        """The wanted state."""
        return str(self.options["state"])

    @property
    def attempt(self) -> int:
        """The number of the attempt, 0 when nobody counts."""
        attempt = (self.options.get("metadata") or {}).get("attempt")
        return attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 0


@dataclass
class Done:
    """What was (or in check mode would be) done with one machine."""

    changed: bool
    vm: dict[str, Any] | None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    differences: list[dict[str, Any]] = field(default_factory=list)


def bring(connection: libvirt.virConnect, wanted: Wanted, *, check: bool, deadline: Deadline) -> Done:
    """Bring one machine into its wanted state.

    Raises VirtfleetError; its `values["cleaned"]` says whether all that was made was removed again.
    """
    if wanted.state == "absent":
        # Another machine of that name is not the one that is to go.
        name = wanted.name if wanted.uuid is None else None
        return _remove(connection, wanted, vms.find(connection, name, wanted.uuid), check=check)
    domain = vms.find(connection, wanted.name or None, wanted.uuid)
    if domain is None:
        return _make(connection, wanted, check=check, deadline=deadline)
    return _change(connection, wanted, domain, check=check, deadline=deadline)


def _shown(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what of a machine a diff shows."""
    return None if facts is None else {"name": facts["name"], "state": facts["state"]}


def _change(
    connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain, *, check: bool, deadline: Deadline
) -> Done:
    facts = vms.describe(domain)
    _refuse_older(wanted, facts)
    options, state, goal = wanted.options, facts["state"], wanted.state
    todo = _step(connection, wanted, domain, state, deadline)
    after_state = {"restarted": "running", "present": state}.get(goal, goal)
    changed = todo is not None
    differences = _differences(wanted, facts)
    before, after = _shown(facts), {"name": facts["name"], "state": after_state}
    if check:
        return Done(changed, {**facts, "state": after_state}, before, after, differences)
    if todo is not None:
        todo()
    addresses: list[str] = []
    if after_state == "running" and options["wait_for"] in ("address", "agent"):
        addresses = vms.await_guest(connection, domain, options["wait_for"], _fixed(options), deadline)
    return Done(changed, vms.describe(domain, addresses), before, after, differences)


def _step(
    connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain, state: str, deadline: Deadline
) -> Callable[[], None] | None:
    """Return what leads from a state to the wanted one; None when that is it already."""
    goal = wanted.state
    obeying = {"grace": wanted.options["grace"], "force": wanted.options["force"], "deadline": deadline}
    steps: dict[tuple[str, str], Callable[[], None]] = {
        ("off", "running"): partial(vms.start, domain),
        ("off", "restarted"): partial(vms.start, domain),
        ("off", "paused"): partial(vms.start, domain, paused=True),
        ("running", "paused"): partial(vms.pause, domain),
        ("running", "stopped"): partial(vms.stop, connection, domain, **obeying),
        ("running", "restarted"): partial(vms.restart, connection, domain, **obeying),
        ("paused", "running"): partial(vms.resume, domain),
        ("paused", "stopped"): partial(vms.stop, connection, domain, **obeying),
    }
    if (state, goal) == ("paused", "restarted"):
        raise VirtfleetError(f"reboot machine {domain.name()}", "it is paused", "Resume it first.", "refused")
    return steps.get(("off" if state in ("stopped", "crashed") else state, goal))


def _refuse_older(wanted: Wanted, facts: dict[str, Any]) -> None:
    kept = facts["metadata"].get("attempt")
    if wanted.attempt and isinstance(kept, int) and wanted.attempt < kept:
        raise VirtfleetError(
            f"work on machine {facts['name']}",
            f"attempt {kept} has it already, this is attempt {wanted.attempt}",
            "Let the newer run finish; this one is out of date.",
            "refused",
        )


def _differences(wanted: Wanted, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return in what an existing machine is not as asked for; it is left so."""
    options, found = wanted.options, []
    if options["vcpus"] is not None and options["vcpus"] != facts["vcpus"]:
        found.append({"what": "vcpus", "is": facts["vcpus"], "wanted": options["vcpus"]})
    if options["memory"] is not None:
        memory = _memory(options["memory"])
        if memory != facts["memory_bytes"]:
            found.append({"what": "memory_bytes", "is": facts["memory_bytes"], "wanted": memory})
    if options["networks"] is not None:
        is_, should = [nic["source"] for nic in facts["networks"]], [_source(nic)[1] for nic in options["networks"]]
        if is_ != should:
            found.append({"what": "networks", "is": is_, "wanted": should})
    return found


def _memory(text: str) -> int:
    size = parse_size(text, "the memory of a machine")
    return -(-size // _KIB) * _KIB


def _source(nic: dict[str, Any]) -> tuple[str, str]:
    if (nic["bridge"] is None) == (nic["network"] is None):
        hint = "Give each of networks a bridge or a network."
        raise VirtfleetError("join a machine to a network", "it needs just one of bridge and network", hint, "invalid")
    return ("bridge", nic["bridge"]) if nic["bridge"] is not None else ("network", nic["network"])


def _fixed(options: dict[str, Any]) -> list[str]:
    return [nic["address"] for nic in options["networks"] or [] if nic["address"]]


def _remove(connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain | None, *, check: bool) -> Done:
    listed = list(wanted.options["delete_volumes"] or [])
    facts = vms.describe(domain) if domain is not None else None
    if wanted.options["delete_made_volumes"]:
        listed += facts["made_volumes"] if facts else []
        name, uuid = (facts["name"], facts["uuid"]) if facts else (wanted.name, wanted.uuid)
        if name and uuid:
            listed += vms.leftovers(connection, name, uuid)
    unique = [dict(each) for each in {(each["pool"], each["name"]): each for each in listed}.values()]
    going = vms.removable(connection, facts["name"] if facts else None, unique)
    changed = domain is not None or bool(going)
    before = None
    if changed:
        before = {**(_shown(facts) or {}), "volumes": [name for _pool, name in going]}
    if not check and changed:
        if domain is not None:
            vms.destroy(domain)
            vms.undefine(domain)
        for pool, name in going:
            volumes.delete(pool, name)
    gone = {"name": facts["name"] if facts else wanted.name, "uuid": facts["uuid"] if facts else wanted.uuid}
    return Done(changed, {**gone, "state": "absent", "deleted_volumes": [name for _pool, name in going]}, before, None)


class _Undo:
    """What was made so far, so that it can be taken back in reverse order."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def add(self, step: Callable[[], Any]) -> None:
        self._steps.append(step)

    def run(self) -> bool:
        """Take everything back; False when some of it could not be."""
        cleaned = True
        for step in reversed(self._steps):
            try:
                step()
            except (VirtfleetError, libvirtError):
                cleaned = False
        return cleaned


def _make(connection: libvirt.virConnect, wanted: Wanted, *, check: bool, deadline: Deadline) -> Done:
    options, state = wanted.options, wanted.state
    if not wanted.name or options["vcpus"] is None or options["memory"] is None:
        missing = "no machine is there, and to make one name, vcpus and memory are needed"
        named = wanted.name or wanted.uuid
        raise VirtfleetError(f"make machine {named}", missing, "Give them.", "not_found", values={"cleaned": True})
    if state in ("stopped", "restarted"):
        state = "present" if state == "stopped" else "running"
    after_state = {"present": "stopped"}.get(state, state)
    after = {"name": wanted.name, "state": after_state}
    uuid = wanted.uuid or str(uuids.uuid4())
    undo = _Undo()
    try:
        plan = _Plan(connection, wanted, uuid)
        if check:
            plan.look()
            return Done(True, {"name": wanted.name, "uuid": wanted.uuid, "state": after_state}, None, after)
        plan.make(undo)
        document = build(plan.spec)
        try:
            domain = connection.defineXML(document)
        except libvirtError as error:
            raise translate(error, f"define machine {wanted.name}") from error
        undo.add(lambda: vms.undefine(domain))
        undo.add(lambda: vms.destroy(domain))
        if state != "present":
            vms.start(domain, paused=state == "paused")
        addresses: list[str] = []
        if state == "running":
            addresses = vms.await_guest(connection, domain, options["wait_for"], _fixed(options), deadline)
        return Done(True, vms.describe(domain, addresses), None, after)
    except VirtfleetError as error:
        error.values["cleaned"] = undo.run()
        raise
    except libvirtError as error:
        failed = translate(error, f"make machine {wanted.name}")
        failed.values["cleaned"] = undo.run()
        raise failed from error
    except BaseException:
        undo.run()
        raise


class _Plan:
    """The parts of a new machine: looked up, then made."""

    def __init__(self, connection: libvirt.virConnect, wanted: Wanted, uuid: str) -> None:
        self._connection = connection
        self._wanted = wanted
        self._options = wanted.options
        self._uuid = uuid
        self._goal = f"make machine {wanted.name}"
        self._made: list[dict[str, str]] = []
        self._disks: list[Disk] = []

    def look(self) -> None:
        """Check all that can be checked without making anything."""
        for number, disk in enumerate(self._options["disks"] or []):
            pool = pools.active_pool(self._connection, disk["pool"], self._goal)
            self._check_disk(pool, disk, self._disk_name(number, disk))
        self._nics()
        self._seed_files()

    def _disk_name(self, number: int, disk: dict[str, Any]) -> str:
        if disk["name"] is not None:
            return check_name(disk["name"], "volume")
        label = "root" if number == 0 else f"disk{number}"
        return f"{vms.volume_prefix(self._wanted.name, self._uuid)}{label}"

    def _check_disk(
        self, pool: libvirt.virStoragePool, disk: dict[str, Any], name: str
    ) -> libvirt.virStorageVol | None:
        """Return the volume that is there already, if any may be. Raises VirtfleetError."""
        there = volumes.find(pool, name)
        if disk["image"] is None and disk["size"] is None:
            if there is None:
                hint = "Give it a size or an image to have it made, or the name of a volume that is there."
                raise VirtfleetError(self._goal, f"pool {pool.name()} has no volume {name}", hint, "not_found")
            users = volumes.machines_using(self._connection, {there.path()})
            if users:
                text = f"volume {name} is a disk of {', '.join(users[:5])}"
                raise VirtfleetError(self._goal, text, "Detach it there first.", "refused")
            return there
        if disk["image"] is not None:
            images.require(pool, disk["image"], self._goal)
        if there is not None and not self._is_leftover(name):
            text = f"pool {pool.name()} has a volume {name} already, and it was not made for this machine"
            raise VirtfleetError(self._goal, text, "Choose another name for the disk.", "already_exists")
        return there

    def _is_leftover(self, name: str) -> bool:
        """Tell whether only an earlier attempt at this very machine can have made it: the name holds the UUID."""
        return name.startswith(vms.volume_prefix(self._wanted.name, self._uuid))

    def make(self, undo: _Undo) -> None:
        """Make the volumes; what is made is noted in `undo` at once."""
        nics, files = self._nics(), self._seed_files()
        for number, disk in enumerate(self._options["disks"] or []):
            self._make_disk(number, disk, undo)
        if files:
            self._make_seed(files, undo)
        self._cards = nics

    def _make_disk(self, number: int, disk: dict[str, Any], undo: _Undo) -> None:
        pool = pools.active_pool(self._connection, disk["pool"], self._goal)
        name = self._disk_name(number, disk)
        volume = self._check_disk(pool, disk, name)
        if disk["image"] is not None or disk["size"] is not None:
            self._clear(pool, volume, name)
            undo.add(lambda: volumes.delete(pool, name))
            size = parse_size(disk["size"], "the size of a disk") if disk["size"] is not None else None
            if disk["image"] is not None:
                base = images.require(pool, disk["image"], self._goal)
                volume = volumes.make_overlay(pool, name, base, size)
            else:
                volume = volumes.make_empty(pool, name, size or 0, disk["format"] or "qcow2")
            self._made.append({"pool": pool.name(), "name": name})
        described = volumes.describe(volume)
        self._disks.append(
            Disk(described["path"], described["format"], _is_block(volume), disk["serial"] or _serial(number))
        )

    def _clear(self, pool: libvirt.virStoragePool, volume: libvirt.virStorageVol | None, name: str) -> None:
        """Remove what an earlier attempt left half-made, in libvirt's list or only in the folder behind it."""
        if volume is None:
            return
        volumes.check_removal(self._connection, pool, volume)
        volumes.delete(pool, name)

    def _make_seed(self, files: dict[str, bytes], undo: _Undo) -> None:
        first = (self._options["disks"] or [{}])[0]
        pool = pools.active_pool(self._connection, first.get("pool") or "default", self._goal)
        name = f"{vms.volume_prefix(self._wanted.name, self._uuid)}seed.iso"
        self._clear(pool, volumes.find(pool, name), name)
        undo.add(lambda: volumes.delete(pool, name))
        volume = volumes.write_bytes(pool, name, seed.image(files))
        self._made.append({"pool": pool.name(), "name": name})
        self._disks.append(Disk(volume.path(), "raw", _is_block(volume), "seed", read_only=True))

    def _seed_files(self) -> dict[str, bytes]:
        given = self._options["cloud_init"]
        if given is None:
            return {}
        user_data = given["user_data"]
        if given["user_data_src"] is not None:
            user_data = _read(given["user_data_src"], self._goal)
        cards = []
        for nic in self._options["networks"] or []:
            if nic["mac"] is None:
                hint = "Give each of networks its mac, so that cloud-init can tell the cards apart."
                raise VirtfleetError(self._goal, "cloud_init needs the MAC of each card", hint, "invalid")
            cards.append(seed.Nic(nic["mac"], nic["address"], nic["gateway"], tuple(nic["dns"] or ())))
        return seed.files(
            instance_id=self._uuid,
            hostname=given["hostname"] or self._wanted.name,
            ssh_keys=given["ssh_keys"] or [],
            user_data=user_data,
            nics=cards,
        )

    def _nics(self) -> tuple[Nic, ...]:
        cards = []
        for nic in self._options["networks"] or []:
            kind, source = _source(nic)
            cards.append(Nic(kind, check_name(source, kind), nic["mac"], nic["model"] or "virtio"))
        return tuple(cards)

    @property
    def spec(self) -> VmSpec:
        """The machine, once its parts are made."""
        options = self._options
        arch, virt_type = _virtualization(self._connection, options["accel"], self._goal)
        kept = {**(options["metadata"] or {}), "made_volumes": self._made}
        return VmSpec(
            name=self._wanted.name,
            uuid=self._uuid,
            vcpus=options["vcpus"],
            memory_bytes=_memory(options["memory"]),
            virt_type=virt_type,
            arch=arch,
            machine=options["machine"],
            cpu_model=options["cpu_model"],
            disks=tuple(self._disks),
            nics=self._cards,
            metadata=kept,
        )


def _is_block(volume: libvirt.virStorageVol) -> bool:
    return bool(volume.info()[0] == libvirt.VIR_STORAGE_VOL_BLOCK)


def _serial(number: int) -> str:
    return "root" if number == 0 else f"disk{number}"


def _read(path: str, wanted: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "user_data_src is a file where the module runs."
        raise VirtfleetError(wanted, f"its user data cannot be read: {reason}", hint, "not_found") from None


def _virtualization(connection: libvirt.virConnect, accel: str, wanted: str) -> tuple[str, str]:
    """Return the host's architecture and kvm or qemu. Raises VirtfleetError `refused` when KVM is asked for in vain."""
    root = ET.fromstring(connection.getCapabilities())
    arch = root.findtext("host/cpu/arch") or "x86_64"
    types = [
        domain.get("type")
        for guest in root.iterfind("guest")
        if guest.findtext("os_type") == "hvm"
        for each in guest.iterfind("arch")
        if each.get("name") == arch
        for domain in each.iterfind("domain")
    ]
    if accel == "kvm" and "kvm" not in types:
        hint = "Use accel auto or tcg, or give the host /dev/kvm."
        raise VirtfleetError(wanted, "the host has no KVM", hint, "refused")
    if accel != "tcg" and "kvm" in types:
        return arch, "kvm"
    # libvirt's test driver has a type of its own.
    return arch, "qemu" if "qemu" in types or not types else str(types[0])
