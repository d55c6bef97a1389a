# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing a machine that is there: its definition, and what of it can be changed while it runs."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import devices, metadata, patch, settings
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import written
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import capabilities, vm_settings
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.units import about
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

GUEST_SECONDS = 30.0
"""How long a machine may take to give back memory."""
_KIB = 1024
_AUTOSTART = "autostart"
_NAME = "name"
_PATCH = "xml_patch"


@dataclass
class Prepared:
    """What is to be changed of a machine, with the documents that it was read from."""

    update: plan.Update
    wanted: dict[str, Any]
    steps: list[patch.Step]
    definition: ET.Element | None
    live: ET.Element | None


def prepare(
    connection: libvirt.virConnect, domain: libvirt.virDomain, options: Mapping[str, Any], *, active: bool, paused: bool
) -> Prepared:
    """Compare a machine with what is wanted of it; nothing is changed.

    `active` is whether it is to be treated as running: one that is stopped first need not be changed live.
    Raises VirtfleetError, also for what could not be done.
    """
    definition, running = documents(domain, active=active)
    found = vm_settings.settings_of(options, capabilities.machine_names(connection) if options["machine"] else None)
    steps = patch.steps(options[_PATCH] or [])
    first = next(root for root in (definition, running) if root is not None)
    autostart = options[_AUTOSTART] is not None and _autostart(domain)
    kept = _state(first, steps, autostart)
    live = None if running is None else _state(running, steps, autostart)
    wanted = vm_settings.complete(found, kept)
    if steps:
        wanted[_PATCH] = {step.key: step.value for step in steps}
    if options[_AUTOSTART] is not None:
        wanted[_AUTOSTART] = options[_AUTOSTART]
    if options["new_name"] is not None:
        wanted[_NAME] = options["new_name"]
    if wanted.get("tpm") and not kept["tpm"]:
        capabilities.require_tpm(connection, domain.name())
    if wanted.get("accel") == "kvm" and kept["accel"] != "kvm":
        capabilities.virtualization(connection, "kvm", f"change machine {domain.name()}")
    update = plan.update(
        wanted,
        kept if definition is not None else None,
        None if live is None else vm_settings.comparable(live, wanted, kept),
        vm_settings.effects(live, paused=paused),
    )
    others = _other_images(connection, first, options["disks"] or [])
    prepared = Prepared(replace(update, beyond=(*update.beyond, *others)), wanted, steps, definition, running)
    _check(domain, prepared)
    return prepared


def documents(domain: libvirt.virDomain, *, active: bool) -> tuple[ET.Element | None, ET.Element | None]:
    """Return the kept and the live document; with passwords, which would be lost by writing it back otherwise."""
    secure = libvirt.VIR_DOMAIN_XML_SECURE
    try:
        kept = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | secure) if domain.isPersistent() else None
        live = domain.XMLDesc(secure) if active or kept is None else None
    except libvirtError as error:
        raise translate(error, "read the definition of a machine") from error
    return (None if kept is None else ET.fromstring(kept)), (None if live is None else ET.fromstring(live))


def _state(root: ET.Element, steps: list[patch.Step], autostart: bool) -> dict[str, Any]:
    """Return all settings, with those that do not stand in the document as such."""
    patched = {step.key: patch.look(root, step) for step in steps}
    return {**settings.read(root), _PATCH: patched, _AUTOSTART: autostart, _NAME: root.findtext("name")}


def _autostart(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.autostart())
    except libvirtError:  # a transient machine has none
        return False


def _other_images(
    connection: libvirt.virConnect, root: ET.Element, disks: Sequence[Mapping[str, Any]]
) -> list[plan.Change]:
    """Return the disks that lie over another image than the wanted one: only a new machine could have that."""
    found = []
    for number, wanted in enumerate(disks):
        serial = devices.serial_of(wanted, number)
        disk = devices.find_disk(root, serial)
        path = None if disk is None or wanted["image"] is None else devices.source_of(disk)
        if path is None:
            continue
        with contextlib.suppress(libvirtError, VirtfleetError):
            image = volumes.describe(connection.storageVolLookupByPath(path))["image"]
            name = None if image is None else PurePosixPath(image).name
            if name not in (None, wanted["image"]):
                found.append(plan.Change(f"disks.{serial}.image", name, wanted["image"], plan.RECREATE))
    return found


