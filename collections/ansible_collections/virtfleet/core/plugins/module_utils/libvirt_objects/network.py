# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's networks of a host: finding, describing, defining, starting, removing."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import network_definition as written
from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

# What changes only by stopping and starting the network; reserved addresses and names change while it runs.
_EFFECTS = dict.fromkeys(("mode", "bridge", "address", "domain", "dhcp"), plan.RECREATE)
_EFFECTS |= {"dhcp.hosts": plan.LIVE, "dns": plan.LIVE}


def find(connection: libvirt.virConnect, name: str) -> libvirt.virNetwork | None:
    """Return the network of that name, or None."""
    try:
        return connection.networkLookupByName(name)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up network {name}") from error


def summary(network: libvirt.virNetwork) -> dict[str, Any]:
    """Return what host_info tells of a network: `{forward, leases}` and what `settings` returns.

    `bridge` is the one that an active network has.
    """
    root = ET.fromstring(network.XMLDesc(0))
    bridge, forward = root.find("bridge"), root.find("forward")
    return {
        **settings(network),
        "bridge": bridge.get("name") if bridge is not None else None,
        "forward": forward.get("mode", "nat") if forward is not None else None,
        "leases": leases(network),
    }


def settings(network: libvirt.virNetwork) -> dict[str, Any]:
    """Return what module network can set: `{name, mode, bridge, address, domain, dhcp, dns, active, autostart}`."""
    return {
        "name": network.name(),
        **written.definition_of(ET.fromstring(_document(network))),
        "active": bool(network.isActive()),
        "autostart": bool(network.autostart()),
    }


