"""libvirt's own networks of a host."""

from typing import Any, Literal

from pydantic import Field

from virtfleet.schemas.base import In, Out, Query, Text


class DhcpHost(In):
    """An address that is kept for a certain card."""

    mac: Text
    address: Text
    name: Text | None = None


class Dhcp(In):
    """What libvirt gives by DHCP."""

    start: Text | None = Field(default=None, description="The first address of the range.")
    end: Text | None = Field(default=None, description="The last one.")
    hosts: list[DhcpHost] = Field(default_factory=list, max_length=10_000)


class DnsEntry(In):
    """Names that stand for an address."""

    address: Text
    names: list[Text] = Field(min_length=1, max_length=100)


class HostNetworkIn(In):
    """A network, all of it: what is left out it does not have."""

    state: Literal["present", "inactive"] = Field(default="present", description="Whether it is active.")
    mode: Literal["nat", "routed", "isolated", "bridge"] | None = Field(
        default=None, description="Needed for a new one; without it, one that is there keeps its definition."
    )
    bridge: Text | None = None
    address: Text | None = Field(default=None, examples=["192.168.100.1/24"], description="The host's own in it.")
    domain: Text | None = None
    dhcp: Dhcp | None = None
    dns: list[DnsEntry] | None = Field(default=None, max_length=10_000)
    autostart: bool | None = None
    restart: bool = Field(default=False, description="Stop and start it for what changes in no other way.")
    force: bool = Field(default=False, description="Stop it although running machines use it.")


class HostNetworkRemoval(Query):
    """Whether a network goes in any case."""

    force: bool = Field(default=False, description="Also when running machines use it: they are cut off.")


class HostNetworkOut(Out):
    """A network as it was last seen; `leases` is what libvirt has given by DHCP."""

    name: str
    active: bool
    autostart: bool | None = None
    mode: str | None = None
    bridge: str | None = None
    address: str | None = None
    domain: str | None = None
    dhcp: dict[str, Any] | None = None
    dns: list[dict[str, Any]] = Field(default_factory=list)
    leases: list[dict[str, Any]] = Field(default_factory=list)
