# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an image comes from: a local file or a URL, verified, unpacked and measured before any of it is sent."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import http.client
import lzma
import os
import re
import stat
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from ansible_collections.virtfleet.core.plugins.module_utils import image_format
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import shown
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

_CHUNK_BYTES = 1024 * 1024
_SOCKET_SECONDS = 30.0  # a server that sends nothing for so long is given up, even before the deadline
_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "xz": lzma.LZMAFile,
    "bzip2": bz2.BZ2File,
}
"""How what is packed is read; Python has no reader for the other kinds that `image_format` can name."""
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A file that is known to be importable: open, measured and hashed.

    `data_bytes` is its size without its holes, `origin` tells people where it came from. Of one that was packed, the
    file is what was in it, and `checksum` that of the packed one, which is what its publisher tells.
    """

    file: BinaryIO
    size_bytes: int
    data_bytes: int
    image: image_format.ImageFormat
    checksum: str
    origin: str


def check_checksum(checksum: str) -> str:
    """Return a checksum in its one form, `sha256:` and 64 small hexadecimal digits. Raises VirtfleetError `invalid`."""
    plain = checksum.strip().lower()
    if not _CHECKSUM.fullmatch(plain):
        hint = "Write it like sha256:e3b0c442…, with 64 hexadecimal digits (the output of sha256sum)."
        raise VirtfleetError(f"use {shown(checksum)} as a checksum", "it is not a SHA-256 checksum", hint, "invalid")
    return plain


def check_url(url: str) -> str:
    """Return `url` if it can be fetched. Raises VirtfleetError `invalid`.

    A user or password in it would end up in logs and in the image's marker.
    """
    wanted = "fetch an image"
    hint = "Write it like https://example.org/images/debian.qcow2."
    try:
        parts = urlsplit(url)
        host, userinfo, _port = parts.hostname, parts.username or parts.password, parts.port
    except ValueError as error:
        raise VirtfleetError(wanted, f"{shown(url)} cannot be read as a URL ({error})", hint, "invalid") from None
    if userinfo:
        hint = "Fetch the image yourself and give the file as src."
        raise VirtfleetError(wanted, f"the URL of host {host} holds a user name or password", hint, "invalid")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise VirtfleetError(wanted, f"{shown(url)} is not an http or https URL", hint, "invalid")
    return url


def origin_of(url: str) -> str:
    """Return a URL as it may be kept: without its query, which may hold a token."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


@contextlib.contextmanager
def local_file(
    path: str, *, asked_format: str | None, checksum: str | None, wanted: str, deadline: Deadline
) -> Iterator[Source]:
    """Open a file where the module runs. Raises VirtfleetError `not_found`, `invalid`, `refused` or `timeout`."""
    try:
        # Without O_NONBLOCK opening a named pipe would wait for its other end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = "The file must be there, and readable, where the module runs."
        raise VirtfleetError(wanted, f"{shown(path)} cannot be opened: {reason}", hint, "not_found") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise VirtfleetError(wanted, f"{shown(path)} is not a regular file", "Give an image file.", "invalid")
    with os.fdopen(fd, "rb") as file:
        name = Path(path).name
        try:
            found = image_format.inspect(file, os.fstat(fd).st_size)
            if found.format not in _READERS:
                image_format.importable(found, asked_format, wanted)  # before it is read as a whole
            file.seek(0)
            as_it_was = os.fstat(fd)
            actual = _digest(file.read, wanted, deadline)
        except OSError as error:
            text = f"{shown(path)} cannot be read: {error.strerror}"
            raise VirtfleetError(wanted, text, "Check the file.", "invalid") from error
        _compare(actual, checksum, wanted, name)
        with _unpacked(file, asked_format, wanted, deadline) as (plain, image):
            as_it_is = os.fstat(fd)
            if (as_it_is.st_size, as_it_is.st_mtime_ns) != (as_it_was.st_size, as_it_was.st_mtime_ns):
                hint = "Try again when it is at rest."
                raise VirtfleetError(wanted, f"{shown(path)} changed while it was read", hint, "refused")
            yield Source(plain, *_sizes(plain.fileno()), image, actual, name)


@contextlib.contextmanager
def download(
    url: str, *, asked_format: str | None, checksum: str | None, wanted: str, deadline: Deadline
) -> Iterator[Source]:
    """Fetch a URL into a temporary file where the module runs, gone afterwards.

    Raises VirtfleetError `not_found` (the server's answer, or none), `invalid`, `refused`, `timeout` or `pool_full`
    (no room for the temporary file).
    """
    check_url(url)
    with tempfile.TemporaryFile(prefix="virtfleet-image-") as file:
        actual = _fetch(url, file, wanted, deadline)
        file.flush()
        _compare(actual, checksum, wanted, origin_of(url))
        with _unpacked(file, asked_format, wanted, deadline) as (plain, image):
            yield Source(plain, *_sizes(plain.fileno()), image, actual, origin_of(url))


