# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import lzma
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.image_source import (
    Source,
    check_checksum,
    check_url,
    download,
    local_file,
    origin_of,
)
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

DISK = (b"\0" * 510 + b"\x55\xaa").ljust(1024 * 1024, b"x")
CHECKSUM = "sha256:" + hashlib.sha256(DISK).hexdigest()
WANTED = "import image x"


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/to-file", "/to-ftp", "/to-disk"):
            self.send_response(302)
            targets = {"/to-file": "file:///etc/passwd", "/to-ftp": "ftp://127.0.0.1/x", "/to-disk": "/disk"}
            self.send_header("Location", targets[path])
            self.end_headers()
        elif path == "/disk":
            self.answer(DISK, len(DISK))
        elif path == "/cut":
            self.answer(DISK[:1000], len(DISK))
        elif path == "/silent":
            time.sleep(2)
        else:
            self.send_error(404)

    def answer(self, data: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def fetch(url: str, checksum: str | None = None, seconds: float = 10) -> Source:
    with download(url, asked_format=None, checksum=checksum, wanted=WANTED, deadline=Deadline(seconds)) as source:
        source.file.seek(0)
        assert source.file.read() == DISK
        return source


@pytest.mark.parametrize("path", ["/disk", "/to-disk", "/disk?token=secret"])
def test_a_url_is_fetched_and_measured(server: str, path: str) -> None:
    source = fetch(server + path, CHECKSUM)
    assert (source.size_bytes, source.checksum, source.image.format) == (len(DISK), CHECKSUM, "raw")
    assert "secret" not in source.origin


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/nothing", "not_found", "answered 404"),
        ("/cut", "not_found", "1000 of 1048576 bytes"),
        # A server must not make us read our own files.
        ("/to-file", "not_found", "answered 302"),
        ("/to-ftp", "not_found", ""),
    ],
)
def test_what_cannot_be_fetched_says_why(server: str, path: str, code: str, words: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        fetch(server + path)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_a_silent_server_is_given_up(server: str) -> None:
    began = time.monotonic()
    with pytest.raises(VirtfleetError):
        fetch(server + "/silent", seconds=0.3)
    assert time.monotonic() - began < 1.5


def test_a_wrong_checksum_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(DISK)
    wrong = "sha256:" + "0" * 64
    with pytest.raises(VirtfleetError, match=CHECKSUM):
        fetch(server + "/disk", wrong)
    with (
        pytest.raises(VirtfleetError, match=CHECKSUM),
        local_file(str(tmp_path / "disk.img"), asked_format=None, checksum=wrong, wanted=WANTED, deadline=Deadline(5)),
    ):
        pass


def test_a_local_file_is_measured_without_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DISK)
    os.truncate(path, 2**26)
    with local_file(str(path), asked_format=None, checksum=None, wanted=WANTED, deadline=Deadline(60)) as source:
        assert source.size_bytes == 2**26
        assert len(DISK) <= source.data_bytes < 2 * len(DISK)
        assert source.origin == "disk.img"


def test_what_is_not_a_readable_file_says_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {
        str(tmp_path / "nothing"): "not_found",
        str(tmp_path): "invalid",
        str(tmp_path / "pipe"): "invalid",
        "/dev/zero": "invalid",
        "a\0b": "not_found",
        "x" * 5000: "not_found",
    }
    for path, code in cases.items():
        with (
            pytest.raises(VirtfleetError) as caught,
            local_file(path, asked_format=None, checksum=None, wanted=WANTED, deadline=Deadline(5)),
        ):
            pass
        assert caught.value.code == code, path


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "x",
            "file:///etc/passwd",
            "ftp://host/x",
            "http://",
            "http:///x",
            "http://h/\n",
            "http://h/ x",
            "http://ä/x",
        ),
        *("http://h:99999/x", "http://user@h/x", "http://user:pass@h/x", "http://[/x", "http://h/\0"),
    ],
)
def test_a_url_that_is_not_plain_http_is_refused(url: str) -> None:
    with pytest.raises(VirtfleetError) as caught:
        check_url(url)
    assert caught.value.code == "invalid"
    assert "user:pass" not in str(caught.value)


def test_what_is_kept_of_a_url_holds_no_token() -> None:
    assert origin_of("https://h/x.qcow2?token=t#f") == "https://h/x.qcow2"


def test_a_checksum_has_one_form() -> None:
    assert check_checksum(" SHA256:" + "AB" * 32) == "sha256:" + "ab" * 32
    for text in ("", "sha256:", "ab" * 32, "md5:" + "0" * 32, "sha256:" + "g" * 64, "sha256:" + "0" * 64 + "\0"):
        with pytest.raises(VirtfleetError):
            check_checksum(text)


def opened(path: Path, checksum: str | None = None) -> AbstractContextManager[Source]:
    return local_file(str(path), asked_format=None, checksum=checksum, wanted=WANTED, deadline=Deadline(60))


PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}


@pytest.mark.parametrize("ending", PACKERS)
def test_what_is_packed_is_unpacked_and_known_by_the_checksum_that_its_publisher_tells(
    tmp_path: Path, ending: str
) -> None:
    disk = DISK + bytes(64 * 1024 * 1024)
    packed = tmp_path / f"disk.img.{ending}"
    packed.write_bytes(PACKERS[ending](disk))
    checksum = "sha256:" + hashlib.sha256(packed.read_bytes()).hexdigest()
    with opened(packed, checksum=checksum) as source:
        source.file.seek(0)
        assert source.file.read() == disk
        assert (source.size_bytes, source.image.format, source.checksum) == (len(disk), "raw", checksum)
        assert source.data_bytes < 8 * 1024 * 1024, "zeros take no room"


@pytest.mark.parametrize("ending", PACKERS)
def test_what_is_packed_and_damaged_or_packed_twice_is_refused(tmp_path: Path, ending: str) -> None:
    packed = tmp_path / f"disk.img.{ending}"
    packed.write_bytes(PACKERS[ending](os.urandom(4096) + DISK)[:2000])
    with pytest.raises(VirtfleetError, match="damaged"), opened(packed):
        pass
    packed.write_bytes(gzip.compress(PACKERS[ending](DISK)))
    with pytest.raises(VirtfleetError, match="Unpack it first"), opened(packed):
        pass


def test_a_backing_file_is_found_in_what_is_packed_too(tmp_path: Path) -> None:
    # The beginning of a qcow2 header: version 2, a backing file's name of 4 bytes at 72, clusters of 64 KiB, 1 MiB.
    header = struct.pack(">4sIQIIQI", b"QFI\xfb", 2, 72, 4, 16, 2**20, 0)
    (tmp_path / "overlay.gz").write_bytes(gzip.compress(header.ljust(72, b"\0") + b"base"))
    with pytest.raises(VirtfleetError) as caught, opened(tmp_path / "overlay.gz"):
        pass
    assert caught.value.code == "refused"
