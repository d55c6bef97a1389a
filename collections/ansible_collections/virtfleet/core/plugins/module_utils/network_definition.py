# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of a libvirt network: as options, as data that can be compared, and as XML. Pure."""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import check_name, shown

MODES = ("nat", "routed", "isolated", "bridge")
_FORWARD = {"nat": "nat", "routed": "route", "isolated": None, "bridge": "bridge"}
_MODE = {forward: mode for mode, forward in _FORWARD.items()}
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)  # the kernel takes 15 bytes
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_DOMAIN = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,10}", re.ASCII)


def definition_of(root: ET.Element) -> dict[str, Any]:
    """Return the part of a `<network>` element that module network is about."""
    forward, bridge, domain = root.find("forward"), root.find("bridge"), root.find("domain")
    mode = forward.get("mode", "nat") if forward is not None else None
    first = next((ip for ip in root.iterfind("ip") if ip.get("family", "ipv4") == "ipv4"), None)
    address, dhcp = None, None
    if first is not None:
        prefix = first.get("prefix") or first.get("netmask") or "32"
        address = ipaddress.ip_interface(f"{first.get('address')}/{prefix}").with_prefixlen
        dhcp = _dhcp_of(first)
    return {
        "mode": _MODE.get(mode, mode),
        "bridge": bridge.get("name") if bridge is not None else None,
        "address": address,
        "domain": domain.get("name") if domain is not None else None,
        "dhcp": dhcp,
        "dns": _sorted_names(
            {"address": host.get("ip"), "names": [name.text for name in host.iterfind("hostname")]}
            for host in root.iterfind("dns/host")
        ),
    }


