# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage pools of a host: finding, describing, defining, starting, removing."""

from __future__ import annotations

import contextlib
import re
import time
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume_users
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, check_path, shown
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

TYPES = ("dir", "fs", "netfs", "logical")
FILE_TYPES = ("dir", "fs", "netfs")  # pools whose volumes are plain files: only they can hold overlays and images

# What a definition is made of, besides its name: what of it changes only by stopping and starting the pool.
_DEFINITION = ("type", "path", "source")
_OF_EXT = "lost+found"  # every new ext file system has this directory: it is nobody's volume
_HOST = re.compile(r"[A-Za-z0-9\[:][A-Za-z0-9.:\[\]-]{0,254}", re.ASCII)


def find(connection: libvirt.virConnect, name: str) -> libvirt.virStoragePool | None:
    """Return the pool of that name, or None."""
    try:
        return connection.storagePoolLookupByName(name)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up pool {name}") from error


def all_active(connection: libvirt.virConnect) -> list[libvirt.virStoragePool]:
    """Return the pools of a host that are active, in the order of their names."""
    try:
        found = connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    except libvirtError as error:
        raise translate(error, "list the pools of a host") from error
    return sorted(found, key=lambda pool: str(pool.name()))


def active_pool(connection: libvirt.virConnect, name: str, wanted: str) -> libvirt.virStoragePool:
    """Return the pool of that name, ready for use. Raises VirtfleetError `not_found` or `refused` (inactive).

    `wanted` is what it is needed for: it completes "Failed to …".
    """
    found = find(connection, check_name(name, "pool"))
    if found is None:
        there = sorted(pool.name() for pool in connection.listAllStoragePools())
        known = f"The host has {', '.join(there)}." if there else "The host has no pool at all."
        raise VirtfleetError(
            wanted, f"there is no pool {shown(name)}", f"{known} Make it with module pool.", "not_found"
        )
    if not found.isActive():
        hint = "Start it: module pool with state present."
        raise VirtfleetError(wanted, f"the pool {name} is not active", hint, "refused")
    return found


def file_pool(connection: libvirt.virConnect, name: str, wanted: str) -> libvirt.virStoragePool:
    """Return an active pool whose volumes are files. Raises VirtfleetError."""
    pool = active_pool(connection, name, wanted)
    if type_of(pool) not in FILE_TYPES:
        text = f"the pool {name} has no files"
        raise VirtfleetError(wanted, text, f"Use a pool of type {', '.join(FILE_TYPES)}.", "refused")
    return pool


def type_of(pool: libvirt.virStoragePool) -> str:
    """Return the libvirt type of a pool, such as dir."""
    return ET.fromstring(pool.XMLDesc(0)).get("type", "")


def refresh(pool: libvirt.virStoragePool, deadline: Deadline) -> None:
    """Have libvirt read the pool's content again, waiting while it is busy with the pool's volumes."""
    wanted = f"refresh pool {pool.name()}"
    while True:
        try:
            bounded(lambda: pool.refresh(0), deadline, wanted)
            return
        except libvirtError as error:
            # "has asynchronous jobs running" is an internal error: libvirt gives it no number of its own.
            if code_of(error) not in ("internal", "refused") or not pool.isActive() or deadline.left() < 1:
                raise translate(error, wanted) from error
        time.sleep(0.2)


def settings(pool: libvirt.virStoragePool) -> dict[str, Any]:
    """Return what module pool can set: `{name, type, path, source, active, autostart}`."""
    return {
        "name": pool.name(),
        **definition_of(ET.fromstring(_document(pool))),
        "active": bool(pool.isActive()),
        "autostart": bool(pool.autostart()),
    }


def _document(pool: libvirt.virStoragePool) -> str:
    """Return the definition that lasts, which an active pool's present one may differ from."""
    if pool.isActive() and pool.isPersistent():
        with contextlib.suppress(libvirtError):  # libvirt's test driver knows no flags
            return str(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE))
    return str(pool.XMLDesc(0))


def definition_of(root: ET.Element) -> dict[str, Any]:
    """Return the type, the target path and the source of a `<pool>` element."""
    host, directory, device = root.find("source/host"), root.find("source/dir"), root.find("source/device")
    source = {
        "host": host.get("name") if host is not None else None,
        "dir": directory.get("path") if directory is not None else None,
        "name": root.findtext("source/name"),
        "device": device.get("path") if device is not None and root.get("type") == "fs" else None,
    }
    return {
        "type": root.get("type"),
        "path": root.findtext("target/path"),
        "source": {key: value for key, value in source.items() if value},
    }


