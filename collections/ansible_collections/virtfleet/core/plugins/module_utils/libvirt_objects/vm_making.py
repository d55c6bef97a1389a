# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a machine with its volumes and its seed, and taking all of it back when that fails half-way."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices, patch
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import build
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import Disk, Nic, VmSpec
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import (
    capabilities,
    nwfilter,
    vm_addresses,
    vm_settings,
    volume_users,
)
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import image as images
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import pool as pools
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_undo import Undo
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import (
    NO_FILTER,
    Done,
    Wanted,
    source_of,
)
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_disk_size
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

MAX_USER_DATA_BYTES = 16 * 2**20
"""cloud-init's own limits are far lower; a device or a pipe given by mistake must not fill the memory."""
_NEW_QCOW2_BYTES = 256 * 2**10
_NEW_RAW_BYTES = 4096


def make(connection: libvirt.virConnect, wanted: Wanted, *, check: bool, deadline: Deadline) -> Done:
    """Make a machine that is not there, or say in check mode what would be.

    Raises VirtfleetError; its `values["cleaned"]` says whether all that was made was removed again.
    """
    options, state = wanted.options, wanted.state
    if not wanted.name or options["vcpus"] is None or options["memory"] is None:
        missing = "no machine is there, and to make one name, vcpus and memory are needed"
        named = wanted.name or wanted.uuid
        raise VirtfleetError(f"make machine {named}", missing, "Give them.", "not_found", values={"cleaned": True})
    if state == "saved":
        text = "it is not there, so there is no memory to save"
        raise VirtfleetError(f"save machine {wanted.name}", text, "Make it first.", "not_found", {"cleaned": True})
    if state in ("stopped", "restarted"):
        state = "present" if state == "stopped" else "running"
    after_state = "stopped" if state == "present" else state
    after = {"name": wanted.name, "state": after_state}
    uuid = wanted.uuid or str(uuids.uuid4())
    undo = Undo()
    try:
        plan = _Plan(connection, wanted, uuid)
        if check:
            plan.look()
            return Done(True, {"name": wanted.name, "uuid": wanted.uuid, "state": after_state}, None, after)
        plan.make(undo)
        # What was patched may be nonsense: libvirt drops what it does not know, unless it is told to check.
        validate = bool(options["xml_patch"])
        domain = define(connection, wanted.name, uuid, build(plan.spec), undo, validate=validate)
        if options["autostart"]:
            domain.setAutostart(1)
        if state != "present":
            vms.start(domain, paused=state == "paused")
        addresses: list[str] = []
        if state == "running":
            addresses = vm_addresses.await_guest(
                connection, domain, options["wait_for"], wanted.fixed_addresses, deadline
            )
        return Done(True, vms.describe(domain, addresses), None, after)
    except VirtfleetError as error:
        undo.explain(error)
        raise
    except libvirtError as error:
        failed = translate(error, f"make machine {wanted.name}")
        undo.explain(failed)
        raise failed from error
    except BaseException:
        undo.run()
        raise


def define(
    connection: libvirt.virConnect, name: str, uuid: str, document: str, undo: Undo, *, validate: bool = False
) -> libvirt.virDomain:
    """Define a machine, unless another run was quicker: libvirt would replace that one's definition silently."""
    if vms.find(connection, name, uuid) is not None:
        undo.forget()  # the volumes are that run's now: they have the same names
        hint = "Look at that run; this one has left the machine alone."
        raise VirtfleetError(f"make machine {name}", "another run has just made it", hint, "already_exists")
    undo.add(lambda: drop(connection, uuid))
    try:
        return vms.define_new(connection, document, validate=validate)
    except libvirtError as error:
        raise translate(error, f"define machine {name}") from error