def _sorted_names(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return entries of DNS in the one order that they are compared in."""
    return sorted(({**each, "names": sorted(each["names"])} for each in entries), key=lambda each: str(each["address"]))


def network_xml(name: str, definition: dict[str, Any], uuid: str | None = None) -> str:
    """Return the `<network>` document of a definition as `definition_of` reads it."""
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    if uuid:
        ET.SubElement(root, "uuid").text = uuid
    forward = _FORWARD[definition["mode"]]
    if forward:
        ET.SubElement(root, "forward", mode=forward)
    if definition["bridge"]:
        ET.SubElement(root, "bridge", name=definition["bridge"])
    if definition["domain"]:
        ET.SubElement(root, "domain", name=definition["domain"])
    if definition["dns"]:
        ET.SubElement(root, "dns").extend(names_element(each) for each in definition["dns"])
    if definition["address"]:
        interface = ipaddress.ip_interface(definition["address"])
        ip = ET.SubElement(root, "ip", address=str(interface.ip), prefix=str(interface.network.prefixlen))
        if definition["dhcp"]:
            dhcp = ET.SubElement(ip, "dhcp")
            if definition["dhcp"]["start"]:
                ET.SubElement(dhcp, "range", start=definition["dhcp"]["start"], end=definition["dhcp"]["end"])
            dhcp.extend(host_element(host) for host in definition["dhcp"]["hosts"])
    return ET.tostring(root, encoding="unicode")


def wanted_definition(
    name: str,
    mode: str,
    *,
    bridge: str | None = None,
    address: str | None = None,
    domain: str | None = None,
    dhcp: dict[str, Any] | None = None,
    dns: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the definition that the options of module network ask for. Raises VirtfleetError `invalid`."""

    def wrong(text: str, hint: str) -> VirtfleetError:
        return VirtfleetError(f"define network {name}", text, hint, "invalid")

    if bridge is not None and not _BRIDGE.fullmatch(bridge):
        raise wrong(f"{shown(bridge)} cannot be a bridge", "Use at most 15 letters, digits, '-', '_' and '.'.")
    if domain is not None and not _DOMAIN.fullmatch(domain):
        raise wrong(f"{shown(domain)} cannot be a DNS domain", "Write it like lab.example.")
    if mode == "bridge":
        if bridge is None or address or dhcp or domain or dns:
            hint = "Give bridge, and leave out address, dhcp, domain and dns: what serves that bridge decides them."
            raise wrong("mode bridge is about an existing bridge of the host and nothing else", hint)
        return {"mode": mode, "bridge": bridge, "address": None, "domain": None, "dhcp": None, "dns": []}
    if address is None:
        if mode != "isolated" or dhcp or dns:
            raise wrong("it has no address", "Give the host's own address in it, such as 192.168.100.1/24.")
        return {"mode": mode, "bridge": bridge, "address": None, "domain": domain, "dhcp": None, "dns": []}
    try:
        interface = ipaddress.IPv4Interface(address)
    except ValueError as error:
        raise wrong(f"{shown(address)} is no address ({error})", "Write it like 192.168.100.1/24.") from None
    inside = interface.network
    if (
        "/" not in address
        or inside.prefixlen > 30
        or interface.ip in (inside.network_address, inside.broadcast_address)
    ):
        hint = "Give the host's own address in the network with its prefix length, such as 192.168.100.1/24."
        raise wrong(f"{address} is not the address of a host in a network", hint)
    checked = _checked_dhcp(interface, dhcp, wrong) if dhcp else None
    return {
        "mode": mode,
        "bridge": bridge,
        "address": interface.with_prefixlen,
        "domain": domain,
        "dhcp": checked,
        "dns": _checked_dns(dns or [], wrong),
    }


def _dhcp_of(ip: ET.Element) -> dict[str, Any] | None:
    dhcp = ip.find("dhcp")
    if dhcp is None:
        return None
    span = dhcp.find("range")
    hosts = [
        {"mac": (host.get("mac") or "").lower(), "address": host.get("ip"), "name": host.get("name")}
        for host in dhcp.iterfind("host")
    ]
    return {
        "start": span.get("start") if span is not None else None,
        "end": span.get("end") if span is not None else None,
        "hosts": sorted(hosts, key=lambda host: str(host["mac"])),
    }


def _checked_dhcp(
    interface: ipaddress.IPv4Interface, dhcp: dict[str, Any], wrong: Callable[[str, str], VirtfleetError]
) -> dict[str, Any] | None:
    def inside(text: str) -> str:
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            raise wrong(f"{shown(text)} is no IPv4 address", "Correct the option dhcp.") from None
        if address not in interface.network or address == interface.ip:
            hint = f"Use addresses of {interface.network} other than {interface.ip}."
            raise wrong(f"{text} cannot be given to a machine of it", hint)
        return str(address)

    start, end = dhcp.get("start"), dhcp.get("end")
    if (start is None) != (end is None):
        raise wrong("dhcp has only one end of its range", "Give both start and end, or neither.")
    if (
        start is not None
        and end is not None
        and ipaddress.IPv4Address(inside(start)) > ipaddress.IPv4Address(inside(end))
    ):
        raise wrong("the range of dhcp ends before it starts", "Correct start and end.")
    hosts = []
    for host in dhcp.get("hosts") or []:
        mac = host["mac"].lower()
        if not _MAC.fullmatch(mac):
            raise wrong(f"{shown(mac)} is no MAC address", "Write it like 52:54:00:12:34:56.")
        if host.get("name") is not None:
            check_name(host["name"], "dhcp host")
        hosts.append({"mac": mac, "address": inside(host["address"]), "name": host.get("name")})
    for key in ("mac", "address"):
        if len({host[key] for host in hosts}) != len(hosts):
            raise wrong(f"two entries of dhcp.hosts have the same {key}", "Each must have its own.")
    if start is None and not hosts:
        return None  # libvirt keeps nothing of a service that gives nothing
    return {"start": start, "end": end, "hosts": sorted(hosts, key=lambda host: str(host["mac"]))}


def _checked_dns(dns: list[dict[str, Any]], wrong: Callable[[str, str], VirtfleetError]) -> list[dict[str, Any]]:
    entries = []
    for entry in dns:
        try:
            address = str(ipaddress.IPv4Address(entry["address"]))
        except ValueError:
            raise wrong(f"{shown(entry['address'])} is no IPv4 address", "Correct the option dns.") from None
        for name in entry["names"]:
            if not _DOMAIN.fullmatch(name):
                raise wrong(f"{shown(name)} cannot be a name in DNS", "Write it like db1 or db1.lab.example.")
        if not entry["names"]:
            raise wrong(f"{address} has no names", "Give at least one, or leave the entry out.")
        entries.append({"address": address, "names": sorted(set(entry["names"]))})
    for what, values in (
        ("address", [each["address"] for each in entries]),
        ("name", [name for each in entries for name in each["names"]]),
    ):
        if len(set(values)) != len(values):
            raise wrong(f"two entries of dns have the same {what}", "Each must have its own.")
    return _sorted_names(entries)


def names_element(entry: dict[str, Any]) -> ET.Element:
    """Return the element of an address with its names."""
    element = ET.Element("host", ip=entry["address"])
    for name in entry["names"]:
        ET.SubElement(element, "hostname").text = name
    return element


def host_element(host: dict[str, Any]) -> ET.Element:
    """Return the element of a reserved address."""
    attributes = {"mac": host["mac"], "ip": host["address"]}
    if host["name"]:
        attributes["name"] = host["name"]
    return ET.Element("host", attributes)
