# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud-init's NoCloud seed: three files in an ISO 9660 image with Joliet names, labelled `cidata`.

Formats: ECMA-119 (ISO 9660), the Joliet specification; cloud-init's NoCloud data source, network config version 2.
"""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

LABEL = "cidata"
SECTOR = 2048
_FIRST_DESCRIPTOR = 16
_ROOTS = (23, 24)
_FIRST_FILE = 25
_LEAST_SECTORS = 64
"""Programs that look for labels (busybox's findfs) read 68 KiB at once, and give up on a disk that is smaller."""
_MOMENT = bytes([100, 1, 1, 0, 0, 0, 0])
"""2000-01-01: an image of equal content is equal."""
_NO_MOMENT = b"0" * 16 + b"\0"
_NOT_PLAIN_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What YAML does not read as it stands (its section 5.1), or takes for the end of a line."""


@dataclass(frozen=True)
class Nic:
    """How a card is set up inside the machine. `address` has its prefix length; None is DHCP."""

    mac: str
    address: str | None = None
    gateway: str | None = None
    dns: tuple[str, ...] = ()


def files(
    *, instance_id: str, hostname: str, ssh_keys: Sequence[str], user_data: str | None, nics: Sequence[Nic]
) -> dict[str, bytes]:
    """Return the seed's files by name. Raises VirtfleetError `invalid` for addresses that are none."""
    meta: dict[str, Any] = {"instance-id": instance_id, "local-hostname": hostname}
    if ssh_keys:
        meta["public-keys"] = list(ssh_keys)
    content = {
        "meta-data": _yaml(meta),
        # Without user data cloud-init still wants the file.
        "user-data": user_data if user_data is not None else "#cloud-config\n",
    }
    if nics:
        content["network-config"] = _yaml(network_config(nics))
    return {name: text.encode("utf-8", "surrogatepass") for name, text in content.items()}


def network_config(nics: Sequence[Nic]) -> dict[str, Any]:
    """Return network config version 2; cards are recognized by their MAC."""
    ethernets: dict[str, Any] = {}
    for number, nic in enumerate(nics):
        card: dict[str, Any] = {"match": {"macaddress": nic.mac.lower()}, "set-name": f"eth{number}"}
        if nic.address is None:
            card["dhcp4"] = True
        else:
            card["addresses"] = [_interface(nic.address)]
            if nic.gateway:
                card["gateway4"] = _address(nic.gateway)
        if nic.dns:
            card["nameservers"] = {"addresses": [_address(each) for each in nic.dns]}
        ethernets[f"eth{number}"] = card
    return {"version": 2, "ethernets": ethernets}


def _interface(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text)) if "/" in text else _refuse(text)
    except ValueError:
        return _refuse(text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return _refuse(text)


def _refuse(text: str) -> str:
    wanted = f"give a machine the address {text[:60]!r}"
    raise VirtfleetError(wanted, "it is not one", "Write it like 10.0.0.5/24, gateways without the /24.", "invalid")


def _yaml(values: Mapping[str, Any]) -> str:
    return "\n".join(_block(values, "")) + "\n"


def _block(value: Any, indent: str) -> list[str]:
    """Return plain block YAML; every text is a JSON string, which YAML reads as the same text."""
    lines: list[str] = []
    for key, each in value.items():
        if isinstance(each, Mapping):
            lines += [f"{indent}{key}:", *_block(each, indent + "  ")]
        elif isinstance(each, list):
            lines += [f"{indent}{key}:", *(f"{indent}  - {_quoted(item)}" for item in each)]
        else:
            lines.append(f"{indent}{key}: {_quoted(each)}")
    return lines


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_PLAIN_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def image(content: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 image with these files in its root, their names as given (Joliet)."""
    placed: list[tuple[str, int, bytes]] = []
    sector = _FIRST_FILE
    for name, data in sorted(content.items()):
        placed.append((name, sector, data))
        sector += max(1, _sectors(data))
    sector = max(sector, _LEAST_SECTORS)
    roots = [
        _directory(_ROOTS[0], [(_plain(name), where, data) for name, where, data in placed]),
        _directory(_ROOTS[1], [(_joliet(name), where, data) for name, where, data in sorted(placed)]),
    ]
    parts = {
        _FIRST_DESCRIPTOR: _descriptor(1, sector, path_tables=(19, 20), root=_ROOTS[0]),
        _FIRST_DESCRIPTOR + 1: _descriptor(2, sector, path_tables=(21, 22), root=_ROOTS[1]),
        _FIRST_DESCRIPTOR + 2: b"\xffCD001\x01",
        19: _path_table("<", _ROOTS[0]),
        20: _path_table(">", _ROOTS[0]),
        21: _path_table("<", _ROOTS[1]),
        22: _path_table(">", _ROOTS[1]),
        _ROOTS[0]: roots[0],
        _ROOTS[1]: roots[1],
        **{where: data for _name, where, data in placed},
    }
    result = bytearray(sector * SECTOR)
    for where, data in parts.items():
        result[where * SECTOR : where * SECTOR + len(data)] = data
    return bytes(result)


def _sectors(data: bytes) -> int:
    return -(-len(data) // SECTOR)


def _both(form: str, value: int) -> bytes:
    """Return a number in both byte orders, as ISO 9660 wants most of them."""
    return struct.pack("<" + form, value) + struct.pack(">" + form, value)


def _plain(name: str) -> bytes:
    return "".join(c if c.isalnum() else "_" for c in name.upper()).encode("ascii")[:30] + b";1"


def _joliet(name: str) -> bytes:
    return name.encode("utf-16-be")


def _record(name: bytes, where: int, size: int, *, directory: bool) -> bytes:
    padding = b"\0" if len(name) % 2 == 0 else b""
    length = 33 + len(name) + len(padding)
    head = struct.pack("BB", length, 0) + _both("I", where) + _both("I", size) + _MOMENT
    return head + struct.pack("BBB", 2 if directory else 0, 0, 0) + _both("H", 1) + bytes([len(name)]) + name + padding


def _directory(where: int, entries: Sequence[tuple[bytes, int, bytes]]) -> bytes:
    records = [_record(name, where, SECTOR, directory=True) for name in (b"\0", b"\1")]
    records += [_record(name, sector, len(data), directory=False) for name, sector, data in sorted(entries)]
    return b"".join(records).ljust(SECTOR, b"\0")


def _path_table(order: str, root: int) -> bytes:
    return struct.pack(f"{order}BBIH", 1, 0, root, 1) + b"\0\0"


def _descriptor(kind: int, sectors: int, *, path_tables: tuple[int, int], root: int) -> bytes:
    joliet = kind == 2

    def text(value: str, length: int) -> bytes:
        if joliet:
            return value.encode("utf-16-be").ljust(length - length % 2, b"\0").ljust(length, b"\0")
        return value.encode("ascii").ljust(length, b" ")

    escapes = b"%/E" if joliet else b""
    return b"".join(
        (
            struct.pack("B5sBB", kind, b"CD001", 1, 0),
            text("", 32),
            text(LABEL, 32),
            bytes(8),
            _both("I", sectors),
            escapes.ljust(32, b"\0"),
            _both("H", 1),
            _both("H", 1),
            _both("H", SECTOR),
            _both("I", 10),
            struct.pack("<II", path_tables[0], 0),
            struct.pack(">II", path_tables[1], 0),
            _record(b"\0", root, SECTOR, directory=True),
            *(text("", length) for length in (128, 128, 128, 128, 37, 37, 37)),
            _NO_MOMENT * 4,
            b"\1",
        )
    )
