# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One migration on its way: how libvirt is asked for it, how far it is, and when and how it is given up."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.migration_storage import StoragePlan
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

POLL_SECONDS = 0.2
ABORT_SECONDS = 30.0
"""How long a migration may take to end once it was told to."""
STOPPED_SECONDS = 2.0
"""The same when this process was told to end itself."""
_MIB = 2**20
_LARGEST_MIBPS = 2**31 - 1
_PAUSED = 3
_RUNNING = (1, 2)


@dataclass(frozen=True)
class Wish:
    """How a machine is to be moved. Speeds are bytes a second, times seconds; None leaves the choice to libvirt."""

    name: str | None
    uuid: str | None
    peer_uri: str
    address: str | None
    live: bool = True
    copy_storage: bool = True
    shared_pools: tuple[str, ...] = ()
    bandwidth_bytes: int | None = None
    max_downtime: float | None = None
    auto_converge: bool = False
    post_copy: bool = False

    @property
    def goal(self) -> str:
        """What is wanted, as it completes "Failed to …"."""
        return f"migrate machine {self.name or self.uuid}"


@dataclass
class Progress:
    """How far a migration is; sizes are bytes."""

    total_bytes: int = 0
    done_bytes: int = 0
    disk_bytes: int = 0
    iteration: int = 0
    unsafe: bool = False  # libvirt could not see that the storage is shared, and was told

    @property
    def percent(self) -> int:
        """How much of what is to be carried over now has been."""
        return min(100, self.done_bytes * 100 // self.total_bytes) if self.total_bytes else 0


Report = Callable[[Progress], None]


def is_live(domain: libvirt.virDomain) -> bool:
    """Tell whether a machine's processors run."""
    return domain.state()[0] in _RUNNING


def is_incoming(domain: libvirt.virDomain) -> bool:
    """Tell whether a machine is paused because it is still being received."""
    state, reason = domain.state()
    waiting = (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
    return state == _PAUSED and reason in waiting


def is_left_waiting(domain: libvirt.virDomain) -> bool:
    """Tell whether a machine is paused because it was handed over and nobody said how that went."""
    return domain.state()[:2] == [_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]


def is_leaving(domain: libvirt.virDomain) -> bool:
    """Tell whether a machine is being migrated away at this moment."""
    try:
        if not domain.isActive():
            return False
        said = domain.jobStats(0)
    except libvirtError as error:
        if code_of(error) in ("refused", "not_found"):
            return False
        raise translate(error, "look whether a machine is being migrated") from error
    kinds = (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
    outgoing = said.get("operation") in (None, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
    return said.get("type") in kinds and outgoing


def cut_off(domain: libvirt.virDomain, goal: str, deadline: Deadline) -> None:
    """End a migration; it may come to its good end meanwhile. Raises VirtfleetError `timeout`."""
    while is_leaving(domain):
        if deadline.passed:
            text = f"its migration could not be ended within {deadline.seconds:g} s"
            hint = "Look at it on the source: virsh domjobinfo. One in post-copy has to come to its end."
            raise VirtfleetError(goal, text, hint, "timeout", values={"on": "unknown"})
        with contextlib.suppress(libvirtError):
            domain.abortJob()  # again and again: early on libvirt cannot take it yet
        time.sleep(POLL_SECONDS)


def stopped(goal: str) -> VirtfleetError:
    """Return the error of a run that was told to end."""
    hint = "Run the same again to have it moved."
    return VirtfleetError(goal, "the run was told to end, so the migration was ended", hint, "refused")


@contextlib.contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set, so that a migration is not left to itself when its run is ended."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kept = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Crossing:
    """A machine on its way. `stop` is set when the run is to end at once."""

    def __init__(
        self,
        wish: Wish,
        here: libvirt.virDomain,
        target: libvirt.virConnect,
        *,
        deadline: Deadline,
        report: Report,
        stop: threading.Event,
    ) -> None:
        self.wish = wish
        self.here = here
        self.target = target
        self.deadline = deadline
        self.report = report
        self.stop = stop
        self.progress = Progress()

    def carry(self, planned: StoragePlan, *, running: bool) -> None:
        """Have the machine carried over; returns when libvirt says it is there. Raises VirtfleetError."""
        flags, parameters = self._how(planned, running=running)
        outcome: list[Exception | None] = []

        def carry() -> None:
            try:
                self._start(planned, parameters, flags)
                outcome.append(None)
            except Exception as error:  # handed over whole to the thread that waits
                outcome.append(error)

        if self.wish.max_downtime is not None and running:
            with contextlib.suppress(libvirtError):  # an older libvirt takes it only once the migration is on its way
                self.here.migrateSetMaxDowntime(int(self.wish.max_downtime * 1000), 0)
        thread = threading.Thread(target=carry, name="virtfleet: migrate", daemon=True)
        thread.start()
        why = self._watch(thread.is_alive, thread.join)
        if not outcome:
            text = f"{why}, and libvirt did not end it in time either"
            hint = "Look at it on the source: virsh domjobinfo. The next run takes it up where it is."
            raise VirtfleetError(self.wish.goal, text, hint, "timeout")
        error = outcome[0]
        if error is None:
            return
        if self.stop.is_set():
            raise stopped(self.wish.goal) from error
        if why is not None:
            hint = "Allow more time or bandwidth, or let it converge: options timeout, bandwidth, auto_converge."
            raise VirtfleetError(self.wish.goal, why, hint, "timeout") from error
        raise translate(error, self.wish.goal) if isinstance(error, libvirtError) else error

    def follow(self) -> None:
        """Wait for the end of a migration that an earlier run began; give it up when the time is over."""
        self._watch(lambda: is_leaving(self.here), time.sleep)

    def _start(self, planned: StoragePlan, parameters: dict[str, Any], flags: int) -> None:
        """Migrate. Raises libvirtError."""

        def migrate(flags: int) -> None:
            vms.patient_with_tpm(lambda: self.here.migrateToURI3(self.wish.peer_uri, parameters, flags))

        try:
            migrate(flags)
        except libvirtError as error:
            # Libvirt sees by itself that NFS and cluster file systems are shared. Of others a person has said so, and
            # it was proven a moment ago.
            if not planned.asserted_pools or error.get_error_code() != libvirt.VIR_ERR_MIGRATE_UNSAFE:
                raise
            self.progress.unsafe = True
            migrate(flags | libvirt.VIR_MIGRATE_UNSAFE)

    def _how(self, planned: StoragePlan, *, running: bool) -> tuple[int, dict[str, Any]]:
        """Return libvirt's flags and parameters."""
        wish = self.wish
        flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        parameters: dict[str, Any] = {}
        if not running:
            return flags | libvirt.VIR_MIGRATE_OFFLINE, parameters
        address = wish.address or urlsplit(wish.peer_uri).hostname or ""
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = f"tcp://[{address}]" if ":" in address else f"tcp://{address}"
        flags |= libvirt.VIR_MIGRATE_ABORT_ON_ERROR
        flags |= libvirt.VIR_MIGRATE_LIVE if wish.live else 0
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE if wish.auto_converge else 0
        flags |= libvirt.VIR_MIGRATE_POSTCOPY if wish.post_copy else 0
        if wish.bandwidth_bytes is not None:
            mibps = max(1, math.ceil(wish.bandwidth_bytes / _MIB))
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = min(mibps, _LARGEST_MIBPS)
        if planned.mirrored:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC if planned.top_layers else libvirt.VIR_MIGRATE_NON_SHARED_DISK
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [disk.target for disk in planned.mirrored]
        return flags, parameters

    def _watch(self, goes_on: Callable[[], bool], wait: Callable[[float], Any]) -> str | None:
        """Follow a migration to its end; return why it was given up, or None."""
        why: str | None = None
        ended_by: Deadline | None = None
        post_copy = False
        while goes_on():
            wait(POLL_SECONDS)
            self._note()
            if self.wish.post_copy and not post_copy and self.progress.iteration > 1:
                with contextlib.suppress(libvirtError):
                    self.here.migrateStartPostCopy(0)
                    post_copy = True
            if why is None:
                why = self._reason_to_end()
                if why is not None:
                    ended_by = Deadline(STOPPED_SECONDS if self.stop.is_set() else ABORT_SECONDS)
            if ended_by is not None:
                if ended_by.passed:
                    return why
                with contextlib.suppress(libvirtError):
                    self.here.abortJob()  # again and again: early on libvirt cannot take it yet
        return why

    def _reason_to_end(self) -> str | None:
        if self.stop.is_set():
            return "the run was told to end"
        if self.deadline.passed:
            return f"it was not done after {self.deadline.seconds:g} s ({self.progress.percent} % was carried over)"
        try:
            alive = bool(self.target.isAlive())
        except libvirtError:
            alive = False
        return None if alive else "the target does not answer any more"

    def _note(self) -> None:
        with contextlib.suppress(libvirtError):
            said = self.here.jobStats(0)
            self.progress.iteration = said.get("memory_iteration", 0)
            self.progress.total_bytes = said.get("data_total", 0)
            self.progress.done_bytes = max(0, said.get("data_total", 0) - said.get("data_remaining", 0))
            self.progress.disk_bytes = max(self.progress.disk_bytes, said.get("disk_processed", 0))
            self.report(self.progress)
