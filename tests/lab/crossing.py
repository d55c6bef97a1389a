"""Migrations that tests break in mid-way: so slow that they cannot end before, and hurried on when they are to end."""

from contextlib import suppress

import libvirt
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.lab.fleet import wait_until

CRAWL = "1MiB"
"""A second: the memory of a machine that answers takes more than a minute, on a slow day or a fast one."""
_HURRIED_MIBPS = 1024


def is_on_its_way(target_uri: str, name: str) -> bool:
    """Tell whether a host has begun to receive a machine."""
    with opened_host(target_uri, Deadline(60)) as connection, suppress(libvirt.libvirtError):
        return bool(connection.lookupByName(name).isActive())
    return False


def hurry(source_uri: str, name: str) -> None:
    """Let a migration that crawls come to its end."""
    with opened_host(source_uri, Deadline(60)) as connection:
        domain = connection.lookupByName(name)
        # Before that its disks are copied, and what is said then is not what holds for its memory.
        wait_until(lambda: domain.jobStats(0).get("memory_processed", 0) > 0, 60, "the memory to be on its way")
        domain.migrateSetMaxSpeed(_HURRIED_MIBPS)
