# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of a network filter: as data, as libvirt writes them, and as XML. Pure."""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.names import shown

ACTIONS = ("accept", "drop", "reject", "return", "continue")
DIRECTIONS = ("in", "out", "inout")
DEFAULT_PRIORITY = 500

_ANY = ("match", "comment", "srcmacaddr")
_L2 = (*_ANY, "srcmacmask", "dstmacaddr", "dstmacmask")
_ADDRESSES = ("srcipaddr", "srcipmask", "dstipaddr", "dstipmask")
_PORTS = ("srcportstart", "srcportend", "dstportstart", "dstportend")
_L3 = (*_ANY, *_ADDRESSES, "dscp")
_V4 = (*_L3, "srcipfrom", "srcipto", "dstipfrom", "dstipto", "connlimit-above", "state")
_ARP = (*_L2, "arpsrcmacaddr", "arpsrcipaddr", "arpdstmacaddr", "arpdstipaddr", "hwtype", "opcode", "protocoltype")
# What a rule can look at, by its protocol: the attributes of libvirt's schema, save those of ipset and of STP, and of
# IPv6 ranges (libvirt 9.0 reads the end of one as an IPv4 address) and TCP flags (which it drops). Ports are for tcp,
# udp and sctp: ip and ipv6 are about the packets below.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "mac": (*_L2, "protocolid"),
    "vlan": (*_L2, "vlanid", "encap-protocol"),
    "arp": (*_ARP, "gratuitous"),
    "rarp": (*_ARP, "gratuitous"),
    "ip": (*_L2, *_ADDRESSES, "protocol", "dscp"),
    "ipv6": (*_L2, *_ADDRESSES, "protocol"),
    **dict.fromkeys(("udp", "sctp"), (*_V4, *_PORTS)),
    "tcp": (*_V4, *_PORTS, "flags"),
    "icmp": (*_V4, "type", "code"),
    **dict.fromkeys(("igmp", "all", "esp", "ah", "udplite"), _V4),
    **dict.fromkeys(("udp-ipv6", "sctp-ipv6", "tcp-ipv6"), (*_L3, *_PORTS)),
    "icmpv6": (*_L3, "type", "code"),
    **dict.fromkeys(("all-ipv6", "esp-ipv6", "ah-ipv6", "udplite-ipv6"), _L3),
}

_ENDS = {"ipto": "ipfrom", "portend": "portstart"}
_ETHER = {"ipv4": 0x800, "arp": 0x806, "rarp": 0x8035, "vlan": 0x8100, "ipv6": 0x86DD}
_IP = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132, "udplite": 136}
_OPCODES = ("Request", "Reply", "Request_Reverse", "Reply_Reverse", "DRARP_Request", "DRARP_Reply", "DRARP_Error")
# What libvirt drops when the other is not given.
NEEDS = {
    **{f"{side}{kind}mask": f"{side}{kind}addr" for side in ("src", "dst") for kind in ("mac", "ip")},
    **{f"{side}{kind}": f"{side}{start}" for side in ("src", "dst") for kind, start in _ENDS.items()},
    "code": "type",
}
# What the opposite of can be matched: of anything else libvirt makes another rule than was meant.
NEGATED = {*_ADDRESSES, *_L2, "protocolid", "vlanid"} - {"match", "comment"}
# What libvirt calls by a name, and writes so when it is given the number.
_NAMES = {
    "protocolid": _ETHER,
    "encap-protocol": _ETHER,
    "protocol": _IP,
    "opcode": {name: number for number, name in enumerate((*_OPCODES, "InARP_Request", "ARP_NAK"), 1)},
}
_STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "NONE")
_LARGEST = {"vlanid": 4095, "dscp": 63, "protocol": 255, "type": 255, "code": 255}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_VARIABLE = re.compile(r"\$[A-Za-z0-9_]{1,32}", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]{1,4}", re.ASCII)
_FLAGS = re.compile(r"[A-Z]{3,4}(,[A-Z]{3,4}){0,5}/[A-Z]{3,4}(,[A-Z]{3,4}){0,5}", re.ASCII)
_LONGEST_COMMENT = 256