def drop(connection: libvirt.virConnect, uuid: str) -> None:
    """Take a machine's definition away, if it is there; its power is cut first."""
    domain = vms.find(connection, None, uuid)
    if domain is not None:
        vms.destroy(domain)
        vms.undefine(domain)


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
        self._cards: tuple[Nic, ...] = ()

    def look(self) -> None:
        """Check all that can be checked without making anything."""
        self._cards = self._nics()
        self._seed_files()
        for number, disk in enumerate(self._options["disks"] or []):
            pool, name = self._pool(disk["pool"]), self._disk_name(number, disk)
            self._check_disk(pool, disk, name)
            self._disks.append(Disk(f"/{name}", disk["format"] or "qcow2", serial=devices.serial_of(disk, number)))
        build(self.spec)

    def make(self, undo: Undo) -> None:
        """Make the volumes; what is made is noted in `undo` at once."""
        self._cards = self._nics()
        files = self._seed_files()
        for number, disk in enumerate(self._options["disks"] or []):
            self._make_disk(number, disk, undo)
        if files:
            self._make_seed(files, undo)

    def _pool(self, name: str) -> libvirt.virStoragePool:
        return pools.active_pool(self._connection, name, self._goal)

    def _disk_name(self, number: int, disk: dict[str, Any]) -> str:
        if disk["name"] is not None:
            return check_name(disk["name"], "volume")
        label = "root" if number == 0 else f"disk{number}"
        return f"{volume_prefix(self._wanted.name, self._uuid)}{label}"

    def _check_disk(
        self, pool: libvirt.virStoragePool, disk: dict[str, Any], name: str
    ) -> tuple[libvirt.virStorageVol | None, libvirt.virStorageVol | None]:
        """Return the volume that is there already, if any may be, and the image to lie over. Raises VirtfleetError."""
        there = volumes.find(pool, name)
        if disk["image"] is None and disk["size"] is None:
            if there is None:
                hint = "Give it a size or an image to have it made, or the name of a volume that is there."
                raise VirtfleetError(self._goal, f"pool {pool.name()} has no volume {name}", hint, "not_found")
            users = volume_users.machines_using(self._connection, {there.path()})
            if users:
                text = f"volume {name} is a disk of {', '.join(users[:5])}"
                raise VirtfleetError(self._goal, text, "Detach it there first.", "refused")
            return there, None
        base = images.require(pool, disk["image"], self._goal) if disk["image"] is not None else None
        if there is not None and not self._is_leftover(name):
            text = f"pool {pool.name()} has a volume {name} already, and it was not made for this machine"
            raise VirtfleetError(self._goal, text, "Choose another name for the disk.", "already_exists")
        if there is not None and not _is_new(there):
            # Kept when an earlier machine of this UUID went, or of a machine on another host that shares the pool.
            text = f"pool {pool.name()} has a volume {name} already, and there are data in it"
            hint = "Attach it as it is (name it, without image and size), or delete it first if nobody needs it."
            raise VirtfleetError(self._goal, text, hint, "already_exists")
        return there, base

    def _is_leftover(self, name: str) -> bool:
        """Tell whether only an earlier attempt at this very machine can have made it: the name holds the UUID."""
        return name.startswith(volume_prefix(self._wanted.name, self._uuid))

    def _make_disk(self, number: int, disk: dict[str, Any], undo: Undo) -> None:
        pool, name = self._pool(disk["pool"]), self._disk_name(number, disk)
        volume, base = self._check_disk(pool, disk, name)
        if disk["image"] is not None or disk["size"] is not None:
            self._clear(pool, volume)
            volume = self._make_volume(pool, name, disk, base, undo)
            self._made.append({"pool": pool.name(), "name": name})
        described = volumes.describe(volume)
        self._disks.append(
            Disk(
                described["path"],
                described["format"],
                is_block(volume),
                devices.serial_of(disk, number),
            )
        )

    def _make_volume(
        self,
        pool: libvirt.virStoragePool,
        name: str,
        disk: dict[str, Any],
        base: libvirt.virStorageVol | None,
        undo: Undo,
    ) -> libvirt.virStorageVol:
        size = parse_disk_size(disk["size"], "the size of a disk") if disk["size"] is not None else None
        undo.add(lambda: volumes.delete(pool, name))
        try:
            if base is not None:
                return volumes.make_overlay(pool, name, base, size)
            return volumes.make_empty(pool, name, size or 0, disk["format"] or "qcow2")
        except VirtfleetError as error:
            if error.code == "already_exists":
                undo.drop_last()  # somebody was quicker: it is theirs
            raise

    def _clear(self, pool: libvirt.virStoragePool, volume: libvirt.virStorageVol | None) -> None:
        """Remove what an earlier attempt left."""
        if volume is not None:
            volume_users.check_removal(self._connection, pool, volume)
            volumes.delete(pool, volume.name())

    def _make_seed(self, files: dict[str, bytes], undo: Undo) -> None:
        first = (self._options["disks"] or [{}])[0]
        pool = self._pool(first.get("pool") or "default")
        name = f"{volume_prefix(self._wanted.name, self._uuid)}seed.iso"
        self._clear(pool, volumes.find(pool, name))
        undo.add(lambda: volumes.delete(pool, name))
        volume = volumes.write_bytes(pool, name, seed.image(files))
        self._made.append({"pool": pool.name(), "name": name})
        self._disks.append(Disk(volume.path(), "raw", is_block(volume), "seed", read_only=True))

    def _seed_files(self) -> dict[str, bytes]:
        given = self._options["cloud_init"]
        if given is None:
            return {}
        networks = self._options["networks"] or []
        return seed_files(given, networks, instance_id=self._uuid, name=self._wanted.name, wanted=self._goal)

    def _nics(self) -> tuple[Nic, ...]:
        cards = []
        for nic in self._options["networks"] or []:
            kind, source = source_of(nic)
            guard = None if nic["filter"] == NO_FILTER else nic["filter"]
            if guard is not None:
                nwfilter.require(self._connection, guard, self._goal)
            cards.append(Nic(kind, check_name(source, kind), nic["mac"], nic["model"] or "virtio", guard))
        return tuple(cards)

    @property
    def _addresses(self) -> dict[str, list[str]]:
        """What the seed gives the machine, so that others find it before anything inside it answers."""
        fixed = self._wanted.fixed_addresses if self._options["cloud_init"] is not None else []
        return {"fixed_addresses": [each.partition("/")[0] for each in fixed]} if fixed else {}

    @property
    def spec(self) -> VmSpec:
        """The machine, once its parts are there."""
        options = self._options
        arch, virt_type = capabilities.virtualization(self._connection, options["accel"], self._goal)
        given = vm_settings.settings_of(options)
        further = {name: given[name] for name in given if name not in ("accel", "machine", "cpu_model", "metadata")}
        if given.get("tpm"):
            capabilities.require_tpm(self._connection, self._wanted.name)
        return VmSpec(
            name=self._wanted.name,
            uuid=self._uuid,
            vcpus=options["vcpus"],
            memory_bytes=self._wanted.memory_bytes or 0,
            virt_type=virt_type,
            arch=arch,
            machine=options["machine"],
            cpu_model=options["cpu_model"],
            disks=tuple(self._disks),
            nics=self._cards,
            metadata={**(options["metadata"] or {}), "made_volumes": self._made, **self._addresses},
            settings=vm_settings.complete(further, {**vm_settings.NOTHING, "writable_disks": len(self._disks)}),
            patch=tuple(patch.steps(options["xml_patch"] or [])),
        )


