# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines: found, described, started, stopped, removed. Making one is `vm_making`'s."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded, domain_events
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import read
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.names import volume_prefix
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

ASK_AGAIN_SECONDS = 5.0
"""A machine that is still booting hears no power button: it is pressed again."""
TPM_TRIES = 5
"""How often it is tried to run a machine whose TPM is late."""
_OWN_VOLUME = re.compile(r"(root|disk[0-9]+)(\.part)?|seed\.iso|clone\.part")
_STATES = {1: "running", 2: "running", 3: "paused", 4: "running", 5: "stopped", 6: "crashed", 7: "paused"}


def find(connection: libvirt.virConnect, name: str | None, uuid: str | None) -> libvirt.virDomain | None:
    """Return the machine of this UUID, or of this name when no UUID is given; None when there is none.

    Raises VirtfleetError `already_exists` when the name belongs to a machine with another UUID: it is somebody else's.
    """
    if uuid is not None:
        found = _look_up(connection.lookupByUUIDString, uuid, uuid)
        if found is not None or name is None:
            return found
    found = _look_up(connection.lookupByName, name or "", name or "")
    if found is not None and uuid is not None:
        raise VirtfleetError(
            f"work on machine {name} ({uuid})",
            f"the host has a machine of that name with another UUID, {found.UUIDString()}",
            "Choose another name; the other machine is left alone.",
            "already_exists",
        )
    return found


def missing(wanted: str, name: str | None, uuid: str | None) -> VirtfleetError:
    """Return what to raise where `find` has found nothing, and nothing can be done without the machine."""
    hint = "Name one that is there; module vm_info lists them."
    return VirtfleetError(wanted, f"there is no machine {name or uuid}", hint, "not_found")


def _look_up(ask: Callable[[str], libvirt.virDomain], key: str, shown: str) -> libvirt.virDomain | None:
    try:
        return ask(key)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up machine {shown}") from error


def state_of(domain: libvirt.virDomain) -> str:
    """Return running, paused, stopped or crashed."""
    return _STATES.get(domain.state()[0], "unknown")


def describe(domain: libvirt.virDomain, addresses: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a machine is and has, and its state."""
    try:
        facts = read.read(domain.XMLDesc(0))
        return {**facts, "state": state_of(domain), "addresses": list(addresses)}
    except libvirtError as error:
        raise translate(error, "describe a machine") from error


def written_disks(machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return those of a described machine's disks that it writes to."""
    return [disk for disk in machine["disks"] if disk["source"] and not disk["read_only"] and disk["device"] == "disk"]


@dataclass(frozen=True)
class Seen:
    """A machine as one reading of its host has found it."""

    domain: libvirt.virDomain
    document: ET.Element
    state: str

    def facts(self) -> dict[str, Any]:
        """Return what `describe` does, without addresses."""
        return {**read.of(self.document), "state": self.state, "addresses": []}


def seen(connection: libvirt.virConnect) -> Iterator[Seen]:
    """Yield every machine of a host; one that goes meanwhile is left out. Costs one call, and one more a machine."""
    try:
        for domain, told in statistics(connection, libvirt.VIR_DOMAIN_STATS_STATE):
            try:
                document = ET.fromstring(domain.XMLDesc(0))
            except libvirtError as error:
                if code_of(error) == "not_found":
                    continue
                raise
            yield Seen(domain, document, _STATES.get(told.get("state.state", 0), "unknown"))
    except libvirtError as error:
        raise translate(error, "read the machines of a host") from error


def all_of(connection: libvirt.virConnect) -> list[dict[str, Any]]:
    """Return every machine of a host in the order of names, as `seen` finds them."""
    return sorted((each.facts() for each in seen(connection)), key=lambda machine: str(machine["name"]))


def statistics(connection: libvirt.virConnect, kinds: int) -> list[tuple[libvirt.virDomain, dict[str, Any]]]:
    """Return every machine with what libvirt measures of it, in one call; only its state where there is no more.

    A machine that is just being started or migrated is told of without its busy figures, not waited for.
    """
    try:
        return list(connection.getAllDomainStats(kinds, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT))
    except libvirtError as error:
        if code_of(error) not in ("refused", "invalid"):
            raise
    return list(connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0))  # the test driver has no more


