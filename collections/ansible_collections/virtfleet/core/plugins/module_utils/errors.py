# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of the collection, and the one place where libvirt's error codes get a meaning."""

from __future__ import annotations

import errno
from typing import Any

try:
    import libvirt
except ImportError:
    libvirt = None  # then there is no error of libvirt's to translate either

CODES = frozenset(
    {
        "host_unreachable",
        "host_frozen",
        "timeout",
        "not_found",
        "already_exists",
        "pool_full",
        "image_missing",
        "invalid",
        "refused",
        "internal",
    }
)

# libvirt's error codes by name (their numbers never change; the names say more), grouped by what they mean to us.
_NAMES_BY_CODE: dict[str, tuple[str, ...]] = {
    "not_found": (
        "VIR_ERR_NO_DOMAIN",
        "VIR_ERR_NO_NETWORK",
        "VIR_ERR_NO_STORAGE_POOL",
        "VIR_ERR_NO_STORAGE_VOL",
        "VIR_ERR_NO_NODE_DEVICE",
        "VIR_ERR_NO_INTERFACE",
        "VIR_ERR_NO_NWFILTER",
        "VIR_ERR_NO_SECRET",
        "VIR_ERR_NO_DOMAIN_SNAPSHOT",
        "VIR_ERR_NO_DOMAIN_CHECKPOINT",
        "VIR_ERR_NO_DOMAIN_BACKUP",
        "VIR_ERR_NO_DOMAIN_METADATA",
        "VIR_ERR_NO_NETWORK_PORT",
        "VIR_ERR_NO_NWFILTER_BINDING",
        "VIR_ERR_DEVICE_MISSING",
    ),
    "already_exists": (
        "VIR_ERR_DOM_EXIST",
        "VIR_ERR_NETWORK_EXIST",
        "VIR_ERR_STORAGE_VOL_EXIST",
        "VIR_ERR_STORAGE_POOL_BUILT",
        "VIR_ERR_NETWORK_PORT_EXIST",
    ),
    "timeout": ("VIR_ERR_OPERATION_TIMEOUT", "VIR_ERR_AGENT_UNRESPONSIVE", "VIR_ERR_AGENT_UNSYNCED"),
    "host_unreachable": (
        "VIR_ERR_NO_CONNECT",
        "VIR_ERR_NO_SERVER",
        "VIR_ERR_NO_HOSTNAME",
        "VIR_ERR_UNKNOWN_HOST",
        "VIR_ERR_GNUTLS_ERROR",
        "VIR_ERR_SSH",
        "VIR_ERR_LIBSSH",
        "VIR_ERR_RPC",
    ),
    "invalid": (
        "VIR_ERR_INVALID_ARG",
        "VIR_ERR_XML_ERROR",
        "VIR_ERR_XML_DETAIL",
        "VIR_ERR_XML_INVALID_SCHEMA",
        "VIR_ERR_INVALID_MAC",
        "VIR_ERR_OS_TYPE",
        "VIR_ERR_NO_NAME",
        "VIR_ERR_NO_OS",
        "VIR_ERR_OVERFLOW",
        "VIR_ERR_PARSE_FAILED",
    ),
    "refused": (
        "VIR_ERR_OPERATION_INVALID",
        "VIR_ERR_OPERATION_DENIED",
        "VIR_ERR_OPERATION_UNSUPPORTED",
        "VIR_ERR_OPERATION_ABORTED",
        "VIR_ERR_CONFIG_UNSUPPORTED",
        "VIR_ERR_ARGUMENT_UNSUPPORTED",
        "VIR_ERR_NO_SUPPORT",
        "VIR_ERR_ACCESS_DENIED",
        "VIR_ERR_AUTH_FAILED",
        "VIR_ERR_AUTH_CANCELLED",
        "VIR_ERR_AUTH_UNAVAILABLE",
        "VIR_ERR_RESOURCE_BUSY",
        "VIR_ERR_BLOCK_COPY_ACTIVE",
        "VIR_ERR_MIGRATE_UNSAFE",
        "VIR_ERR_SNAPSHOT_REVERT_RISKY",
        "VIR_ERR_CHECKPOINT_INCONSISTENT",
        "VIR_ERR_CPU_INCOMPATIBLE",
    ),
}
_CODE_BY_NAME = {name: code for code, names in _NAMES_BY_CODE.items() for name in names}

