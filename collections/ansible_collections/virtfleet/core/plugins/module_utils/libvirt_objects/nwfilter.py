# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network filters of a host: finding, describing, defining, removing, and who uses them."""

from __future__ import annotations

import contextlib
import re
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import nwfilter_rules
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.names import shown

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

# A filter's rules come together in a chain; the name of one begins with what it is about.
_CHAIN = re.compile(r"root|(mac|stp|arp)[A-Za-z0-9_.:-]{0,9}|(vlan|rarp|ipv4|ipv6)[A-Za-z0-9_.:-]{0,8}", re.ASCII)


def find(connection: libvirt.virConnect, name: str) -> libvirt.virNWFilter | None:
    """Return the filter of that name, or None."""
    try:
        return connection.nwfilterLookupByName(name)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up network filter {name}") from error


def require(connection: libvirt.virConnect, name: str, wanted: str) -> None:
    """Check that a card can have the filter. Raises VirtfleetError `not_found`, in whose message `wanted` stands."""
    if find(connection, name) is None:
        raise VirtfleetError(
            wanted, f"there is no network filter {name}", "Define it with module nwfilter.", "not_found"
        )


def names_of(connection: libvirt.virConnect) -> list[str]:
    """Return the names of all filters of a host; none where libvirt has no driver for them."""
    try:
        return sorted(connection.listNWFilters())
    except libvirtError as error:
        if code_of(error) == "refused":
            return []
        raise


def settings(found: libvirt.virNWFilter) -> dict[str, Any]:
    """Return `{name, chain, priority, rules}`; the priority is None where libvirt derives it from the chain."""
    root = ET.fromstring(found.XMLDesc(0))
    priority = root.get("priority")
    return {
        "name": found.name(),
        "chain": root.get("chain", "root"),
        "priority": None if priority is None else int(priority),
        "rules": nwfilter_rules.read(root),
    }


def filter_xml(wanted: dict[str, Any], uuid: str | None = None) -> str:
    """Return the `<filter>` document of what `settings` reads."""
    root = ET.Element("filter", name=wanted["name"], chain=wanted["chain"])
    if wanted["priority"] is not None:
        root.set("priority", str(wanted["priority"]))
    if uuid:
        ET.SubElement(root, "uuid").text = uuid
    nwfilter_rules.write(root, wanted["rules"])
    return ET.tostring(root, encoding="unicode")


def check_chain(chain: str, priority: int | None) -> None:
    """Refuse what cannot be a chain, or its place among others. Raises VirtfleetError `invalid`."""
    if not _CHAIN.fullmatch(chain):
        hint = "Use root, or a name that begins with mac, stp, vlan, arp, rarp, ipv4 or ipv6."
        raise VirtfleetError(f"use {shown(chain)} as chain", "libvirt knows no such chain", hint, "invalid")
    if priority is not None and not -1000 <= priority <= 1000:
        raise VirtfleetError(f"use {priority} as priority", "it is out of range", "Use -1000 to 1000.", "invalid")


def check_references(connection: libvirt.virConnect, name: str, rules: list[dict[str, Any]]) -> None:
    """Refuse rules that name filters the host has not, or the filter itself. Raises VirtfleetError."""
    wanted = f"define network filter {name}"
    for other in [rule["filter"] for rule in rules if "filter" in rule]:
        if other == name:
            raise VirtfleetError(wanted, "it would be a part of itself", "Name another filter.", "invalid")
        if find(connection, other) is None:
            raise VirtfleetError(wanted, f"there is no network filter {other}", "Define that one first.", "not_found")


def define(connection: libvirt.virConnect, found: libvirt.virNWFilter | None, wanted: dict[str, Any]) -> None:
    """Define a filter or put new rules in its place; machines that run with it have them at once."""
    try:
        connection.nwfilterDefineXML(filter_xml(wanted, found.UUIDString() if found is not None else None))
    except libvirtError as error:
        hint = "libvirt has kept what was there. See the log of its daemon on the host."
        raise translate(error, f"define network filter {wanted['name']}", hint) from error


def check_unused(connection: libvirt.virConnect, name: str) -> None:
    """Refuse to remove a filter that machines or other filters name. Raises VirtfleetError `refused`."""
    machines, filters = set(), set()
    for domain in connection.listAllDomains():
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            with contextlib.suppress(libvirtError):  # gone meanwhile
                if _refers(ET.fromstring(domain.XMLDesc(flags)), name):
                    machines.add(domain.name())
    for other in connection.listAllNWFilters():
        with contextlib.suppress(libvirtError):
            if _refers(ET.fromstring(other.XMLDesc(0)), name):
                filters.add(other.name())
    users = [*(f"machine {each}" for each in sorted(machines)), *(f"filter {each}" for each in sorted(filters))]
    if users:
        text = f"it is used by {', '.join(users[:5])}"
        raise VirtfleetError(f"remove network filter {name}", text, "Take it from those first.", "refused")


def _refers(root: ET.Element, name: str) -> bool:
    return any(each.get("filter") == name for each in root.iter("filterref"))


def remove(found: libvirt.virNWFilter) -> None:
    """Take a filter's definition away."""
    name = found.name()
    try:
        found.undefine()
    except libvirtError as error:
        raise translate(error, f"remove network filter {name}") from error
