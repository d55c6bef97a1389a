"""Machines: created, acted upon, deleted; and what becomes of them when their jobs end."""

from virtfleet.services.vms.actions import ACTIONS, act, clean_up, delete, retry_cleanups
from virtfleet.services.vms.creation import create, try_out
from virtfleet.services.vms.endings import of_job
from virtfleet.services.vms.migration import Way, migrate, preflight
from virtfleet.services.vms.resizing import Resize, resize
from virtfleet.services.vms.wanted import NewVm

__all__ = [
    "ACTIONS",
    "NewVm",
    "Resize",
    "Way",
    "act",
    "clean_up",
    "create",
    "delete",
    "migrate",
    "of_job",
    "preflight",
    "resize",
    "retry_cleanups",
    "try_out",
]