def _check(domain: libvirt.virDomain, prepared: Prepared) -> None:
    """Try the new definition without handing it over, so that check mode finds what the real run would."""
    if _NAME in prepared.update.names() and prepared.live is not None:
        text = "it runs, and a machine can be renamed only while it is stopped"
        hint = "Stop it first, or allow that with allow_power_cycle."
        raise VirtfleetError(f"rename machine {domain.name()}", text, hint, "refused")
    if prepared.definition is None and any(each.effect == plan.NEXT_BOOT for each in prepared.update.changes):
        text = "it is transient: it ends with its power and has no definition to change"
        raise VirtfleetError(f"change machine {domain.name()}", text, "Leave those options out.", "refused")
    _new_definition(prepared)


def _new_definition(prepared: Prepared) -> str | None:
    """Return the definition as it is to be; None when it stays as it is."""
    if prepared.definition is None:
        return None
    root = ET.fromstring(ET.tostring(prepared.definition))
    names = prepared.update.names()
    for name in settings.NAMES:
        if name in names:
            settings.write(root, name, prepared.wanted[name])
    if _PATCH in names:
        for step in prepared.steps:
            patch.apply(root, step)
    document = written(root)
    return None if document == ET.tostring(prepared.definition, encoding="unicode") else document


def carry_out(
    connection: libvirt.virConnect, domain: libvirt.virDomain, prepared: Prepared, deadline: Deadline, *, live: bool
) -> libvirt.virDomain:
    """Make the changes; when one fails, those made before it are taken back. Returns the machine as it is known then.

    `live` is whether what can be changed while it runs is changed so; False when its power is cycled anyway.
    """
    undo: list[Callable[[], Any]] = []
    names = prepared.update.names()
    try:
        _change_kept(connection, domain, prepared, undo)
        if _AUTOSTART in names:
            undo.append(partial(domain.setAutostart, int(not prepared.wanted[_AUTOSTART])))
            domain.setAutostart(int(prepared.wanted[_AUTOSTART]))
        if live and prepared.live is not None:
            hot = prepared.update.names(plan.LIVE)
            for name in (name for name in _LIVE if name in hot):
                # What a machine does when it has booted, it is told now and not waited for.
                patience = Deadline(0) if name == "memory" and _gives_late(prepared) else deadline
                _change_live(domain, prepared.live, name, prepared.wanted[name], patience, undo=undo)
        if _NAME in names:
            undo.append(partial(domain.rename, domain.name(), 0))
            domain.rename(prepared.wanted[_NAME], 0)
            domain = connection.lookupByUUIDString(domain.UUIDString())
    except (VirtfleetError, libvirtError) as error:
        for step in reversed(undo):
            with contextlib.suppress(VirtfleetError, libvirtError):
                step()
        if isinstance(error, VirtfleetError):
            raise
        raise translate(error, f"change machine {domain.name()}") from error
    return domain


def put_back(connection: libvirt.virConnect, domain: libvirt.virDomain, prepared: Prepared) -> bool:
    """Give a stopped machine the definition back that it had; False when that fails."""
    if prepared.definition is None:
        return False
    try:
        if _NAME in prepared.update.names():
            domain.rename(prepared.definition.findtext("name"), 0)
        connection.defineXML(ET.tostring(prepared.definition, encoding="unicode"))
        if _AUTOSTART in prepared.update.names():
            domain.setAutostart(int(not prepared.wanted[_AUTOSTART]))
    except libvirtError:
        return False
    return True


def _change_kept(
    connection: libvirt.virConnect, domain: libvirt.virDomain, prepared: Prepared, undo: list[Callable[[], Any]]
) -> None:
    document = _new_definition(prepared)
    if document is None or prepared.definition is None:
        return
    wanted = f"change the definition of machine {domain.name()}"
    before = ET.tostring(prepared.definition, encoding="unicode")
    patched = _PATCH in prepared.update.names()
    undo.append(lambda: connection.defineXML(before))  # noted before it is done: its answer may be lost
    try:
        # What was patched may be nonsense: libvirt drops what it does not know, unless it is told to check.
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if patched else 0
        connection.defineXMLFlags(document, flags) if flags else connection.defineXML(document)
    except libvirtError as error:
        raise translate(error, wanted) from error
    after, _live = documents(domain, active=False)
    if after is not None:
        _check_kept(domain, prepared, after)