@contextlib.contextmanager
def _unpacked(
    file: BinaryIO, asked_format: str | None, wanted: str, deadline: Deadline
) -> Iterator[tuple[BinaryIO, image_format.ImageFormat]]:
    """Give the image that a file is, or that is packed in it: that one in a temporary file, gone afterwards.

    Raises VirtfleetError as `image_format.importable` does, and `invalid`, `timeout` or `pool_full`.
    """
    found = image_format.inspect(file, os.fstat(file.fileno()).st_size)
    if found.format not in _READERS:
        yield file, image_format.importable(found, asked_format, wanted)
        return
    with tempfile.TemporaryFile(prefix="virtfleet-image-") as plain:
        file.seek(0)
        try:
            with _READERS[found.format](file) as packed:
                _write_with_holes(packed, plain, wanted, deadline)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            text = f"it is packed ({found.format}) and damaged: {error}"
            raise VirtfleetError(wanted, text, "Fetch the file again.", "invalid") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _no_room(wanted) from error
            text = f"it is packed ({found.format}) and cannot be unpacked: {error}"
            raise VirtfleetError(wanted, text, "Fetch the file again.", "invalid") from error
        size = os.fstat(plain.fileno()).st_size
        yield plain, image_format.importable(image_format.inspect(plain, size), asked_format, wanted)


def _write_with_holes(packed: IO[bytes], plain: BinaryIO, wanted: str, deadline: Deadline) -> None:
    """Write what is unpacked. Zeros take no room: most of a disk is empty, and of a file that is made to fill ours."""
    zeros = bytes(_CHUNK_BYTES)
    while part := packed.read(_CHUNK_BYTES):
        if part == zeros[: len(part)]:
            plain.seek(len(part), os.SEEK_CUR)
        else:
            plain.write(part)
        if deadline.passed:
            text = f"unpacking it took longer than {deadline.seconds:g} s"
            raise VirtfleetError(wanted, text, "Allow more time with the option timeout.", "timeout")
    plain.truncate()
    plain.flush()


def _no_room(wanted: str) -> VirtfleetError:
    text = f"there is no room for it in {tempfile.gettempdir()} where the module runs"
    return VirtfleetError(wanted, text, "Set TMPDIR to a folder with more room.", "pool_full")


def _sizes(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, min(status.st_size, status.st_blocks * 512)  # POSIX leaves the unit open, Linux has 512


def _fetch(url: str, file: IO[bytes], wanted: str, deadline: Deadline) -> str:
    """Write what the server sends into `file` and return its checksum."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)  # and none for file: or ftp:, to which a server could redirect us
    origin = origin_of(url)
    request = urllib.request.Request(url, headers={"User-Agent": "virtfleet"})  # noqa: S310 -- by check_url
    try:
        with opener.open(request, timeout=min(_SOCKET_SECONDS, max(deadline.left(), 0.1))) as answer:
            if answer is None:
                raise VirtfleetError(wanted, f"{origin} leads to something else than http", "", "invalid")
            expected = answer.headers.get("Content-Length")
            received = 0

            def read(count: int) -> bytes:
                nonlocal received
                part: bytes = answer.read(count)
                file.write(part)
                received += len(part)
                return part

            checksum = _digest(read, wanted, deadline)
    except urllib.error.HTTPError as error:
        text = f"{origin} answered {error.code} {error.reason}"
        raise VirtfleetError(wanted, text, "Check the URL.", "not_found") from error
    except http.client.HTTPException as error:
        text = f"{origin} sent no usable answer ({error!r})"
        raise VirtfleetError(wanted, text, "Check the URL.", "not_found") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(wanted) from error
        text = f"{origin} could not be fetched: {getattr(error, 'reason', None) or error}"
        raise VirtfleetError(wanted, text, "Check the URL.", "not_found") from error
    if expected is not None and expected.isdecimal() and int(expected) != received:
        text = f"{origin} sent {received} of {expected} bytes"
        raise VirtfleetError(wanted, text, "Try again.", "not_found")
    return checksum


def _digest(read: Callable[[int], bytes], wanted: str, deadline: Deadline) -> str:
    digest: Any = hashlib.sha256()
    while part := read(_CHUNK_BYTES):
        digest.update(part)
        if deadline.passed:
            text = f"reading it took longer than {deadline.seconds:g} s"
            raise VirtfleetError(wanted, text, "Allow more time with the option timeout.", "timeout")
    return f"sha256:{digest.hexdigest()}"


def _compare(actual: str, asked: str | None, wanted: str, origin: str) -> None:
    if asked is not None and actual != asked:
        hint = "Fetch the file again, or correct the checksum."
        raise VirtfleetError(wanted, f"the checksum of {origin} is {actual}, not {asked}", hint, "invalid")
