"""Filter for role bridge: what netplan says of cards goes to a file of the role's own, where a bridge or a bond has it.

What the machine's files say of a card is commented out there, line by line, so that it can come back exactly. Each line
tells for which bridge; one without a bridge only held what is commented out now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

OWN = "/etc/netplan/90-virtfleet-"
MARK = re.compile(r"#virtfleet(?: (\S+))?# ")
MOVED = {
    *("accept-ra", "addresses", "critical", "dhcp-identifier", "dhcp4", "dhcp4-overrides", "dhcp6", "dhcp6-overrides"),
    *(
        "gateway4",
        "gateway6",
        "ipv6-address-generation",
        "ipv6-address-token",
        "ipv6-mtu",
        "ipv6-privacy",
        "link-local",
    ),
    *("nameservers", "optional", "optional-addresses", "routes", "routing-policy"),
}
"""What belongs to whoever has the address. The rest is the card's."""


def bridge_netplan(
    files: dict[str, str],
    bridge: str,
    cards: list[str],
    holder: str = "",
    made: dict[str, dict[str, Any]] | None = None,
) -> dict[str, str]:
    """Return netplan's files as they shall be: all those of the machine, and the role's own for this bridge.

    `files` are those that there are. `cards` become ports, so `holder` has their addresses. `made` is netplan's own
    description of the bonds, VLANs and bridges to make, by section; without it the bridge goes.
    """
    cards = [] if made is None else cards
    found: dict[str, dict[str, Any]] = {card: {} for card in cards}
    ids = {card: card for card in cards}
    now = {path: _given_up(path, text, bridge, found, ids) for path, text in files.items() if not path.startswith(OWN)}
    if made is None:
        return now
    moved: dict[str, Any] = {}
    for card in cards:
        moved = moved or {key: value for key, value in found[card].items() if key in MOVED}
    network: dict[str, Any] = {"version": 2, "renderer": "networkd"}
    if cards:
        network["ethernets"] = {
            ids[card]: {key: value for key, value in found[card].items() if key not in MOVED} for card in cards
        }
    for section, links in made.items():
        network[section] = {name: dict(link) for name, link in links.items()}
        for name, link in network[section].items():
            if "interfaces" in link:
                link["interfaces"] = [ids.get(port, port) for port in link["interfaces"]]
            if name == holder:
                network[section][name] = _with(link, moved)
    plain = json.loads(json.dumps({"network": network}))  # Ansible's strings and lists are of types of its own
    text = yaml.safe_dump(plain, sort_keys=False)
    return {**now, f"{OWN}{bridge}.yaml": f"# Made by virtfleet's role bridge.\n{text}"}


def _given_up(path: str, text: str, bridge: str, found: dict[str, dict[str, Any]], ids: dict[str, str]) -> str:
    """Return a machine's file without the cards. What it said goes to `found`, their names there to `ids`."""
    lines = text.splitlines(keepends=True)
    marks = [MARK.match(line) for line in lines]
    lines = [line[mark.end() :] if mark else line for line, mark in zip(lines, marks, strict=True)]
    root = _compose(path, "".join(lines))
    gone: dict[int, str] = {}  # for which bridge an entry is commented out, by its key's identity
    for key, value in _entries(root):
        mark = marks[key.start_mark.line]
        card = _card(key, value)
        if card in found:
            ids[card] = key.value
            _merge(found[card], _plain(value) or {})
            gone[id(key)] = bridge
        elif mark and mark[1] != bridge:
            gone[id(key)] = mark[1]
    if gone:
        _refuse_alias(path, "".join(lines))
        for line, owner in _lines(path, root, gone):
            lines[line] = f"#virtfleet{' ' * bool(owner)}{owner}# {lines[line]}"
    return "".join(lines)


def _with(link: dict[str, Any], moved: dict[str, Any]) -> dict[str, Any]:
    """Return a link with what the cards had; what was asked for otherwise wins."""
    kept = dict(moved)
    if "addresses" in link:
        kept = {key: value for key, value in kept.items() if not key.startswith("dhcp4")}
    if "routes" in link:
        kept.pop("gateway4", None)
        others = [route for route in kept.pop("routes", []) if route.get("to") not in ("default", "0.0.0.0/0")]
        link = {**link, "routes": [*link["routes"], *others]}
    return {**kept, **link}


def _compose(path: str, text: str) -> Any:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)  # to netplan all is text: a hardware address is no number
    except yaml.YAMLError as error:
        raise AnsibleFilterError(f"netplan's file {path} is no YAML: {error}") from error


def _refuse_alias(path: str, text: str) -> None:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.BaseLoader)):
        raise AnsibleFilterError(f"netplan's file {path} uses anchors. Write out what they stand for.")


def _child(node: Any, name: str) -> Any:
    """Return the value of a key of a mapping, or None."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name:
                return value
    return None


def _entries(root: Any) -> list[tuple[Any, Any]]:
    """Return key and value of what is said of each card."""
    cards = _child(_child(root, "network"), "ethernets")
    return cards.value if isinstance(cards, yaml.MappingNode) else []


def _card(key: Any, value: Any) -> str:
    """Return the card's name in the system; netplan may have one of its own for it."""
    given = _child(value, "set-name")
    name: str = (key if given is None else given).value
    return name


def _plain(node: Any) -> Any:
    match node:
        case yaml.MappingNode():
            return {key.value: _plain(value) for key, value in node.value}
        case yaml.SequenceNode():
            return [_plain(value) for value in node.value]
        case _:
            return node.value


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Merge as netplan does: lists grow, the later word counts."""
    for key, value in more.items():
        there = into.get(key)
        if isinstance(there, list) and isinstance(value, list):
            there.extend(value)
        elif isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        else:
            into[key] = value


def _lines(path: str, mapping: Any, gone: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Tell which lines to comment out, and for which bridge: entries that are gone, and what only held such."""
    for key, value in mapping.value:
        first = key.start_mark.line
        if id(key) in gone:
            if mapping.flow_style:
                obstacle = f"has {key.value} within {{ }}. Give it lines of its own."
                raise AnsibleFilterError(f"netplan's file {path} {obstacle}")
            yield from ((line, gone[id(key)]) for line in range(first, _last_line(value) + 1))
        elif isinstance(value, yaml.MappingNode):
            if _all_gone(value, gone):
                yield first, ""
            yield from _lines(path, value, gone)


def _all_gone(node: Any, gone: dict[int, str]) -> bool:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return False
    return all(id(key) in gone or _all_gone(value, gone) for key, value in node.value)


def _last_line(node: Any) -> int:
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        mark = node.end_mark
        line: int = mark.line - (mark.column == 0 and mark.line > node.start_mark.line)
        return line
    last = node.value[-1]
    return _last_line(last[1] if isinstance(last, tuple) else last)


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"bridge_netplan": bridge_netplan}
