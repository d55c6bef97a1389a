"""Module nwfilter on a real host: what uses a filter keeps it; what cannot be a rule is refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from virtfleet.lab import Lab

from tests.lab.test_storage_modules import call
from tests.lab.test_truthfulness import MAC, NAME, PREFIX, STOPPED, picture, remove_all

pytestmark = pytest.mark.lab

FILTER = f"{PREFIX}-filter"
DROP: dict[str, Any] = {"action": "drop", "direction": "inout"}


@pytest.fixture
def host(lab: Lab) -> Iterator[str]:
    uri = lab.host("host1").uri
    yield uri
    remove_all(uri)


def test_a_filter_that_is_used_is_not_removed_and_the_error_names_who_uses_it(host: str) -> None:
    call("nwfilter", host, name=FILTER, rules=[DROP])
    call("nwfilter", host, name=f"{FILTER}-more", rules=[{"filter": FILTER}])
    call(STOPPED[0], host, **STOPPED[1])
    call("vm_nic", host, name=NAME, mac=MAC, filter=FILTER)
    for check in (True, False):
        with pytest.raises(VirtfleetError, match=f"machine {NAME}, filter {FILTER}-more") as failed:
            call("nwfilter", host, check=check, name=FILTER, state="absent")
        assert failed.value.code == "refused"
    call("vm_nic", host, name=NAME, mac=MAC, filter="none")
    call("nwfilter", host, name=f"{FILTER}-more", state="absent")
    assert call("nwfilter", host, name=FILTER, state="absent").changed


@pytest.mark.parametrize(("name", "code"), [(f"{FILTER}-nowhere", "not_found"), ("<x/>", "invalid")])
def test_a_machine_whose_filter_cannot_be_had_is_not_made(host: str, name: str, code: str) -> None:
    before = picture(host)
    wanted = {**STOPPED[1], "networks": [{"bridge": "vmbr0", "mac": MAC, "filter": name}]}
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call("vm", host, check=check, **wanted)
        assert failed.value.code == code
    assert picture(host) == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "not_found"),
        ({"name": "../x", "rules": []}, "invalid"),
        ({"name": "<x/>", "rules": []}, "invalid"),
        ({"chain": "nonsense", "rules": []}, "invalid"),
        ({"priority": 1001, "rules": []}, "invalid"),
        ({"rules": [{"action": "drop"}]}, "invalid"),
        ({"rules": [{"filter": "clean-traffic", **DROP}]}, "invalid"),
        ({"rules": [{"filter": "no-such-filter"}]}, "not_found"),
        ({"rules": [{"filter": FILTER}]}, "invalid"),
        ({"rules": [{"filter": "clean-traffic", "parameters": {"IP": "a' b"}}]}, "invalid"),
        ({"rules": [{**DROP, "match": {"dstportstart": 1}}]}, "invalid"),
        ({"rules": [{**DROP, "priority": 1001}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "tcp", "match": {"nonsense": 1}}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "tcp", "match": {"dstportstart": 65536}}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "tcp", "match": {"dstportend": 22}}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "tcp", "match": {"srcipaddr": "10.0.0.1; id"}}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "tcp", "match": {"comment": "$(id)"}}]}, "invalid"),
        ({"rules": [{**DROP, "protocol": "mac", "match": {"match": "no"}}]}, "invalid"),
    ],
)
def test_what_cannot_be_a_filter_is_refused_and_nothing_is_left(host: str, options: dict[str, Any], code: str) -> None:
    before = picture(host)
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call("nwfilter", host, check=check, **{"name": FILTER, **options})
        assert failed.value.code == code
    assert picture(host) == before
