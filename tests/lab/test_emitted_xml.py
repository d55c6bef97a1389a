"""Whatever is asked for: what is sent is valid by libvirt's schemas, and is read back as it was asked for.

Machines are in test_vm_update; here is what else a host holds.
"""

import copy
import string
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils import nwfilter_rules
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped]
from virtfleet.lab import Lab

from tests.lab import emitted_xml
from tests.lab.test_storage_modules import call
from tests.lab.test_truthfulness import remove_all

pytestmark = pytest.mark.lab

# The same ones in every run: what a run says of a change must not hang on what it happened to try.
MANY = hypothesis.settings(
    max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)

NAMES = st.builds(
    "truth-{}".format,
    st.text(string.ascii_letters + string.digits + "._+-", max_size=20).filter(lambda t: ".." not in t),
)
WORDS = st.text("ab<>&{}'\"$é% ;", min_size=1, max_size=8).map(lambda text: f"x{text}x")
PATHS = st.lists(WORDS, min_size=1, max_size=3).map(lambda parts: "/var/lib/libvirt/truth/" + "/".join(parts))


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[str]:
    uri = lab.host("host1").uri
    yield uri
    remove_all(uri)


def is_read_back(module: str, uri: str, **options: Any) -> None:
    """Ask for something twice: what is sent the first time is valid, and nothing is left to do the second time."""
    with emitted_xml.validated() as sent:
        assert call(module, uri, **options).changed
    assert sent
    again = call(module, uri, **options)
    assert not again.changed, again.values["plan"]


POOLS = st.one_of(
    st.fixed_dictionaries({"path": PATHS}),
    st.fixed_dictionaries(
        {
            "type": st.just("netfs"),
            "path": PATHS,
            "source": st.fixed_dictionaries({"host": st.sampled_from(["files.example", "10.0.0.7"]), "dir": PATHS}),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("fs"), "path": PATHS, "source": st.fixed_dictionaries({"device": st.just("/dev/vdb1")})}
    ),
    st.fixed_dictionaries({"type": st.just("logical"), "source": st.fixed_dictionaries({"name": st.just("vg0")})}),
)


@given(name=NAMES, definition=POOLS, autostart=st.booleans())
@MANY
def test_any_pool(host: str, name: str, definition: dict[str, Any], autostart: bool) -> None:
    call("pool", host, name=name, state="absent")
    is_read_back("pool", host, name=name, state="inactive", autostart=autostart, **definition)
    call("pool", host, name=name, state="absent")


SIZES = st.integers(1, 2**24).map(lambda number: f"{number}B")


@given(name=NAMES, size=SIZES, kind=st.sampled_from(["raw", "qcow2"]), over=st.booleans())
@example(name="truth-.", size="1B", kind="raw", over=True)
@MANY
def test_any_volume(host: str, name: str, size: str, kind: str, over: bool) -> None:
    call("volume", host, pool="default", name=name, state="absent")
    is_read_back("volume", host, pool="default", name=name, size=size, format=kind)
    if over:
        is_read_back("volume", host, pool="default", name=f"{name}-over", image=name)
        call("volume", host, pool="default", name=f"{name}-over", state="absent")
    call("volume", host, pool="default", name=name, state="absent")


RESERVED = st.lists(
    st.builds(
        lambda number, name: {"mac": f"52:54:00:00:00:{number:02x}", "address": f"10.99.0.{number}", "name": name},
        st.integers(2, 200),
        st.one_of(st.none(), st.text(string.ascii_letters, min_size=1, max_size=5)),
    ),
    max_size=3,
    unique_by=(lambda host: host["mac"], lambda host: host["name"] or host["mac"]),
)
DHCP = st.builds(
    lambda span, hosts: {**span, "hosts": hosts},
    st.sampled_from([{}, {"start": "10.99.0.210", "end": "10.99.0.220"}]),
    RESERVED,
)
DNS = st.sampled_from([[], [{"address": "10.99.0.9", "names": ["b", "a.example"]}]]).map(copy.deepcopy)
NETWORKS = st.one_of(
    st.fixed_dictionaries({"mode": st.just("bridge"), "bridge": st.sampled_from(["vmbr0", "br_x.7", "b"])}),
    st.fixed_dictionaries(
        {"mode": st.sampled_from(["nat", "routed", "isolated"]), "address": st.just("10.99.0.1/24")},
        optional={
            "bridge": st.just("truthbr0"),
            "domain": st.sampled_from(["lab.example", "x"]),
            "dhcp": DHCP,
            "dns": DNS,
        },
    ),
    st.just({"mode": "isolated"}),
)


@given(name=NAMES, definition=NETWORKS, autostart=st.booleans())
@MANY
def test_any_network(host: str, name: str, definition: dict[str, Any], autostart: bool) -> None:
    call("network", host, name=name, state="absent")
    is_read_back("network", host, name=name, state="inactive", autostart=autostart, **definition)
    call("network", host, name=name, state="absent")


USES = st.one_of(
    st.fixed_dictionaries({"usage": st.just("volume"), "usage_id": PATHS}),
    st.fixed_dictionaries({"usage": st.sampled_from(["ceph", "iscsi", "tls", "vtpm"]), "usage_id": WORDS}),
)
SECRETS = st.fixed_dictionaries(
    {},
    optional={
        "description": WORDS,
        "ephemeral": st.booleans(),
        "private": st.booleans(),
        "value": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    },
)