def describe(pool: libvirt.virStoragePool, *, shared: bool = False) -> dict[str, Any]:
    """Return a pool with its figures in bytes; those of an inactive pool are None."""
    described = {**settings(pool), "shared": shared}
    figures = dict.fromkeys(("capacity_bytes", "allocation_bytes", "available_bytes", "provisioned_bytes"))
    if described["active"]:
        _state, capacity, allocation, available = pool.info()
        provisioned = 0
        for volume in pool.listAllVolumes(0):
            # A volume that has gone since the list was made takes no room.
            with contextlib.suppress(libvirtError):
                provisioned += volume.info()[1]
        figures = {
            "capacity_bytes": capacity,
            "allocation_bytes": allocation,
            "available_bytes": available,
            "provisioned_bytes": provisioned,
        }
    return {**described, **figures}


def pool_xml(name: str, definition: dict[str, Any], uuid: str | None = None) -> str:
    """Return the `<pool>` document of a definition as `definition_of` reads it."""
    root = ET.Element("pool", type=definition["type"])
    ET.SubElement(root, "name").text = name
    if uuid:
        ET.SubElement(root, "uuid").text = uuid
    source = definition["source"]
    if source:
        element = ET.SubElement(root, "source")
        if source.get("host"):
            ET.SubElement(element, "host", name=source["host"])
        if source.get("dir"):
            ET.SubElement(element, "dir", path=source["dir"])
        if source.get("device"):
            ET.SubElement(element, "device", path=source["device"])
        if source.get("name"):
            ET.SubElement(element, "name").text = source["name"]
        if definition["type"] == "netfs":
            ET.SubElement(element, "format", type="nfs")
    ET.SubElement(ET.SubElement(root, "target"), "path").text = definition["path"]
    return ET.tostring(root, encoding="unicode")


