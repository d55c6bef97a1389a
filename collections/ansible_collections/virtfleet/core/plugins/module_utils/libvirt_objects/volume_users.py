# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What needs a volume: machines that have it as a disk, other volumes that lie over it."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Collection

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


def overlays_of(pool: libvirt.virStoragePool, path: str) -> list[str]:
    """Return the names of the pool's volumes that lie over the volume at `path`."""
    found = []
    for volume in pool.listAllVolumes(0):
        # One that has gone since the list was made lies over nothing.
        with contextlib.suppress(libvirtError, VirtfleetError):
            if ET.fromstring(volume.XMLDesc(0)).findtext("backingStore/path") == path:
                found.append(volume.name())
    return sorted(found)


def machines_using(connection: libvirt.virConnect, paths: Collection[str], *, running_only: bool = False) -> list[str]:
    """Return the names of the machines, running or not, that have one of `paths` as a disk."""
    users = users_of(connection, running_only=running_only)
    return sorted({name for path in paths for name in users.get(path, ())})


def users_of(connection: libvirt.virConnect, *, running_only: bool = False) -> dict[str, list[str]]:
    """Return path → names of the machines, running or not, that have it as a disk or below one."""
    users: dict[str, list[str]] = {}
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE if running_only else 0):
        with contextlib.suppress(libvirtError):
            documents = [domain.XMLDesc(0)]
            if domain.isActive() and domain.isPersistent():
                documents.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            for path in {path for document in documents for path in _disk_paths(connection, document)}:
                users.setdefault(path, []).append(domain.name())
    return {path: sorted(names) for path, names in users.items()}


def check_removal(
    connection: libvirt.virConnect,
    pool: libvirt.virStoragePool,
    volume: libvirt.virStorageVol,
    wanted: str | None = None,
) -> None:
    """Refuse to delete (or what else is `wanted`) a volume that is a disk of a machine or that overlays lie over."""
    path, wanted = volume.path(), wanted or f"delete volume {volume.name()}"
    overlays = overlays_of(pool, path)
    if overlays:
        text = f"{len(overlays)} volume{'s lie' if len(overlays) > 1 else ' lies'} over it ({', '.join(overlays[:5])})"
        raise VirtfleetError(wanted, text, "Delete those first.", "refused")
    users = machines_using(connection, {path})
    if users:
        text = f"it is a disk of {', '.join(users[:5])}"
        raise VirtfleetError(wanted, text, "Detach it or delete the machine first.", "refused")


def _disk_paths(connection: libvirt.virConnect, document: str) -> list[str]:
    paths = []
    for disk in ET.fromstring(document).iterfind("devices/disk"):
        for source in [*disk.iterfind("source"), *disk.iterfind(".//backingStore/source")]:
            path = source.get("file") or source.get("dev")
            if path is None and source.get("pool"):
                with contextlib.suppress(libvirtError):
                    pool = connection.storagePoolLookupByName(source.get("pool"))
                    path = pool.storageVolLookupByName(source.get("volume")).path()
            if path:
                paths.append(path)
    return paths
