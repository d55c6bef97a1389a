"""Module secret on a real host: kept, never told, not taken from what needs it, undone when it fails half-way."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.module import success
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.lab.every_step import WHEN, failing
from tests.lab.test_storage_modules import call
from tests.lab.test_truthfulness import PREFIX, picture, remove_all

pytestmark = pytest.mark.lab

VALUE = "a-word-nobody-may-see"
SECRET: dict[str, Any] = {"usage": "volume", "usage_id": f"/{PREFIX}/disk"}


@pytest.fixture
def host(lab: Lab) -> Iterator[str]:
    uri = lab.host("host1").uri
    yield uri
    remove_all(uri)


def held(uri: str) -> bytes:
    with opened_host(uri, Deadline(30)) as connection:
        return bytes(connection.secretLookupByUsage(1, SECRET["usage_id"]).value())


def test_a_value_is_kept_to_the_byte_and_told_nowhere(host: str, tmp_path: Path) -> None:
    told = [success(call("secret", host, check=check, **SECRET, value=VALUE), True) for check in (True, False)]
    assert held(host) == VALUE.encode()
    told.append(success(call("secret", host, **SECRET, value="another"), True))
    assert VALUE not in json.dumps(told)
    file = tmp_path / "key"
    file.write_bytes(bytes(range(256)))
    assert call("secret", host, **SECRET, value_src=str(file)).changed
    assert held(host) == bytes(range(256))


def test_the_uuid_that_was_asked_for_is_the_one_that_disks_name(host: str) -> None:
    uuid = "5c2b3d0e-9f5c-4a1e-8f58-0c0f6a5f7c77"
    made = call("secret", host, **SECRET, uuid=uuid, value=VALUE).values["secret"]
    assert made["uuid"] == call("secret", host, **SECRET).values["secret"]["uuid"] == uuid


def test_what_is_private_stays_so(host: str) -> None:
    call("secret", host, **SECRET, private=True, value=VALUE)
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call("secret", host, check=check, **SECRET, private=False)
        assert failed.value.code == "refused"


def test_a_secret_that_a_machine_needs_is_not_removed(host: str) -> None:
    uuid = call("secret", host, **SECRET, value=VALUE).values["secret"]["uuid"]
    call("vm", host, name=f"{PREFIX}-vm", vcpus=1, memory="32MiB", disks=[{"size": "1MiB", "format": "raw"}])
    with opened_host(host, Deadline(30)) as connection:
        root = ET.fromstring(connection.lookupByName(f"{PREFIX}-vm").XMLDesc())
        disk = root.find("devices/disk")
        assert disk is not None
        ET.SubElement(ET.SubElement(disk, "encryption", format="luks"), "secret", type="passphrase", uuid=uuid)
        connection.defineXML(ET.tostring(root, "unicode"))
    for check in (True, False):
        with pytest.raises(VirtfleetError, match=f"{PREFIX}-vm cannot work without it") as failed:
            call("secret", host, check=check, **SECRET, state="absent")
        assert failed.value.code == "refused"
    call("vm", host, name=f"{PREFIX}-vm", state="absent")
    assert call("secret", host, **SECRET, state="absent").changed


@pytest.mark.parametrize("when", WHEN)
def test_an_error_at_any_step_leaves_what_was_there(host: str, when: str) -> None:
    empty = picture(host)
    for number in (1, 2):
        if (number, when) == (1, "after"):
            continue  # libvirt's answer to the definition was lost: the next run finds the secret and fills it
        with pytest.raises(VirtfleetError), failing(number, when):
            call("secret", host, **SECRET, value=VALUE)
        assert picture(host) == empty
    call("secret", host, **SECRET, value=VALUE)
    before = picture(host)
    with pytest.raises(VirtfleetError), failing(2, when):
        call("secret", host, **SECRET, description="x", value="another")
    assert picture(host) == before


@pytest.mark.parametrize(
    "options",
    [
        {"usage_id": ""},
        {"usage_id": "/a\nb"},
        {"usage_id": "relative"},
        {"usage": "ceph", "usage_id": "a/b"},
        {"usage_id": "/a\0b"},
        {"usage_id": "/" + "x" * 5000},
        {"description": "a\x1bb"},
        {"uuid": "../etc"},
        {"value": ""},
        {"value": "x" * 65537},
        {"value_src": "/nonexistent"},
    ],
)
def test_what_cannot_be_a_secret_is_refused_without_telling_it(host: str, options: dict[str, Any]) -> None:
    before = picture(host)
    for check in (True, False):
        with pytest.raises(VirtfleetError) as failed:
            call("secret", host, check=check, **(SECRET | options))
        assert failed.value.code == "invalid"
        assert "x" * 100 not in str(failed.value)
    assert picture(host) == before
