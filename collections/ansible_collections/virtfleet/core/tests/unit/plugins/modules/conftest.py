# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of modules share: libvirt's in-process test driver as a host, and a way to call a module."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

TEST_URI = "test:///default"
Call = Callable[..., Result]


@pytest.fixture
def test_host() -> Iterator[libvirt.virConnect]:
    """A fresh test host. It keeps its state while anything holds a connection; what a test made is gone after it."""
    if not _is_fresh():
        gc.collect()  # a traceback of an earlier test may hold objects of its host
        assert _is_fresh(), "an earlier test of this process has left its connection open"
    with opened_host(TEST_URI, Deadline(60)) as connection:
        yield connection


def _is_fresh() -> bool:
    with opened_host(TEST_URI, Deadline(60)) as connection:
        found = [*connection.listAllDomains(), *connection.listAllStoragePools(), *connection.listAllNetworks()]
        volumes = connection.storagePoolLookupByName("default-pool").listVolumes()
        names = [each.name() for each in found]
        return names == ["test", "default-pool", "default"] and all(each.isActive() for each in found) and not volumes


@pytest.fixture
def call(test_host: libvirt.virConnect) -> Call:
    """Call `execute` of a module with checked options, on the test host unless `uri` says otherwise."""

    def called(module: str, *, check: bool = False, **options: Any) -> Result:
        loaded = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{module}")
        checked = ArgumentSpecValidator(loaded.SPEC, **loaded.RULES).validate({"uri": TEST_URI, **options})
        assert not checked.error_messages, checked.error_messages
        result: Result = loaded.execute(checked.validated_parameters, check, True)
        return result

    return called
