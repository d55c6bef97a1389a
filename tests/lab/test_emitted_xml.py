"""Whatever is asked for: what is sent is valid by libvirt's schemas, and is read back as it was asked for.

Machines are in test_vm_update; here is what else a host holds.
"""

import string
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped]
from virtfleet.lab import Lab

from tests.lab import emitted_xml
from tests.lab.test_storage_modules import call
from tests.lab.test_truthfulness import remove_all

pytestmark = pytest.mark.lab

MANY = hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))

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
NETWORKS = st.one_of(
    st.fixed_dictionaries({"mode": st.just("bridge"), "bridge": st.sampled_from(["vmbr0", "br_x.7", "b"])}),
    st.fixed_dictionaries(
        {"mode": st.sampled_from(["nat", "routed", "isolated"]), "address": st.just("10.99.0.1/24")},
        optional={"bridge": st.just("truthbr0"), "domain": st.sampled_from(["lab.example", "x"]), "dhcp": DHCP},
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