def wanted_definition(name: str, kind: str, path: str | None, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return the definition that the options of module pool ask for. Raises VirtfleetError `invalid`."""
    wanted = f"define pool {name}"
    given = {key: value for key, value in (source or {}).items() if value}
    needed = {"dir": set(), "fs": {"device"}, "netfs": {"host", "dir"}, "logical": {"name"}}[kind]
    if set(given) != needed:
        text = f"a pool of type {kind} needs " + (
            f"a source with {' and '.join(sorted(needed))}" if needed else "no source"
        )
        raise VirtfleetError(wanted, text, "Correct the option source.", "invalid")
    if kind == "logical":
        check_name(given["name"], "volume group")
        path = path or f"/dev/{given['name']}"
    if path is None:
        raise VirtfleetError(wanted, "it has no path", "Say where on the host its volumes lie: option path.", "invalid")
    check_path(path, "the path of a pool")
    if "dir" in given:
        check_path(given["dir"], "the directory of a file server")
    if "device" in given:
        check_path(given["device"], "the device of a pool")
    if "host" in given and not _HOST.fullmatch(given["host"]):
        text = f"{shown(given['host'])} is no host name or address"
        raise VirtfleetError(wanted, text, "Correct the option source.", "invalid")
    return {"type": kind, "path": path, "source": given}


def plan_present(
    before: dict[str, Any] | None, name: str, definition: dict[str, Any] | None, *, active: bool, autostart: bool | None
) -> plan.Plan:
    """Return the plan that leads to a defined pool. Without `definition` an existing one is kept as it is."""
    if before is None and definition is None:
        hint = "Say what to make: at least the option path."
        raise VirtfleetError(f"define pool {name}", "there is none yet, and nothing says what it is", hint, "not_found")
    kept = before or {"name": name, "autostart": active}
    after = {**kept, **(definition or {}), "active": active}
    if autostart is not None:
        after["autostart"] = autostart
    return plan.compare(before, after, dict.fromkeys(_DEFINITION, plan.RECREATE))


def apply(
    connection: libvirt.virConnect, name: str, todo: plan.Plan, *, restart: bool, deadline: Deadline
) -> libvirt.virStoragePool:
    """Carry out a plan of `plan_present`. Raises VirtfleetError `refused` if it needs a restart that is not allowed."""
    before, after = todo.before, todo.after or {}
    pool = find(connection, name)
    redefined = before is None or todo.touches(*_DEFINITION)
    stopped = before is not None and before["active"] and (redefined or not after["active"])
    check_restart(name, todo, restart=restart)
    wanted = f"make pool {name} as wanted"
    old_document = _document(pool) if pool is not None else None
    try:
        if stopped and pool is not None:
            wanted = f"stop pool {name}"
            bounded(pool.destroy, deadline, wanted)
        if redefined:
            wanted = f"define pool {name}"
            uuid = pool.UUIDString() if pool is not None else None
            pool = connection.storagePoolDefineXML(pool_xml(name, after, uuid), 0)
        if pool is None:
            raise VirtfleetError(wanted, "somebody removed it meanwhile", "Try again.", "not_found")
        if after["active"] and not pool.isActive():
            _start(pool, after, deadline, build=redefined)
        if bool(pool.autostart()) != after["autostart"]:
            wanted = f"set the autostart of pool {name}"
            pool.setAutostart(int(after["autostart"]))
    except (libvirtError, VirtfleetError) as error:
        if redefined:
            _put_back(connection, name, old_document, active=bool(before and before["active"]), deadline=deadline)
        if isinstance(error, VirtfleetError):
            raise
        raise translate(error, wanted) from error
    return pool


def _put_back(
    connection: libvirt.virConnect, name: str, old_document: str | None, *, active: bool, deadline: Deadline
) -> None:
    """Undo a definition that could not be started: the old one again, or none where there was none."""
    with contextlib.suppress(libvirtError, VirtfleetError):
        made = find(connection, name)
        if made is not None and made.isActive():
            bounded(made.destroy, deadline, f"stop pool {name}")
        if old_document is None:
            if made is not None:
                made.undefine()
            return
        restored = connection.storagePoolDefineXML(old_document, 0)
        if active:
            bounded(lambda: restored.create(0), deadline, f"start pool {name}")


def check_restart(name: str, todo: plan.Plan, *, restart: bool) -> None:
    """Refuse a plan that changes the definition of an active pool, unless it may be restarted."""
    if todo.before and todo.before["active"] and todo.after and todo.after["active"]:
        changed = ", ".join(change.what for change in todo.with_effect(plan.RECREATE))
        if changed and not restart:
            text = f"{changed} of an active pool changes only by stopping and starting it"
            raise VirtfleetError(f"change pool {name}", text, "Allow that with restart: true.", "refused")


def _start(pool: libvirt.virStoragePool, after: dict[str, Any], deadline: Deadline, *, build: bool) -> None:
    name = pool.name()
    if build and after["type"] in FILE_TYPES:
        wanted = f"make the directory {after['path']} of pool {name}"
        try:
            bounded(lambda: pool.build(libvirt.VIR_STORAGE_POOL_BUILD_NEW), deadline, wanted)
        except libvirtError as error:
            raise translate(error, wanted) from error
    wanted = f"start pool {name}"
    try:
        bounded(lambda: pool.create(0), deadline, wanted)
    except libvirtError as error:
        hint = f"Check that {after['path']} is there and readable on the host, and the source if it has one."
        raise translate(error, wanted, hint) from error


def check_removal(connection: libvirt.virConnect, pool: libvirt.virStoragePool, *, delete_content: bool) -> list[str]:
    """Return the names of the volumes that go with the pool, or raise VirtfleetError `refused`.

    An inactive pool shows no volumes: only its definition goes, whatever lies in it stays.
    """
    name = pool.name()
    content = sorted({volume.name() for volume in pool.listAllVolumes(0)} - {_OF_EXT}) if pool.isActive() else []
    if not content:
        return []
    wanted = f"remove pool {name}"
    if not delete_content:
        text = f"it holds {len(content)} volume{'s' if len(content) > 1 else ''} ({', '.join(content[:5])}…)"
        hint = "Remove them first, allow it with delete_content: true, or make it inactive to drop only the definition."
        raise VirtfleetError(wanted, text, hint, "refused")
    paths = {volume.path() for volume in pool.listAllVolumes(0)}
    users = volume_users.machines_using(connection, paths)
    if users:
        text = f"machines use volumes of it: {', '.join(users[:5])}"
        raise VirtfleetError(wanted, text, "Delete those machines or detach the volumes first.", "refused")
    return content


def remove(pool: libvirt.virStoragePool, content: list[str], deadline: Deadline) -> None:
    """Delete the volumes named in `content`, stop the pool and take its definition away."""
    name = pool.name()
    wanted = f"remove pool {name}"
    try:
        for volume_name in content:
            wanted = f"delete volume {volume_name} of pool {name}"
            volumes.delete(pool, volume_name)
        wanted = f"remove pool {name}"
        persistent = bool(pool.isPersistent())
        if pool.isActive():
            bounded(pool.destroy, deadline, wanted)
        if persistent:
            pool.undefine()
    except libvirtError as error:
        raise translate(error, wanted) from error