def _document(network: libvirt.virNetwork) -> str:
    """Return the definition that lasts, which an active network's present one may differ from."""
    if network.isActive() and network.isPersistent():
        with contextlib.suppress(libvirtError):  # libvirt's test driver knows no flags
            return str(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
    return str(network.XMLDesc(0))


def plan_present(
    before: dict[str, Any] | None, name: str, definition: dict[str, Any] | None, *, active: bool, autostart: bool | None
) -> plan.Plan:
    """Return the plan that leads to a defined network. Without `definition` an existing one is kept as it is."""
    if before is None and definition is None:
        hint = "Say what to make: at least the option mode."
        raise VirtfleetError(
            f"define network {name}", "there is none yet, and nothing says what it is", hint, "not_found"
        )
    kept = before or {"name": name, "autostart": active}
    after = {**kept, **(definition or {}), "active": active}
    if before and definition and definition["bridge"] is None and "bridge" not in (before["mode"], definition["mode"]):
        after["bridge"] = before["bridge"]  # libvirt chose virbr0 or the like, and nobody asked for another
    if autostart is not None:
        after["autostart"] = autostart
    return plan.compare(before, after, _EFFECTS)


def check_restart(name: str, todo: plan.Plan, *, restart: bool) -> None:
    """Refuse a plan that changes what a running network keeps until it is restarted, unless that is allowed."""
    if todo.before and todo.before["active"] and todo.after and todo.after["active"]:
        changed = ", ".join(change.what for change in todo.with_effect(plan.RECREATE))
        if changed and not restart:
            text = (
                f"{changed} of an active network changes only by stopping and starting it, which cuts its machines off"
            )
            raise VirtfleetError(f"change network {name}", text, "Allow that with restart: true.", "refused")


def apply(connection: libvirt.virConnect, name: str, todo: plan.Plan, *, restart: bool) -> libvirt.virNetwork:
    """Carry out a plan of `plan_present`. Raises VirtfleetError `refused` if it needs a restart that is not allowed."""
    before, after = todo.before, todo.after or {}
    check_restart(name, todo, restart=restart)
    network = find(connection, name)
    recreated = bool(todo.with_effect(plan.RECREATE)) or before is None
    wanted = f"make network {name} as wanted"
    old_document = _document(network) if network is not None else None
    try:
        if network is not None and network.isActive() and (recreated or not after["active"]):
            wanted = f"stop network {name}"
            network.destroy()
        if recreated:
            wanted = f"define network {name}"
            uuid = network.UUIDString() if network is not None else None
            network = connection.networkDefineXML(written.network_xml(name, after, uuid))
        if network is None:
            raise VirtfleetError(wanted, "somebody removed it meanwhile", "Try again.", "not_found")
        if not recreated and before is not None and todo.touches("dhcp.hosts"):
            wanted = f"change the reserved addresses of network {name}"
            old, new = ([written.host_element(each) for each in state["dhcp"]["hosts"]] for state in (before, after))
            _update(network, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, old, new)
        if not recreated and before is not None and todo.touches("dns"):
            wanted = f"change the names in network {name}"
            old, new = ([written.names_element(each) for each in state["dns"]] for state in (before, after))
            _update(network, libvirt.VIR_NETWORK_SECTION_DNS_HOST, old, new)
        if after["active"] and not network.isActive():
            wanted = f"start network {name}"
            network.create()
        if bool(network.autostart()) != after["autostart"]:
            wanted = f"set the autostart of network {name}"
            network.setAutostart(int(after["autostart"]))
    except libvirtError as error:
        if recreated:
            _put_back(connection, name, old_document, active=bool(before and before["active"]))
        raise translate(error, wanted) from error
    return network


def _put_back(connection: libvirt.virConnect, name: str, old_document: str | None, *, active: bool) -> None:
    """Undo a definition that could not be started: the old one again, or none where there was none."""
    with contextlib.suppress(libvirtError, VirtfleetError):
        made = find(connection, name)
        if made is not None and made.isActive():
            made.destroy()
        if old_document is None:
            if made is not None:
                made.undefine()
            return
        restored = connection.networkDefineXML(old_document)
        if active:
            restored.create()


def remove(network: libvirt.virNetwork) -> None:
    """Stop a network and take its definition away."""
    name = network.name()
    try:
        persistent = bool(network.isPersistent())
        if network.isActive():
            network.destroy()
        if persistent:
            network.undefine()
    except libvirtError as error:
        raise translate(error, f"remove network {name}") from error


def check_unused(connection: libvirt.virConnect, name: str) -> None:
    """Refuse to stop a network that running machines use: they would be cut off."""
    users = machines_using(connection, name)
    if users:
        hint = "Stop them first, or cut them off with force: true."
        raise VirtfleetError(f"stop network {name}", f"machines use it: {', '.join(users[:5])}", hint, "refused")


def machines_using(connection: libvirt.virConnect, name: str) -> list[str]:
    """Return the names of the running machines with an interface in the network."""
    users = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with contextlib.suppress(libvirtError):
            sources = ET.fromstring(domain.XMLDesc(0)).iterfind("devices/interface/source")
            if any(source.get("network") == name for source in sources):
                users.append(domain.name())
    return sorted(users)


def leases(network: libvirt.virNetwork) -> list[dict[str, Any]]:
    """Return the addresses that libvirt has given by DHCP: `{mac, address, name, expires_at (Unix seconds)}`."""
    try:
        found = network.DHCPLeases() if network.isActive() else []
    except libvirtError as error:
        if code_of(error) == "refused":  # libvirt's test driver gives none
            return []
        raise translate(error, f"read the leases of network {network.name()}") from error
    return sorted(
        (
            {
                "mac": each["mac"],
                "address": each["ipaddr"],
                "name": each["hostname"] or None,
                "expires_at": each["expirytime"],
            }
            for each in found
        ),
        key=lambda lease: (str(lease["mac"]), str(lease["address"])),
    )


def leases_by_card(connection: libvirt.virConnect) -> dict[tuple[str, str], list[str]]:
    """Return the addresses that a host's networks have given: (network, MAC address) → addresses.

    Costs a call, and two for each network, however many machines there are. A network that goes meanwhile gave none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for network in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
        with contextlib.suppress(VirtfleetError, libvirtError):
            for lease in leases(network):
                found.setdefault((network.name(), lease["mac"]), []).append(lease["address"])
    return found


def _update(network: libvirt.virNetwork, section: int, before: list[ET.Element], after: list[ET.Element]) -> None:
    """Change a section of a network, in its definition and while it runs: first what goes, then what comes."""
    flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
    if network.isActive():
        flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
    old, new = ([ET.tostring(each, encoding="unicode") for each in elements] for elements in (before, after))
    changes = [(libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, each) for each in old if each not in new]
    changes += [(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, each) for each in new if each not in old]
    for command, document in changes:
        network.update(command, section, -1, document, flags)