def _check_kept(domain: libvirt.virDomain, prepared: Prepared, after: ET.Element) -> None:
    """Refuse what libvirt took but did not keep: the next run would find it changed again."""
    now = _state(after, prepared.steps, autostart=False)
    changed = prepared.update.names()
    left = plan.update(
        {name: prepared.wanted[name] for name in changed if name not in (_AUTOSTART, _NAME)},
        now,
        None,
        vm_settings.effects(None),
    )
    if left.changed:
        first = left.changes[0]
        raise VirtfleetError(
            f"change {first.what} of machine {domain.name()} to {first.after!r}",
            f"libvirt keeps {first.before!r} instead",
            "Use a value that the host knows; the definition was put back.",
            "refused",
        )


def _gives_late(prepared: Prepared) -> bool:
    if prepared.live is None or prepared.definition is None:
        return False
    return vm_settings.gives_late(settings.read(prepared.live), settings.read(prepared.definition))


def _change_live(
    domain: libvirt.virDomain,
    live: ET.Element,
    name: str,
    after: Any,
    deadline: Deadline,
    *,
    undo: list[Callable[[], Any]],
) -> None:
    before = settings.read(live)[name]
    if before == after:
        return
    change = _LIVE[name]
    if name != "vcpus":  # it comes last; a machine that was given one need not let go of it
        undo.append(partial(change, domain, live, before, deadline))
    try:
        change(domain, live, after, deadline)
    except libvirtError as error:
        hint = "Try again later, or allow its power to be cycled with allow_power_cycle."
        raise translate(error, f"change {name} of machine {domain.name()} while it runs", hint) from error


def _set_vcpus(domain: libvirt.virDomain, _live: ET.Element, value: int, _deadline: Deadline) -> None:
    domain.setVcpusFlags(value, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _set_memory(domain: libvirt.virDomain, _live: ET.Element, value: int, deadline: Deadline) -> None:
    domain.setMemoryFlags(value // _KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    if deadline.passed:
        return

    def there() -> bool:
        return bool(settings.read(ET.fromstring(domain.XMLDesc(0)))["memory"] == value)

    what = f"machine {domain.name()} to have {about(value)} of memory"
    try:
        wait_for(there, deadline.at_most(GUEST_SECONDS), what, poll=0.1)
    except VirtfleetError as error:
        if error.code == "timeout":
            error.hint = "What runs in the machine must take part: wait until it has booted, or cycle its power."
        raise


def _set_io(domain: libvirt.virDomain, live: ET.Element, value: dict[str, int] | None, _deadline: Deadline) -> None:
    for disk in settings.writable_disks(live):
        target = disk.find("target")
        if target is not None and value is not None:
            set_disk_io(domain, str(target.get("dev")), value, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_disk_io(domain: libvirt.virDomain, target: str, value: Mapping[str, int], flags: int) -> None:
    """Give one disk its limits."""
    domain.setBlockIoTune(target, {settings.IO_LIMITS[name]: limit for name, limit in value.items()}, flags)


def _set_metadata(domain: libvirt.virDomain, live: ET.Element, value: dict[str, Any], _deadline: Deadline) -> None:
    apart = {key: kept for key, kept in metadata.of(live).items() if key in settings.KEPT_APART}
    set_metadata(domain, {**value, **apart}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_metadata(domain: libvirt.virDomain, values: dict[str, Any], flags: int) -> None:
    """Replace all that we keep with a machine."""
    element = metadata.build(values)
    element.tag = metadata.TAG.rpartition("}")[2]  # libvirt puts it into the namespace itself
    document = ET.tostring(element, encoding="unicode")
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, document, "virtfleet", metadata.NAMESPACE, flags)


_LIVE: dict[str, Callable[[libvirt.virDomain, ET.Element, Any, Deadline], None]] = {
    "metadata": _set_metadata,
    "io": _set_io,
    "memory": _set_memory,
    "vcpus": _set_vcpus,
}
"""What can be changed while a machine runs, in the order in which it is."""