def patient_with_tpm(begin: Callable[[], object]) -> None:
    """Begin to run a machine, also when its TPM is late: libvirt gives swtpm one second, however busy the host is.

    Raises libvirtError.
    """
    for more in reversed(range(TPM_TRIES)):
        try:
            begin()
            return
        except libvirtError as error:
            if not more or code_of(error) != "timeout" or "swtpm" not in str(error):
                raise


def start(domain: libvirt.virDomain, *, paused: bool = False) -> None:
    """Start a machine that is stopped."""
    try:
        patient_with_tpm(lambda: domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0))
    except libvirtError as error:
        raise translate(error, f"start machine {domain.name()}") from error


def pause(domain: libvirt.virDomain) -> None:
    """Halt a running machine where it is."""
    try:
        domain.suspend()
    except libvirtError as error:
        raise translate(error, f"pause machine {domain.name()}") from error


def is_saved(domain: libvirt.virDomain) -> bool:
    """Tell whether the memory of a machine that is stopped is saved, so that it goes on with it when it is started."""
    try:
        return bool(domain.hasManagedSaveImage(0))
    except libvirtError:
        return False  # a driver that saves nothing


def save(domain: libvirt.virDomain, deadline: Deadline) -> None:
    """Save the memory of a machine and stop it. When that takes too long, it goes on as it was."""
    wanted = f"save the memory of machine {domain.name()}"
    try:
        bounded(lambda: domain.managedSave(0), deadline, wanted)
    except VirtfleetError:
        with contextlib.suppress(libvirtError):
            domain.abortJob()
        raise
    except libvirtError as error:
        raise translate(error, wanted) from error


def resume(domain: libvirt.virDomain) -> None:
    """Let a paused machine go on."""
    try:
        if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
            domain.pMWakeup(0)
        else:
            domain.resume()
    except libvirtError as error:
        raise translate(error, f"resume machine {domain.name()}") from error


def stop(
    connection: libvirt.virConnect, domain: libvirt.virDomain, *, grace: float, force: bool, deadline: Deadline
) -> None:
    """Shut a machine down cleanly within `grace` seconds; after that cut its power if `force`.

    Raises VirtfleetError `timeout` when it does not obey and must not be forced: it runs on then.
    """
    patience = deadline.at_most(grace)
    if state_of(domain) == "paused" and not force and grace > 0:
        resume(domain)  # a machine that is halted cannot shut down
    with domain_events(connection, domain) as event:
        if grace > 0 and _obeys(domain, domain.shutdownFlags, lambda: not domain.isActive(), patience, event):
            return
        if not force:
            raise VirtfleetError(
                f"stop machine {domain.name()}",
                f"it did not shut down within {patience.seconds:g} s, and runs on",
                "Allow more time with grace, or cut its power with force.",
                "timeout",
            )
        destroy(domain)


def destroy(domain: libvirt.virDomain) -> None:
    """Cut the power of a machine, if it has any."""
    try:
        if domain.isActive():
            domain.destroy()
    except libvirtError as error:
        if domain.isActive():
            raise translate(error, f"cut the power of machine {domain.name()}") from error


def restart(
    connection: libvirt.virConnect, domain: libvirt.virDomain, *, grace: float, force: bool, deadline: Deadline
) -> None:
    """Reboot a running machine; when it does not within `grace` seconds, press its reset button if `force`.

    Raises VirtfleetError `timeout` when it does not obey and must not be forced.
    """
    patience = deadline.at_most(grace)
    rebooted = threading.Event()
    callback = connection.domainEventRegisterAny(
        domain, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_arguments: rebooted.set(), None
    )
    try:
        if grace > 0 and _obeys(domain, domain.reboot, rebooted.is_set, patience, rebooted):
            return
        if not force:
            raise VirtfleetError(
                f"reboot machine {domain.name()}",
                f"it did not within {patience.seconds:g} s, and runs on",
                "Allow more time with grace, or reset it with force.",
                "timeout",
            )
        try:
            domain.reset(0)
        except libvirtError as error:
            raise translate(error, f"reset machine {domain.name()}") from error
    finally:
        with contextlib.suppress(libvirtError):
            connection.domainEventDeregisterAny(callback)


