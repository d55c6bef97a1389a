# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes of a pool: finding, describing, making, filling, growing, removing. All sizes are bytes."""

from __future__ import annotations

import contextlib
import io
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, BinaryIO

from ansible_collections.virtfleet.core.plugins.module_utils.connection import bounded
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, shown
from ansible_collections.virtfleet.core.plugins.module_utils.units import about
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

FORMATS = ("qcow2", "raw")
MAX_SIZE_BYTES = 2**50  # 1 PiB
# A pool with less room than this is what a failing qemu-img stumbled over: file systems tell of room that they keep for
# themselves (XFS up to 32 MiB; 16 MiB were seen to be left when nothing could be written any more).
_FULL_BELOW_BYTES = 64 * 2**20


def find(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    """Return the volume of that name, or None."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up volume {name} in pool {pool.name()}") from error


def describe(volume: libvirt.virStorageVol) -> dict[str, Any]:
    """Return `{name, pool, path, format, capacity_bytes, allocation_bytes, physical_bytes, image}`.

    `capacity_bytes` is the size that a machine sees, `physical_bytes` the length of the file (None where libvirt does
    not say), `image` the path of the base volume of an overlay.
    """
    try:
        root = ET.fromstring(volume.XMLDesc(0))
        pool = volume.storagePoolLookupByVolume().name()
    except libvirtError as error:
        raise translate(error, "describe a volume") from error
    target_format = root.find("target/format")
    physical = root.findtext("physical")
    return {
        "name": root.findtext("name"),
        "pool": pool,
        "path": root.findtext("target/path"),
        "format": target_format.get("type") if target_format is not None else "raw",
        "capacity_bytes": int(root.findtext("capacity") or 0),
        "allocation_bytes": int(root.findtext("allocation") or 0),
        "physical_bytes": int(physical) if physical is not None else None,
        "image": root.findtext("backingStore/path"),
    }


def all_of(pool: libvirt.virStoragePool) -> list[dict[str, Any]]:
    """Return what `describe` does of every volume of a pool, in the order of names; one that goes is left out."""
    found = []
    try:
        listed = pool.listAllVolumes(0)
    except libvirtError as error:
        raise translate(error, f"list the volumes of pool {pool.name()}") from error
    for volume in listed:
        with contextlib.suppress(VirtfleetError):
            found.append(describe(volume))
    return sorted(found, key=lambda volume: str(volume["name"]))


def volume_xml(
    name: str,
    capacity_bytes: int,
    volume_format: str | None,
    base: tuple[str, str] | None = None,
    *,
    sparse: bool = True,
) -> str:
    """Return the `<volume>` document. `base` is the path and format of the volume that an overlay lies over."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(capacity_bytes)
    if sparse:
        ET.SubElement(root, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(root, "target")
    if volume_format:
        ET.SubElement(target, "format", type=volume_format)
        if volume_format == "qcow2":
            ET.SubElement(target, "compat").text = "1.1"
    if base is not None:
        backing = ET.SubElement(root, "backingStore")
        ET.SubElement(backing, "path").text = base[0]
        ET.SubElement(backing, "format", type=base[1])
    return ET.tostring(root, encoding="unicode")


def make_empty(
    pool: libvirt.virStoragePool, name: str, size_bytes: int, volume_format: str = "qcow2"
) -> libvirt.virStorageVol:
    """Make a new volume without content; it takes room as it is written. Raises VirtfleetError, such as `pool_full`."""
    check_size(name, size_bytes)
    return _create(pool, name, volume_xml(name, size_bytes, _format_in(pool, volume_format)))


def make_overlay(
    pool: libvirt.virStoragePool, name: str, base: libvirt.virStorageVol, size_bytes: int | None = None
) -> libvirt.virStorageVol:
    """Make a qcow2 overlay over `base`, which stays as it is. Without `size_bytes` it gets the size of the base.

    Raises VirtfleetError `invalid` if the base is larger than `size_bytes`.
    """
    below = describe(base)
    size = below["capacity_bytes"] if size_bytes is None else size_bytes
    check_size(name, size)
    if size < below["capacity_bytes"]:
        raise VirtfleetError(
            f"make volume {name} over image {below['name']}",
            f"the image has {about(below['capacity_bytes'])}, the volume is to have only {about(size)}",
            f"Ask for {about(below['capacity_bytes'])} or more.",
            "invalid",
        )
    return _create(pool, name, volume_xml(name, size, "qcow2", (below["path"], below["format"])))


def make_copy(
    pool: libvirt.virStoragePool, name: str, original: libvirt.virStorageVol, size_bytes: int | None, volume_format: str
) -> libvirt.virStorageVol:
    """Make a whole, independent copy of `original`, and grow it to `size_bytes` if that is more."""
    source = describe(original)
    size = source["capacity_bytes"] if size_bytes is None else size_bytes
    if size < source["capacity_bytes"]:
        text = f"the original has {about(source['capacity_bytes'])}, the copy is to have only {about(size)}"
        raise VirtfleetError(f"copy volume {source['name']} to {name}", text, "A copy cannot be smaller.", "invalid")
    document = volume_xml(name, source["capacity_bytes"], _format_in(pool, volume_format))
    copy = _create(pool, name, document, original)
    if size > source["capacity_bytes"]:
        try:
            grow(copy, size)
        except VirtfleetError:
            with contextlib.suppress(VirtfleetError):
                delete(pool, name)
            raise
    return copy


def make_for_upload(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol:
    """Make a raw volume without a length, to be filled by `upload`: its length then tells how far that came."""
    return _create(pool, name, volume_xml(name, 0, "raw"))


def check_size(name: str, size_bytes: int) -> None:
    """Refuse a size that no volume can have."""
    if not 0 < size_bytes <= MAX_SIZE_BYTES:
        wanted = f"make volume {name} of {about(size_bytes)}"
        raise VirtfleetError(wanted, "no disk has that size", "Use more than 0B and at most 1PiB.", "invalid")


def check_growth(described: dict[str, Any], size_bytes: int) -> None:
    """Refuse to make a volume smaller: what lies at its end would be lost."""
    if size_bytes < described["capacity_bytes"]:
        raise VirtfleetError(
            f"resize volume {described['name']} to {about(size_bytes)}",
            f"it has {about(described['capacity_bytes'])}, and a volume never shrinks",
            "Make a smaller volume and copy the files inside a machine.",
            "refused",
        )


def grow(volume: libvirt.virStorageVol, size_bytes: int) -> None:
    """Give a volume that no running machine uses a larger size."""
    try:
        volume.resize(size_bytes, 0)
    except libvirtError as error:
        raise explained(error, f"resize volume {volume.name()} to {about(size_bytes)}", volume) from error


@contextlib.contextmanager
def stream_of(volume: libvirt.virStorageVol) -> Iterator[libvirt.virStream]:
    """Open one of libvirt's streams for a volume: finished at the end of the block, aborted when that fails."""
    stream = volume.connect().newStream(0)
    try:
        yield stream
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirtError):
            stream.abort()
        raise


def upload(volume: libvirt.virStorageVol, source: BinaryIO, size_bytes: int, deadline: Deadline, wanted: str) -> None:
    """Fill a volume with the `size_bytes` bytes of an open file, holes left out, through libvirt's stream.

    Raises VirtfleetError `timeout`, `pool_full`, `refused` (the file changed meanwhile) and libvirt's.
    """
    fd = source.fileno()
    os.lseek(fd, 0, os.SEEK_SET)
    as_it_was = os.fstat(fd)

    def read(_stream: object, count: int, _opaque: object) -> bytes:
        if deadline.passed:
            raise TimeoutError
        return os.read(fd, min(count, size_bytes - os.lseek(fd, 0, os.SEEK_CUR)))

    def section(_stream: object, _opaque: object) -> tuple[bool, int]:
        """Tell whether data or a hole follows, and its length."""
        here = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            data = os.lseek(fd, here, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            data = size_bytes
        in_data = data == here and here < size_bytes
        end = min(os.lseek(fd, here, os.SEEK_HOLE), size_bytes) if in_data else min(data, size_bytes)
        os.lseek(fd, here, os.SEEK_SET)
        return in_data, end - here

    def skip(_stream: object, count: int, _opaque: object) -> int:
        os.lseek(fd, count, os.SEEK_CUR)
        return 0

    try:
        with stream_of(volume) as stream:
            volume.upload(stream, 0, size_bytes, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
            stream.sparseSendAll(read, section, skip, None)
    except TimeoutError as error:
        text = f"the upload took longer than {deadline.seconds:g} s"
        raise VirtfleetError(wanted, text, "Allow more time with the option timeout.", "timeout") from error
    except libvirtError as error:
        raise explained(error, wanted, volume) from error
    as_it_is = os.fstat(fd)
    if (as_it_is.st_size, as_it_is.st_mtime_ns) != (as_it_was.st_size, as_it_was.st_mtime_ns):
        raise VirtfleetError(
            wanted, "the file changed while it was uploaded", "Try again when it is at rest.", "refused"
        )


def read_text(volume: libvirt.virStorageVol, at_most_bytes: int) -> str:
    """Return the content of a small volume."""
    data = b""
    try:
        with stream_of(volume) as stream:
            volume.download(stream, 0, at_most_bytes, 0)
            while part := stream.recv(at_most_bytes):
                data += part
    except libvirtError as error:
        raise translate(error, f"read volume {volume.name()}") from error
    return data.rstrip(b"\0").decode("utf-8", "replace")


def write_text(pool: libvirt.virStoragePool, name: str, text: str) -> libvirt.virStorageVol:
    """Make a small raw volume with `text` as its content. Raises VirtfleetError `already_exists` and others."""
    return write_bytes(pool, name, text.encode())


def write_bytes(pool: libvirt.virStoragePool, name: str, data: bytes) -> libvirt.virStorageVol:
    """Make a small raw volume with `data` as its content. Raises VirtfleetError `already_exists` and others."""
    volume = _create(pool, name, volume_xml(name, len(data), "raw", sparse=False))
    try:
        with stream_of(volume) as stream:
            volume.upload(stream, 0, len(data), 0)
            stream.sendAll(lambda _stream, count, rest: rest.read(count), io.BytesIO(data))
    except libvirtError as error:
        with contextlib.suppress(libvirtError):
            volume.delete(0)
        raise explained(error, f"write volume {name}", volume) from error
    return volume


def delete(pool: libvirt.virStoragePool, name: str) -> bool:
    """Delete a volume and return whether there was one."""
    volume = find(pool, name)
    if volume is None:
        return False
    try:
        volume.delete(0)
    except libvirtError as error:
        if code_of(error) == "not_found":
            # Gone, or known to libvirt but its file is not there: a second look tells which.
            with contextlib.suppress(libvirtError):
                pool.refresh(0)
            return find(pool, name) is None
        raise translate(error, f"delete volume {name} of pool {pool.name()}") from error
    return True


def wipe(volume: libvirt.virStorageVol, deadline: Deadline) -> None:
    """Have the host write zeros over a volume, whatever it is; its format is lost. Raises `timeout` and libvirt's."""
    wanted = f"wipe volume {volume.name()}"
    try:
        bounded(lambda: volume.wipe(0), deadline, wanted)
    except libvirtError as error:
        raise translate(error, wanted) from error


def _format_in(pool: libvirt.virStoragePool, volume_format: str) -> str | None:
    """Return the format to ask for: a logical volume is a block device and has none."""
    root = ET.fromstring(pool.XMLDesc(0))
    if root.get("type") != "logical":
        return volume_format
    if volume_format != "raw":
        text = f"a logical pool has raw volumes only, not {volume_format}"
        raise VirtfleetError(f"make a volume in pool {pool.name()}", text, "Use format raw.", "invalid")
    return None


def _create(
    pool: libvirt.virStoragePool, name: str, document: str, original: libvirt.virStorageVol | None = None
) -> libvirt.virStorageVol:
    check_name(name, "volume")
    wanted = f"make volume {shown(name)[1:-1]} in pool {pool.name()}"
    try:
        if original is not None:
            return pool.createXMLFrom(document, original, 0)
        return define(pool, document)
    except libvirtError as error:
        raise explained(error, wanted, pool) from error


def define(pool: libvirt.virStoragePool, document: str) -> libvirt.virStorageVol:
    """Make the volume of a document, also where root is nobody. Raises libvirtError.

    Libvirt wants to give a raw volume to root, which a file server refuses that takes root for somebody else. There it
    belongs to whom the pool's folder belongs.
    """
    try:
        return pool.createXML(document, 0)
    except libvirtError as error:
        folder = ET.fromstring(pool.XMLDesc(0)).find("target/permissions")
        if code_of(error) != "refused" or folder is None:
            raise
        root = ET.fromstring(document)
        theirs = ET.SubElement(root.find("target"), "permissions")  # type: ignore[arg-type] # volume_xml makes a target
        for part in ("owner", "group"):
            ET.SubElement(theirs, part).text = folder.findtext(part)
        with contextlib.suppress(libvirtError):
            return pool.createXML(ET.tostring(root, encoding="unicode"), 0)
        raise


def explained(error: Exception, wanted: str, place: libvirt.virStoragePool | libvirt.virStorageVol) -> VirtfleetError:
    """Translate, and find out whether the pool is full where libvirt only says that a program failed."""
    translated = translate(error, wanted)
    if translated.code in ("internal", "pool_full"):
        with contextlib.suppress(libvirtError):
            pool = place if hasattr(place, "listAllVolumes") else place.storagePoolLookupByVolume()
            # Its name is said too; the figure needs a fresh look, since a failed write does not tell libvirt.
            with contextlib.suppress(libvirtError):
                pool.refresh(0)
            available = pool.info()[3]
            if translated.code == "pool_full" or available < _FULL_BELOW_BYTES:
                text = f"the pool {pool.name()} is full ({about(available)} left): {translated.obstacle}"
                hint = "Free some space in the pool, or choose another pool."
                return VirtfleetError(wanted, text, hint, "pool_full")
    return translated
