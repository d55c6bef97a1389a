"""A wire between virtfleet and one libvirtd, with a knife: it acts at the n-th call that changes the host.

What is called is read from libvirt's own messages: length, program, version, procedure, kind, serial (four bytes each).
The numbers of the procedures are not known here but learnt: by calls of a module whose names are known.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.lab.every_step import watched
from tests.lab.test_storage_modules import call

REMOTE = 0x20008086
"""The program of libvirt's calls; keepalive and others have their own."""
CALL, REPLY = 0, 1
HEADER = struct.Struct(">IIIIII")


class Proxy:
    """Listens on loopback and speaks with the host on behalf of whoever connects."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._guard = threading.Lock()
        self._learning: list[int] | None = None
        self._changing: set[int] = set()
        self._left = 0
        self._when = "before"
        self._act: Callable[[], None] | None = None
        self.uri = f"qemu+tcp://127.0.0.1:{self._server.getsockname()[1]}/system"
        self.acted = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def learn(self, module: str, **options: Any) -> None:
        """Call a module through this wire, and note the procedures of its changing calls."""

        def happens(when: str, _number: int, _name: str) -> None:
            if when == "before":
                self._learning = []
            else:
                self._changing |= set(self._learning or [])
                self._learning = None

        with watched(happens):
            call(module, self.uri, **options)

    def arm(self, number: int, when: str, act: Callable[[], None]) -> None:
        """At the changing call of that number from now on (1 = the next), before it or after its answer, do `act`.

        The connection is cut then: before, the host never hears the call; after, nobody hears the answer.
        """
        assert self._changing
        with self._guard:
            self._left, self._when, self._act = number, when, act
            self.acted.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        awaited: list[int] = []
        ends = (client, server)
        threading.Thread(target=self._pass, args=(server, client, ends, awaited), daemon=True).start()
        self._pass(client, server, ends, awaited)

    def _pass(
        self, source: socket.socket, sink: socket.socket, ends: tuple[socket.socket, socket.socket], awaited: list[int]
    ) -> None:
        """Pass messages on until an end hangs up, or until it is time to act."""
        with suppress(OSError):
            for message in _messages(source):
                if self._is_the_one(message, awaited):
                    act, self._act = self._act, None
                    if act is not None:
                        act()
                    break
                sink.sendall(message)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        if awaited and self._act is None:
            self.acted.set()

    def _is_the_one(self, message: bytes, awaited: list[int]) -> bool:
        _length, program, _version, procedure, kind, serial = HEADER.unpack_from(message)
        if program != REMOTE:
            return False
        with self._guard:
            if kind == CALL and self._learning is not None:
                self._learning.append(procedure)
            if kind == CALL and procedure in self._changing and self._left > 0:
                self._left -= 1
                if self._left == 0 and self._act is not None:
                    awaited.append(serial)
                    return self._when == "before"
            return kind == REPLY and serial in awaited and self._act is not None


def _messages(source: socket.socket) -> Iterator[bytes]:
    waiting = b""
    while data := source.recv(1 << 16):
        waiting += data
        while len(waiting) >= HEADER.size and len(waiting) >= (length := HEADER.unpack_from(waiting)[0]):
            yield waiting[:length]
            waiting = waiting[length:]


@contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """A proxy for the length of a block."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
