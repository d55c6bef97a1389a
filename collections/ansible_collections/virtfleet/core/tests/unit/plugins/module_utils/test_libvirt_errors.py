# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils import errors
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate


def libvirt_error(
    number: int, domain: int = libvirt.VIR_FROM_QEMU, int1: int = -1, text: str = "irrelevant"
) -> Exception:
    error = libvirt.libvirtError(text)
    error.err = (number, domain, text, libvirt.VIR_ERR_ERROR, None, None, None, int1, -1)
    return error


def test_an_error_reads_as_sentences() -> None:
    error = VirtfleetError("start vm web1", "the pool is full.", "Free some space.", "pool_full")
    assert str(error) == "Failed to start vm web1: the pool is full. Free some space."
    assert error.as_dict() == {
        "code": "pool_full",
        "wanted": "start vm web1",
        "obstacle": "the pool is full",
        "hint": "Free some space.",
    }


def test_an_unknown_code_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="not one of"):
        raise VirtfleetError("a", "b", "c", "no_such_code")


@pytest.mark.parametrize(("name", "code"), sorted(errors._CODE_BY_NAME.items()))
def test_every_number_of_the_table_is_known_to_libvirt_and_translated(name: str, code: str) -> None:
    assert code_of(libvirt_error(getattr(libvirt, name))) == code
    assert code in errors.CODES


@pytest.mark.parametrize(
    ("number", "domain", "int1", "code"),
    [
        # Seen on a host stopped by SIGSTOP in mid-call.
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, -1, "host_frozen"),
        # Seen: connection refused, no route, end of file after the daemon was killed.
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.ECONNREFUSED, "host_unreachable"),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.EIO, "host_unreachable"),
        # Seen in a full pool: at allocation and in the stream.
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, errno.ENOSPC, "pool_full"),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STREAMS, errno.ENOSPC, "pool_full"),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_NONE, errno.ENOENT, "not_found"),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_NONE, 0, "internal"),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, -1, "internal"),
        (12345, libvirt.VIR_FROM_QEMU, -1, "internal"),
    ],
)
def test_the_domain_and_the_errno_count_too(number: int, domain: int, int1: int, code: str) -> None:
    assert code_of(libvirt_error(number, domain, int1)) == code


@pytest.mark.parametrize("text", ["No space left on device", "timed out", "not found", "already exists", ""])
def test_the_text_of_a_message_never_decides(text: str) -> None:
    assert code_of(libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, text=text)) == "internal"


def test_a_translated_error_is_one_line_with_a_hint() -> None:
    error = translate(libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, text="qemu said:\nno\n"), "start vm web1")
    assert str(error) == "Failed to start vm web1: qemu said: no. See the log of the libvirt daemon on the host."