# For VIR_ERR_SYSTEM_ERROR libvirt carries the errno of the host beside the code.
_CODE_BY_ERRNO = {
    errno.ENOSPC: "pool_full",
    errno.EDQUOT: "pool_full",
    errno.ENOENT: "not_found",
    errno.EEXIST: "already_exists",
    errno.EACCES: "refused",
    errno.EPERM: "refused",
    errno.EROFS: "refused",
    errno.EBUSY: "refused",
    errno.ENOTEMPTY: "refused",
    errno.ETIMEDOUT: "timeout",
}

_HINTS = {
    "host_unreachable": "Check that the host is up, that its libvirt daemon runs and that the URI is right.",
    "host_frozen": "The host's libvirt daemon does not answer: look at it on the host and restart it if it hangs.",
    "timeout": "Try again, or allow more time with the option timeout.",
    "pool_full": "Free some space in the pool, or choose another pool.",
    "internal": "See the log of the libvirt daemon on the host.",
}


class VirtfleetError(Exception):
    """Something that was wanted could not be done.

    `wanted` completes "Failed to …", `obstacle` says what stood in the way and `hint` what to do next, as sentences
    without and with their final full stop. `code` is one of `CODES`. `values` are joined to a module's failed result.
    """

    def __init__(
        self, wanted: str, obstacle: str, hint: str = "", code: str = "internal", values: dict[str, Any] | None = None
    ) -> None:
        if code not in CODES:
            raise ValueError(f"{code!r} is not one of the error codes of this collection")
        super().__init__(wanted, obstacle, hint, code)
        self.wanted = wanted
        self.obstacle = obstacle.rstrip().rstrip(".")
        self.hint = hint
        self.code = code
        self.values = values or {}

    def __str__(self) -> str:
        """Return one or two whole sentences for a person."""
        return f"Failed to {self.wanted}: {self.obstacle}. {self.hint}".rstrip()

    def as_dict(self) -> dict[str, str]:
        """Return the parts under the names of a module's `error`."""
        return {"code": self.code, "wanted": self.wanted, "obstacle": self.obstacle, "hint": self.hint}


def code_of(error: Exception) -> str:
    """Return our code for a `libvirt.libvirtError`, by its numbers alone: texts change with version and language."""
    number, domain = error.get_error_code(), error.get_error_domain()  # type: ignore[attr-defined]
    if domain == libvirt.VIR_FROM_RPC:
        # Raised on this side of the wire. An internal error is the end by keepalive (seen: 1/7 after SIGSTOP).
        if number == libvirt.VIR_ERR_INTERNAL_ERROR:
            return "host_frozen"
        if number == libvirt.VIR_ERR_SYSTEM_ERROR:
            return "host_unreachable"
    if number == libvirt.VIR_ERR_SYSTEM_ERROR:
        return _CODE_BY_ERRNO.get(error.get_int1(), "internal")  # type: ignore[attr-defined]
    for name, code in _CODE_BY_NAME.items():
        if getattr(libvirt, name, None) == number:
            return code
    return "internal"


def translate(error: Exception, wanted: str, hint: str = "") -> VirtfleetError:
    """Return the `VirtfleetError` that says the same as a `libvirt.libvirtError` met while doing `wanted`.

    Use as `raise translate(error, "start vm web1") from error`.
    """
    code = code_of(error)
    text = " ".join((error.get_error_message() or str(error)).split())  # type: ignore[attr-defined]
    return VirtfleetError(wanted, text, hint or _HINTS.get(code, ""), code)
