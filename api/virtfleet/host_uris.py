"""What may name a host: an address, user@address, or a libvirt URI that makes libvirt run or read nothing else."""

import ipaddress
import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from virtfleet.errors import Problem

SCHEMES = frozenset(
    {"qemu", "qemu+tcp", "qemu+tls", "qemu+ssh", "qemu+libssh", "qemu+libssh2", "qemu+unix", "test", "test+tcp"}
)
PARAMETERS = frozenset({"keyfile", "known_hosts", "known_hosts_verify", "sshauth", "no_verify", "pkipath", "mode"})
"""What may follow `?` in a URI. Others (`command`, `netcat`, `socket`) name programs and files that would be run."""
LONGEST_URI = 512
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9_./-]*", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9_./,@-]+", re.ASCII)


def check(text: str) -> str:
    """Return the libvirt URI that `text` means: a URI, an IP address or name, or user@address (over SSH).

    Raises Problem `invalid` for what could make libvirt run or read something else.
    """

    def refuse(why: str) -> Problem:
        shown = repr(text) if len(text) <= 80 and text.isprintable() else f"of {len(text)} characters"
        return Problem(
            "invalid",
            f"The host {shown} cannot be used: {why}.",
            "Give an address, user@address, or a URI such as qemu+ssh://root@10.0.0.5/system or qemu+tls://h1/system.",
            errors=[{"field": "uri", "message": why}],
        )

    if not text or len(text) > LONGEST_URI or not text.isascii() or not text.isprintable() or " " in text:
        raise refuse("it is empty, too long, or holds characters that no address has")
    uri = text if "://" in text or text.startswith(("qemu:", "test:")) else _over_ssh(text)
    try:
        parts = urlsplit(uri)
        fault = _fault_of(parts) or _fault_of_query(parts.query)
    except ValueError as error:
        raise refuse(str(error)) from error
    if fault:
        raise refuse(fault)
    return uri


def _over_ssh(text: str) -> str:
    user, at, address = text.rpartition("@")
    return f"qemu+ssh://{user}{at}{f'[{address}]' if _is_ipv6(address) else address}/system"


def _fault_of(parts: SplitResult) -> str:
    """Return what is wrong with a URI up to its `?`, or nothing."""
    remote = "+" in parts.scheme and parts.scheme != "qemu+unix"
    host, port = parts.hostname or "", parts.port
    faults = {
        f"its kind is not one of {', '.join(sorted(SCHEMES))}": parts.scheme not in SCHEMES,
        "it holds a password or a fragment": bool(parts.fragment) or parts.password is not None,
        "its user is not a user's name": parts.username is not None and not USER.fullmatch(parts.username),
        "its path is not one of libvirt's, such as /system": not _PATH.fullmatch(parts.path) or ".." in parts.path,
        "it names no host": remote and not host,
        "its host is neither a name nor an address": remote and not is_host(host),
        "a local connection names no host": not remote and bool(host or port),
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def _fault_of_query(query: str) -> str:
    for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []:
        if name not in PARAMETERS or not _VALUE.fullmatch(value) or value.startswith("-"):
            return f"of what may follow '?', only {', '.join(sorted(PARAMETERS))} with plain values are allowed"
    return ""


def is_host(text: str) -> bool:
    """Tell whether this is the name or the address of a host."""
    return bool(_HOST.fullmatch(text)) or _is_ipv6(text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def name_from(uri: str) -> str:
    """Return the name of a host that was given none: what its URI calls it."""
    host = urlsplit(uri).hostname
    return host.replace(":", "-") if host else "localhost"
