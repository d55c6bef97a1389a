"""Bridges, cables and network namespaces, through `ip` and `tc`."""

import json
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import GUEST_BRIDGE, HostLayout, Layout
from virtfleet.lab.programs import run

NAMESPACES = Path("/run/netns")
INTERFACES = Path("/sys/class/net")


def _ip(wanted: str, *arguments: str) -> list[dict[str, Any]]:
    text = run(["ip", "-j", *arguments], wanted)
    return json.loads(text) if text.strip() else []


def _batch(wanted: str, commands: list[str], namespace: str | None = None) -> None:
    where = ["-n", namespace] if namespace else []
    run(["ip", *where, "-batch", "-"], wanted, text="\n".join(commands) + "\n")


def networks_in_use(except_prefix: str) -> list[IPv4Network]:
    """Return the IPv4 networks this machine has an address in or a route to.

    What belongs to interfaces whose names begin with `except_prefix` is left out.
    """
    wanted = "see which networks this machine uses"
    found = [
        IPv4Network(route["dst"], strict=False)
        for route in _ip(wanted, "-4", "route", "show", "table", "all")
        if route["dst"] != "default" and not str(route.get("dev", "")).startswith(except_prefix)
    ]
    for interface in _ip(wanted, "-4", "addr", "show"):
        if not interface["ifname"].startswith(except_prefix):
            found += [IPv4Network(f"{a['local']}/{a['prefixlen']}", strict=False) for a in interface["addr_info"]]
    return found


def interfaces(prefix: str) -> list[str]:
    """Return the machine's interfaces whose names begin with `prefix`."""
    return sorted(entry.name for entry in INTERFACES.iterdir() if entry.name.startswith(prefix))


def namespaces(prefix: str) -> list[str]:
    """Return the named network namespaces whose names begin with `prefix`."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(entry.name for entry in NAMESPACES.iterdir() if entry.name.startswith(prefix))


def ensure_bridges(lab: Layout) -> None:
    """Make the lab's two bridges on the machine, with the machine's own address in each."""
    wanted = f"make the bridges of the lab {lab.name}"
    there = {interface["ifname"]: interface for interface in _ip(wanted, "-4", "addr", "show")}
    pairs = [(lab.management_bridge, lab.management, lab.management[1]), (lab.guest_bridge, lab.guests, lab.gateway)]
    commands = []
    for bridge, network, address in pairs:
        if bridge not in there and bridge not in interfaces(bridge):
            commands.append(f"link add {bridge} type bridge mcast_snooping 0")
        addresses = [entry["local"] for entry in there.get(bridge, {}).get("addr_info", [])]
        if str(address) not in addresses:
            commands.append(f"addr add {address}/{network.prefixlen} dev {bridge}")
        if "UP" not in there.get(bridge, {}).get("flags", []):
            commands.append(f"link set {bridge} up")
    if commands:
        _batch(wanted, commands)


def connect_host(host: HostLayout) -> None:
    """Make the host's network namespace with `eth0` (management), `eth1` and `vmbr0` (guests)."""
    lab, wanted = host.lab, f"connect {host.name} of the lab {host.lab.name}"
    run(["ip", "netns", "add", host.namespace], wanted)
    cables = [(host.management_link, "eth0", lab.management_bridge), (host.guest_link, "eth1", lab.guest_bridge)]
    commands = []
    for outside, inside, bridge in cables:
        # The same hardware address at every boot: neighbours remember the one they knew for many seconds.
        mac = host.mac(inside)
        commands += [
            f"link add {outside} type veth peer name {inside} address {mac} netns {host.namespace}",
            f"link set {outside} master {bridge} up",
        ]
    _batch(wanted, commands)
    # No default route: whatever reaches libvirtd, which asks for no password, must sit on the management network;
    # answers to anybody else, guests above all, have no way back.
    commands = [
        "link set lo up",
        f"addr add {host.address}/{lab.management.prefixlen} dev eth0",
        "link set eth0 up",
        f"link add {GUEST_BRIDGE} type bridge mcast_snooping 0",
        f"link set eth1 master {GUEST_BRIDGE} up",
        f"link set {GUEST_BRIDGE} up",
    ]
    _batch(wanted, commands, host.namespace)


def remove(namespace_names: list[str], interface_names: list[str]) -> None:
    """Remove interfaces and namespaces; those already gone are no error."""
    for interface in interface_names:
        if (INTERFACES / interface).exists():
            try:
                run(["ip", "link", "del", interface], f"remove the interface {interface}")
            except LabError:
                # A cable vanishes by itself when the namespace at its other end does.
                if (INTERFACES / interface).exists():
                    raise
    for namespace in namespace_names:
        if (NAMESPACES / namespace).exists():
            run(["ip", "netns", "del", namespace], f"remove the network namespace {namespace}")


def disconnect_host(host: HostLayout) -> None:
    """Remove the host's cables and namespace, so that its address answers no more."""
    remove([host.namespace], [host.management_link, host.guest_link])


def is_up(interface: str) -> bool:
    """Say whether the interface exists and is switched on."""
    try:
        return bool(int((INTERFACES / interface / "flags").read_text(), 16) & 1)  # IFF_UP
    except OSError:
        return False


def switch(interface: str, on: bool) -> None:
    """Switch an interface of the machine on or off."""
    state = "up" if on else "down"
    run(["ip", "link", "set", interface, state], f"switch the interface {interface} {state}")


def _ends(host: HostLayout) -> list[list[str]]:
    """Return the arguments that name both ends of the management cable: towards the host, and away from it."""
    return [
        ["tc", "qdisc", "replace", "dev", host.management_link],
        ["tc", "-n", host.namespace, "qdisc", "replace", "dev", "eth0"],
    ]


def delay(host: HostLayout, delay_ms: int) -> None:
    """Delay every packet to and from the host, half the time each way. Raises LabError when the kernel lacks netem."""
    wanted = f"delay the link of {host.name} by {delay_ms} ms"
    try:
        for end in _ends(host):
            run([*end, "root", "netem", "delay", f"{delay_ms / 2:g}ms"], wanted)
    except LabError as error:
        raise LabError(
            wanted,
            f"this machine's kernel does not do it ({error.obstacle})",
            "Delays need the kernel module sch_netem. Without it, slow the link by its rate: --rate-kbit 256.",
        ) from error


def throttle(host: HostLayout, rate_kbit: int) -> None:
    """Let at most `rate_kbit` kilobits a second to the host, and as much from it. More waits in line for up to 2 s."""
    wanted = f"throttle the link of {host.name} to {rate_kbit} kbit/s"
    for end in _ends(host):
        run([*end, "root", "tbf", "rate", f"{rate_kbit}kbit", "burst", "3000", "latency", "2s"], wanted)


def unslow(host: HostLayout) -> None:
    """Give the link its full speed back."""
    for end in _ends(host):
        with suppress(LabError):  # nothing to remove is as good
            run([*("del" if word == "replace" else word for word in end), "root"], "remove the brake")
