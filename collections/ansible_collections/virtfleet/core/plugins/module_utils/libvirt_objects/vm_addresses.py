# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At which addresses a machine is, by what its host and its agent know, and whether it answers there yet."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.connection import domain_events
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import AGENT_CHANNEL
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm import state_of
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    import libvirt_qemu  # type: ignore[import-untyped]
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

AGENT_SECONDS = 2
MAX_ADDRESSES = 64
"""What is inside a machine may say anything: more than this of it is not worth carrying on."""


def addresses_of(domain: libvirt.virDomain) -> list[str]:
    """Return the addresses that agent, leases or the host's ARP table know, in this order."""
    found = {address: None for source in ("agent", "lease", "arp") for address in addresses_from(domain, source)}
    return list(found)[:MAX_ADDRESSES]


def addresses_from(domain: libvirt.virDomain, source: str, document: ET.Element | None = None) -> list[str]:
    """Return the usable addresses that `agent`, `lease` or `arp` knows.

    Who has just read the machine's `document` gives it, so that it is not read again.
    """
    said: list[str] = []
    if source == "agent":
        connected = has_agent(document) if document is not None else agent_connected(domain)
        said = _agent_addresses(domain) if connected else []
    else:
        kinds = {
            "lease": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            "arp": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
        }
        with contextlib.suppress(libvirtError):
            for card in domain.interfaceAddresses(kinds[source], 0).values():
                said += [each["addr"] for each in card.get("addrs") or []]
    return usable(said)


def usable(said: Iterable[Any]) -> list[str]:
    """Return the addresses among these, each once, without loopback and link-local ones."""
    found: dict[str, None] = {}
    for text in said:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(text)
            if not (address.is_loopback or address.is_link_local):
                found[str(address)] = None
    return list(found)[:MAX_ADDRESSES]


def _agent_addresses(domain: libvirt.virDomain) -> list[str]:
    """Return what the agent inside the machine says, which may be anything; nothing when it does not answer."""
    cards = _ask_agent(domain, "guest-network-get-interfaces")
    try:
        return [str(each["ip-address"]) for card in cards for each in card.get("ip-addresses") or []]
    except (AttributeError, KeyError, TypeError):
        return []


def _ask_agent(domain: libvirt.virDomain, command: str) -> Any:
    """Return an agent's answer, or None. libvirt's own call for addresses would wait for a silent agent for ever."""
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), AGENT_SECONDS, 0)
        said = json.loads(answer)
    except (libvirtError, ValueError):
        return None
    return said.get("return") if isinstance(said, dict) else None


def agent_connected(domain: libvirt.virDomain) -> bool:
    """Tell whether an agent inside the machine has opened its channel."""
    try:
        return has_agent(ET.fromstring(domain.XMLDesc(0)))
    except libvirtError:
        return False


def has_agent(document: ET.Element) -> bool:
    """Tell whether an agent had opened its channel when a machine's document was read."""
    devices = document.find("devices")
    channels = devices.findall("channel") if devices is not None else []
    targets = [channel.find("target") for channel in channels]
    return any(
        each is not None and each.get("name") == AGENT_CHANNEL and each.get("state") == "connected" for each in targets
    )


def agent_answers(domain: libvirt.virDomain) -> bool:
    """Tell whether the agent inside the machine answers."""
    return agent_connected(domain) and _ask_agent(domain, "guest-ping") is not None


def await_guest(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    what: str,
    wanted_addresses: Sequence[str],
    deadline: Deadline,
) -> list[str]:
    """Wait until the machine's agent answers (`agent`) or an address of it was seen (`address`); return its addresses.

    Of a machine with fixed addresses one of just these must be seen. Raises VirtfleetError `timeout`, or `refused` when
    the machine stopped meanwhile.
    """
    if what not in ("address", "agent"):
        return []
    wanted = [str(ipaddress.ip_interface(each).ip) for each in wanted_addresses]
    label = f"{'an address' if what == 'address' else 'the agent'} of machine {domain.name()}"

    def there() -> list[str] | bool:
        if state_of(domain) not in ("running", "paused"):
            hint = "Look at its console: the image may not boot."
            raise VirtfleetError(f"wait for {label}", "the machine is not running any more", hint, "refused")
        if what == "agent":
            return agent_answers(domain)
        seen = addresses_of(domain)
        return seen if not wanted else [each for each in seen if each in wanted] and seen

    with domain_events(connection, domain) as event:
        wait_for(there, deadline, label, event=event, poll=0.5)
    return addresses_of(domain)