@given(use=USES, wanted=SECRETS)
@MANY
def test_any_secret(host: str, use: dict[str, Any], wanted: dict[str, Any]) -> None:
    call("secret", host, **use, state="absent")
    is_read_back("secret", host, **use, **wanted)
    call("secret", host, **use, state="absent")


V4 = st.one_of(st.just("$IP"), st.ip_addresses(v=4, network="10.0.0.0/8").map(str))
V6 = st.ip_addresses(v=6, network="fd00::/8").map(str)
MACS = st.sampled_from(["52:54:00:AA:bb:0c", "$MAC"])
NUMBERS = st.one_of(st.integers(0, 65535), st.integers(0, 65535).map(hex), st.just("$PORT"))
SMALL = st.one_of(st.integers(0, 63), st.integers(0, 63).map(hex))
LOOKED_AT: dict[str, st.SearchStrategy[Any]] = {
    "match": st.sampled_from(["yes", "no"]),
    "comment": WORDS.map(lambda text: text.replace("$", "")),
    "state": st.lists(st.sampled_from(["NEW", "ESTABLISHED", "RELATED"]), min_size=1, unique=True).map(",".join),
    "flags": st.sampled_from(["SYN/ALL", "SYN,ACK/SYN,ACK", "NONE/ALL"]),
    "gratuitous": st.sampled_from(["yes", "no", "true", "false"]),
    "protocolid": st.one_of(st.integers(0x600, 0xFFFF), st.integers(0x600, 0xFFFF).map(hex), st.just("ipv6")),
    "encap-protocol": st.sampled_from(["ipv4", "arp", "0x800"]),
    "protocol": st.one_of(SMALL, st.sampled_from(["udp", "sctp", 136])),
    "opcode": st.sampled_from([1, "0x2", "Reply_Reverse", "9"]),
    **dict.fromkeys(("dscp", "type", "code", "typeend", "codeend"), SMALL),
}


def looked_at(protocol: str, name: str) -> st.SearchStrategy[Any]:
    """Return values of an attribute."""
    if name in LOOKED_AT:
        return LOOKED_AT[name]
    if "mac" in name:
        return MACS if not name.endswith("mask") else st.just("ff:ff:ff:00:00:00")
    v6 = "v6" in protocol
    if name.endswith("mask"):
        return st.integers(1, 128) if v6 else st.sampled_from([0, 8, "24", "255.255.0.0"])
    if "ip" in name:
        return V6 if v6 else V4
    if name == "connlimit-above":
        return st.integers(1, 65535)
    return st.integers(0, 4095) if name == "vlanid" else NUMBERS


def sensible(match: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the module refuses: a mask without its address, an end without its start, odd opposites."""
    if match.get("match") == "no":
        match = {name: value for name, value in match.items() if name in {"match", *nwfilter_rules.NEGATED}}
    needs = nwfilter_rules.NEEDS
    while lonely := [name for name in match if name in needs and needs[name] not in match]:
        match = {name: value for name, value in match.items() if name not in lonely}
    return {} if match == {"match": "no"} else match


def rules_of(protocol: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return rules about a protocol, with all that they can look at."""
    values = {name: looked_at(protocol, name) for name in nwfilter_rules.ATTRIBUTES[protocol]}
    return st.fixed_dictionaries(
        {
            "action": st.sampled_from(nwfilter_rules.ACTIONS),
            "direction": st.sampled_from(nwfilter_rules.DIRECTIONS),
            "protocol": st.just(protocol),
            "match": st.fixed_dictionaries({}, optional=values).map(sensible),
        },
        optional={"priority": st.integers(-1000, 1000), "stateful": st.booleans()},
    )


REFERENCES = st.sampled_from(
    [{"filter": "clean-traffic"}, {"filter": "clean-traffic", "parameters": {"IP": ["10.0.0.2", "10.0.0.1"], "A": "x"}}]
).map(copy.deepcopy)  # checking options fills them in

RULES = st.lists(st.one_of(REFERENCES, *map(rules_of, nwfilter_rules.ATTRIBUTES)), max_size=4)
CHAINS = st.sampled_from([{}, {"chain": "root"}, {"chain": "ipv4-x", "priority": -7}, {"chain": "mac"}])


@given(rules=RULES, where=CHAINS)
@MANY
def test_any_network_filter(host: str, rules: list[dict[str, Any]], where: dict[str, Any]) -> None:
    call("nwfilter", host, name="truth-filter", state="absent")
    is_read_back("nwfilter", host, name="truth-filter", rules=rules, **where)


@pytest.mark.parametrize(
    "document",
    [
        "<pool type='dir'><name>p</name><nonsense/></pool>",
        "<disk type='file'><nonsense/></disk>",
        "<host mac='52:54:00:00:00:01' address='10.0.0.1'/>",
        "<network><name>n</name><forward mode='none of these'/></network>",
    ],
)
def test_what_is_not_valid_is_noticed_and_is_not_sent(host: str, document: str) -> None:
    with opened_host(host, Deadline(30)) as connection, emitted_xml.validated() as sent:
        with pytest.raises(etree.DocumentInvalid), suppress(libvirt.libvirtError):
            connection.storagePoolDefineXML(document, 0)
        assert not sent