def seed_files(
    given: dict[str, Any], networks: Sequence[dict[str, Any]], *, instance_id: str, name: str, wanted: str
) -> dict[str, bytes]:
    """Return the files of a machine's seed, from the options `cloud_init` and `networks`. Raises VirtfleetError."""
    user_data = given["user_data"]
    if given["user_data_src"] is not None:
        user_data = _read(given["user_data_src"], wanted)
    cards = []
    for nic in networks:
        if nic["mac"] is None:
            hint = "Give each of networks its mac, so that cloud-init can tell the cards apart."
            raise VirtfleetError(wanted, "cloud_init needs the MAC of each card", hint, "invalid")
        cards.append(seed.Nic(nic["mac"], nic["address"], nic["gateway"], tuple(nic["dns"] or ())))
    return seed.files(
        instance_id=instance_id,
        hostname=given["hostname"] or name,
        ssh_keys=given["ssh_keys"] or [],
        user_data=user_data,
        nics=cards,
    )


def _is_new(volume: libvirt.virStorageVol) -> bool:
    """Tell whether nothing was ever written into a volume, as far as its size on disk tells; False in doubt.

    A new qcow2 file has its header, a reference table and block, and a first level table of 8 bytes for each 512 MiB.
    """
    described = volumes.describe(volume)
    limit = _NEW_QCOW2_BYTES + described["capacity_bytes"] // 2**26
    return bool(described["allocation_bytes"] <= (limit if described["format"] == "qcow2" else _NEW_RAW_BYTES))


def is_block(volume: libvirt.virStorageVol) -> bool:
    """Tell whether a volume is a block device."""
    return bool(volume.info()[0] == libvirt.VIR_STORAGE_VOL_BLOCK)


def _read(path: str, wanted: str) -> str:
    hint = "user_data_src is a file where the module runs."
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_USER_DATA_BYTES + 1)
        text = data.decode()
    except OSError as error:
        text = f"its user data cannot be read: {error.strerror}"
        raise VirtfleetError(wanted, text, hint, "not_found") from None
    except ValueError:
        raise VirtfleetError(wanted, "its user data cannot be read: no UTF-8 text", hint, "invalid") from None
    if len(data) > MAX_USER_DATA_BYTES:
        raise VirtfleetError(wanted, "its user data have more than 16 MiB", hint, "invalid")
    return text