def _obeys(
    domain: libvirt.virDomain,
    ask: Callable[[int], Any],
    done: Callable[[], bool],
    patience: Deadline,
    event: threading.Event,
) -> bool:
    """Ask again and again until it is done; False when patience ends."""
    asked = -ASK_AGAIN_SECONDS
    while not done():
        if patience.passed:
            return False
        if time.monotonic() - asked >= ASK_AGAIN_SECONDS:
            # Refused while it boots, or because it is just ending. A silent agent is waited for longer than we may.
            with contextlib.suppress(libvirtError, VirtfleetError):
                bounded(lambda: ask(0), patience, f"reach machine {domain.name()}")
            asked = time.monotonic()
        event.wait(min(0.5, patience.left()))
        if not done():
            event.clear()
    return True


def define_new(connection: libvirt.virConnect, document: str, *, validate: bool = False) -> libvirt.virDomain:
    """Define a machine that was not there before. Raises libvirtError.

    libvirt names the file of UEFI variables after the machine alone, and leaves it on a host that the machine was moved
    away from. Those of an earlier machine of this name are not this one's, so they go.
    """
    flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0

    def define() -> libvirt.virDomain:
        return connection.defineXMLFlags(document, flags) if flags else connection.defineXML(document)

    domain, root = define(), ET.fromstring(document)
    if read.is_uefi(root) and not root.findtext("os/nvram"):  # a file that was named is meant
        undefine(domain)
        domain = define()
    return domain


def undefine(domain: libvirt.virDomain, *, keep_nvram: bool = False) -> None:
    """Forget a stopped machine with its saved state, NVRAM and what libvirt knows of snapshots; volumes stay.

    `keep_nvram` is for a machine that goes on elsewhere: its NVRAM may lie on storage that both hosts have.
    """
    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | (libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM if keep_nvram else libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    )
    try:
        try:
            domain.undefineFlags(flags)
        except libvirtError as error:
            if code_of(error) not in ("refused", "invalid"):
                raise
            domain.undefine()  # a driver without these flags
    except libvirtError as error:
        if code_of(error) != "not_found":
            raise translate(error, f"undefine machine {domain.name()}") from error


def leftovers(connection: libvirt.virConnect, name: str, uuid: str) -> list[dict[str, str]]:
    """Return the volumes whose names say that they were made for a machine, also one that is not defined (any more)."""
    prefix = volume_prefix(name, uuid)
    return [
        {"pool": pool.name(), "name": volume}
        for pool in _active_pools(connection)
        for volume in pool.listVolumes()
        if volume.startswith(prefix) and _OWN_VOLUME.fullmatch(volume.removeprefix(prefix))
    ]


def _active_pools(connection: libvirt.virConnect) -> Iterator[libvirt.virStoragePool]:
    yield from connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)


def removable(
    connection: libvirt.virConnect, domain_name: str | None, listed: Sequence[dict[str, str]]
) -> list[tuple[libvirt.virStoragePool, str]]:
    """Return those of the volumes that are there. Raises VirtfleetError `refused` when something else needs one."""
    found = []
    going = {(each["pool"], each["name"]) for each in listed}
    for each in listed:
        try:
            pool = connection.storagePoolLookupByName(each["pool"])
            volume = volumes.find(pool, each["name"]) if pool.isActive() else None
        except libvirtError as error:
            if code_of(error) == "not_found":
                continue
            raise translate(error, f"look up pool {each['pool']}") from error
        if volume is None:
            continue
        # What goes as well holds nothing: the files of external snapshots lie over the disk of their machine.
        over = [name for name in volume_users.overlays_of(pool, volume.path()) if (pool.name(), name) not in going]
        users = [name for name in volume_users.machines_using(connection, {volume.path()}) if name != domain_name]
        if over or users:
            need = f"the volumes {', '.join(over[:5])} lie over it" if over else f"{', '.join(users[:5])} use it"
            hint = "Delete those first, or leave this volume out."
            raise VirtfleetError(f"delete volume {each['name']}", need, hint, "refused")
        found.append((pool, each["name"]))
    return found