def read(root: ET.Element) -> list[dict[str, Any]]:
    """Return the rules and references of a `<filter>`, in their order, as `checked` returns them."""
    found: list[dict[str, Any]] = []
    for each in root:
        if each.tag == "filterref":
            given = [(one.get("name"), one.get("value")) for one in each.iterfind("parameter")]
            parameters = {name: [value for other, value in given if other == name] for name, _value in given}
            found.append({"filter": each.get("filter"), "parameters": parameters})
        elif each.tag == "rule":
            protocol = each[0] if len(each) else None
            others = [{"protocol": other.tag, **other.attrib} for other in each[1:]]  # no rule of ours has any
            found.append(
                {
                    "action": each.get("action"),
                    "direction": each.get("direction"),
                    "priority": int(each.get("priority", DEFAULT_PRIORITY)),
                    "stateful": each.get("statematch", "true") not in ("false", "0"),
                    "protocol": None if protocol is None else protocol.tag,
                    "match": {} if protocol is None else dict(sorted(protocol.attrib.items())),
                    **({"others": others} if others else {}),
                }
            )
    return found


def write(root: ET.Element, rules: list[dict[str, Any]]) -> None:
    """Append rules, as `checked` returns them, to a `<filter>`."""
    for rule in rules:
        if "filter" in rule:
            reference = ET.SubElement(root, "filterref", filter=rule["filter"])
            for name, values in rule["parameters"].items():
                for value in values:
                    ET.SubElement(reference, "parameter", name=name, value=value)
            continue
        element = ET.SubElement(root, "rule", action=rule["action"], direction=rule["direction"])
        element.set("priority", str(rule["priority"]))
        if not rule["stateful"]:
            element.set("statematch", "false")
        if rule["protocol"]:
            ET.SubElement(element, rule["protocol"], rule["match"])


