"""Breaking a module's run at each call that changes a host. The calls are libvirt's own; they are only counted.

As a program: `python -m tests.lab.every_step MODULE URI OPTIONS NUMBER WHEN` ends itself by SIGKILL there.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from tests.lab.test_storage_modules import call

CHANGING = re.compile(
    r"vir(Secret(DefineXML|SetValue|Undefine)|StorageVol(CreateXML(From)?|Upload|Delete|Resize)|Stream(Send|SendAll|Finish)"
    r"|Domain(DefineXML(Flags)?|CreateWithFlags|Resume|Destroy|Undefine(Flags)?|(At|De)tachDeviceFlags|UpdateDeviceFlags"
    r"|Set(VcpusFlags|MemoryFlags|Metadata|BlockIoTune|Autostart)|BlockResize|Rename))"
)
WHEN = ("before", "after")


class _Counted:
    """libvirt's C module, whose changing calls are told to `happens` before and after they are made."""

    def __init__(self, real: Any, happens: Callable[[str, int, str], None]) -> None:
        self._real = real
        self._happens = happens
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._real, name)
        if not CHANGING.fullmatch(name):
            return function

        def counted(*arguments: Any) -> Any:
            self._count += 1
            number = self._count
            self._happens("before", number, name)
            answer = function(*arguments)
            self._happens("after", number, name)
            return answer

        return counted


@contextmanager
def watched(happens: Callable[[str, int, str], None]) -> Iterator[None]:
    """Tell `happens(when, number, name)` of each changing call within the block."""
    real = libvirt.libvirtmod
    libvirt.libvirtmod = _Counted(real, happens)
    try:
        yield
    finally:
        libvirt.libvirtmod = real


@contextmanager
def failing(number: int, when: str) -> Iterator[list[str]]:
    """Let the changing call of that number fail, before it is made or (its answer lost) after; yield their names."""
    names: list[str] = []

    def happens(at: str, reached: int, name: str) -> None:
        if at == "before":
            names.append(name)
        if (at, reached) == (when, number):
            error = libvirt.libvirtError("")
            # It would take the thread's last error, whatever that was about.
            error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_NONE, f"broken {when} {name}", 2, *[None] * 5)
            raise error

    with watched(happens):
        yield names


def main() -> None:
    """Call a module and kill this process at one of its changing calls."""
    module, uri, options, number, when = sys.argv[1:]

    def happens(at: str, reached: int, _name: str) -> None:
        if (at, reached) == (when, int(number)):
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(happens):
        call(module, uri, **json.loads(options))


if __name__ == "__main__":
    main()