def checked(rules: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    """Return option `rules` as libvirt will keep it. Raises VirtfleetError `invalid`."""
    return [_reference(rule, wanted) if rule["filter"] else _rule(rule, wanted) for rule in rules]


def check_parameters(given: dict[str, Any], wanted: str) -> dict[str, list[str]]:
    """Return the variables that a filter is given, each a list of values. Raises VirtfleetError `invalid`."""
    found = {}
    for name, value in sorted(given.items()):
        values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if not values or not all(re.fullmatch(r"[A-Za-z0-9_.:]{1,64}", each, re.ASCII) for each in [name, *values]):
            text = f"{shown(name)} cannot be given {shown(', '.join(values))}"
            hint = "A parameter has one or more values of letters, digits, '_', '.' and ':'."
            raise VirtfleetError(wanted, text, hint, "invalid")
        found[name] = values
    return found


def _reference(rule: dict[str, Any], wanted: str) -> dict[str, Any]:
    if rule["action"] or rule["direction"] or rule["protocol"] or rule["match"]:
        hint = "Make two entries of it."
        raise VirtfleetError(wanted, "a rule is either one of its own or another filter", hint, "invalid")
    return {
        "filter": check_filter_name(rule["filter"]),
        "parameters": check_parameters(rule["parameters"] or {}, wanted),
    }


def check_filter_name(name: str) -> str:
    """Return the name of a filter, if libvirt's schema takes it. Raises VirtfleetError `invalid`."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9._-]{0,63}", name, re.ASCII):
        hint = "Use 1 to 64 letters, digits, '_', '.' and '-', the first one a letter or '_'."
        text = "it has characters or a length that it cannot have"
        raise VirtfleetError(f"use {shown(name)} as the name of a filter", text, hint, "invalid")
    return name


def _rule(rule: dict[str, Any], wanted: str) -> dict[str, Any]:
    if not rule["action"] or not rule["direction"]:
        hint = "Give both, or filter for what another filter says."
        raise VirtfleetError(wanted, "a rule needs an action and a direction", hint, "invalid")
    if not -1000 <= rule["priority"] <= 1000:
        raise VirtfleetError(wanted, f"{rule['priority']} is no priority", "Use -1000 to 1000.", "invalid")
    if rule["parameters"]:
        raise VirtfleetError(wanted, "parameters are for filters", "Leave them out of a rule.", "invalid")
    protocol, match = rule["protocol"], rule["match"] or {}
    known = ATTRIBUTES[protocol] if protocol else ()
    strange = sorted(set(match) - set(known))
    if strange:
        text = f"{protocol or 'a rule without protocol'} has no {shown(strange[0])}"
        raise VirtfleetError(wanted, text, f"It has {', '.join(known) or 'none'}.", "invalid")
    values = {name: _value(name, str(value), wanted) for name, value in sorted(match.items())}
    for name in values:
        if name in NEEDS and NEEDS[name] not in values:
            text = f"{name} says nothing without {NEEDS[name]}"
            raise VirtfleetError(wanted, text, f"Give {NEEDS[name]} too.", "invalid")
    rest = set(values) - {"match"}
    if values.get("match") == "no" and not (rest and rest <= NEGATED):
        hint = f"With match no, give one or more of {', '.join(sorted(NEGATED))}, and nothing else."
        raise VirtfleetError(wanted, "libvirt cannot match the opposite of that", hint, "invalid")
    return {
        "action": rule["action"],
        "direction": rule["direction"],
        "priority": rule["priority"],
        "stateful": rule["stateful"],
        "protocol": protocol,
        "match": {name: value for name, value in values.items() if (name, value) != ("match", "yes")},
    }


def _value(name: str, text: str, wanted: str) -> str:
    """Return a value as libvirt writes it."""
    found: str | None = None
    if name == "comment":
        fits = len(text) <= _LONGEST_COMMENT and text.isprintable() and "$" not in text
        found = text if text and fits else None
    elif _VARIABLE.fullmatch(text) and name not in ("match", "gratuitous", "state", "flags"):
        found = text
    elif name in ("match", "gratuitous"):
        yes = {"yes": True, "true": True, "no": False, "false": False}.get(text.lower())
        words = ("no", "yes") if name == "match" else ("false", "true")
        found = None if yes is None else words[yes]
    elif "mac" in name:
        found = text.lower() if _MAC.fullmatch(text.lower()) else None
    elif name.endswith("mask"):
        found = _prefix(text)
    elif "ip" in name:
        found = _address(text)
        if name.endswith(("from", "to")) and found and int(ipaddress.ip_address(found)) == 0:
            found = None  # libvirt takes no range that begins or ends with no address
    elif name == "state":
        given = [each.strip() for each in text.split(",")]
        found = ",".join(each for each in _STATES if each in given) if set(given) <= set(_STATES) else None
    elif name == "flags":
        found = text if _FLAGS.fullmatch(text) else None
    else:
        found = _number(name, text)
    if found is None:
        raise VirtfleetError(wanted, f"{shown(text)} cannot be a {name}", "Correct that rule.", "invalid")
    return found


def _prefix(text: str) -> str | None:
    """Return a mask as the length of a prefix."""
    if re.fullmatch("[0-9]{1,3}", text, re.ASCII):
        return str(int(text)) if int(text) <= 128 else None
    try:
        return str(ipaddress.IPv4Network(f"0.0.0.0/{text}").prefixlen)
    except ValueError:
        return None


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _number(name: str, text: str) -> str | None:
    names = _NAMES.get(name, {})
    if text in names:
        return text
    if not _HEX.fullmatch(text) and not re.fullmatch("[0-9]{1,5}", text, re.ASCII):
        return None
    if name == "connlimit-above" and (text.startswith("0x") or int(text) == 0):
        return None
    number = int(text, 0) if text.startswith("0x") else int(text)
    if number > _LARGEST.get(name, 65535):
        return None
    known = next((each for each, value in names.items() if value == number), None)
    return known or (f"0x{number:x}" if text.startswith("0x") else str(number))
