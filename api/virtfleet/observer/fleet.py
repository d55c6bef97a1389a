"""The observer's loop: all hosts of the table, one child each, and what they say into the database."""

import logging
import os
import resource
import select
import selectors
import socket
import time
from collections.abc import Callable
from itertools import islice

from sqlalchemy import select as sql_select
from sqlalchemy.exc import SQLAlchemyError

from virtfleet import clock, database
from virtfleet.models import Host, Lease
from virtfleet.observer import recording
from virtfleet.observer.watching import HostWatch, News
from virtfleet.settings import Settings

LEASE = "observer"
"""The row of `leases` that says until when the observer counts as alive."""
BEAT_SECONDS, ALIVE_SECONDS = 5.0, 15.0
LOOK_SECONDS = 1.0
"""How often the table is looked at for hosts that are new or gone."""
CHECK_SECONDS = 0.2
GATHER_SECONDS = 0.02
"""Urgent news wait so long for company: a transaction for ten machines costs hardly more than for one."""
CALM_SECONDS = 2.0
"""Load, free memory and the like are written together, so often."""
MOST_STARTING = 8
"""Children that may be starting at once. One that starts costs a tenth of a second of processor time."""
MOST_DESCRIPTORS = 8192
HOSTS_PER_WRITE = 50
"""So that nobody who wants to write waits long."""

log = logging.getLogger(__name__)


class FleetWatch:
    """Watches all hosts of the table until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watches: dict[str, HostWatch] = {}
        self._selector = selectors.DefaultSelector()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._news: dict[str, float] = {}
        """Host id → when it is to be written (monotonic)."""
        self._me = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """Have `run` return soon. May be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def run(self) -> None:
        """Watch until `stop` is called; no child is left afterwards."""
        _allow_many_descriptors()
        next_look = next_beat = next_check = 0.0
        try:
            while True:
                if not self._wait(time.monotonic()):
                    return
                now = time.monotonic()
                if now >= next_check:
                    next_check = now + CHECK_SECONDS
                    if now >= next_look:
                        next_look = now + LOOK_SECONDS
                        self._guarded(self._look)
                    if now >= next_beat:
                        next_beat = now + BEAT_SECONDS
                        self._guarded(self._beat)
                    self._check(now)
                self._write(now)
        finally:
            for watch in self._watches.values():
                watch.end()
            self._guarded(self._leave)
            self._selector.close()
            os.close(self._stop)

    def _wait(self, now: float) -> bool:
        """Hear the children until something else is due; False when it is time to stop."""
        due = min(self._news.values(), default=now + CHECK_SECONDS)
        for key, _events in self._selector.select(max(0.0, min(CHECK_SECONDS, due - now))):
            if key.fd == self._stop:
                return False
            watch: HostWatch = key.data
            self._noted(watch, watch.hear(time.monotonic()))
        return True

    def _noted(self, watch: HostWatch, news: News | None) -> None:
        if watch.pipe is None:
            self._forget_pipe(watch)
        if news is None:
            return
        if watch.status is not None and news.urgent:
            log.log(logging.WARNING if watch.status.error else logging.INFO, "%s is %s", watch.name, _said(watch))
        due = time.monotonic() + (GATHER_SECONDS if news.urgent else CALM_SECONDS)
        self._news[watch.host_id] = min(due, self._news.get(watch.host_id, due))

    def _forget_pipe(self, watch: HostWatch) -> None:
        for key in [key for key in self._selector.get_map().values() if key.data is watch]:
            self._selector.unregister(key.fd)

    # ---- what is due

    def _look(self) -> None:
        """Begin with hosts that are new, end with those that are gone or are reached by another URI now."""
        with database.read() as session:
            rows = session.execute(sql_select(Host.id, Host.name, Host.uri)).all()
        wanted = {host_id: (name, uri) for host_id, name, uri in rows}
        for host_id, watch in list(self._watches.items()):
            if host_id not in wanted or wanted[host_id][1] != watch.uri:
                del self._watches[host_id]
                self._news.pop(host_id, None)
                self._forget_pipe(watch)
                watch.end()
                log.info("%s is no longer watched at %s", watch.name, watch.uri)
        chosen = self._settings
        for host_id, (name, uri) in wanted.items():
            if host_id not in self._watches:
                watch = HostWatch(host_id, name, uri, timeout=chosen.host_timeout, every=chosen.observe_seconds)
                self._watches[host_id] = watch
                log.info("%s is watched at %s", name, uri)
            self._watches[host_id].name = name

    def _check(self, now: float) -> None:
        for watch in self._watches.values():
            if watch.is_overdue(now) and not self._has_spoken(watch):
                self._forget_pipe(watch)
                self._noted(watch, watch.silence(now))
        free = MOST_STARTING - sum(watch.starting for watch in self._watches.values())
        for watch in islice((watch for watch in self._watches.values() if watch.is_due(now)), max(0, free)):
            self._begin(watch, now)

    def _has_spoken(self, watch: HostWatch) -> bool:
        """Hear a child that is late only because this loop was: a write may have to wait for the database."""
        pipe = watch.pipe
        if pipe is None:
            return False
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        if not waiting.poll(0):
            return False
        self._noted(watch, watch.hear(time.monotonic()))
        return True

    def _begin(self, watch: HostWatch, now: float) -> None:
        try:
            watch.start(now)
        except OSError as error:
            reason = (
                f"Failed to watch {watch.name}: no process could be started here ({error.strerror or error}). "
                "Look at this machine's memory and limits."
            )
            self._noted(watch, watch.give_up(now, reason))
            return
        if watch.pipe is not None:
            self._selector.register(watch.pipe, selectors.EVENT_READ, watch)

    def _write(self, now: float) -> None:
        """Write the hosts that are due, and with them all that are close to it."""
        if not any(due <= now for due in self._news.values()):
            return
        urgent = now + GATHER_SECONDS
        due = [host_id for host_id, at in self._news.items() if at <= urgent][:HOSTS_PER_WRITE]
        found = ((host_id, self._watches[host_id].status) for host_id in due)
        statuses = {host_id: status for host_id, status in found if status is not None}
        views = {host_id: watch.view for host_id, watch in self._watches.items() if watch.view is not None}
        try:
            with database.write() as session:
                recording.record(session, clock.now(), statuses, views)
        except SQLAlchemyError:
            log.exception("what was seen of %d hosts could not be written; it is tried again", len(due))
            self._news |= dict.fromkeys(due, time.monotonic() + LOOK_SECONDS)
            return
        for host_id in due:
            del self._news[host_id]

    # ---- being alive

    def _beat(self) -> None:
        with database.write() as session:
            row = session.get(Lease, LEASE)
            until = clock.after(ALIVE_SECONDS)
            if row is None:
                session.add(Lease(name=LEASE, holder=self._me, until=until))
            else:
                row.holder, row.until = self._me, until

    def _leave(self) -> None:
        with database.write() as session:
            row = session.get(Lease, LEASE)
            if row is not None and row.holder == self._me:
                session.delete(row)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something with the database; when that fails, say so and go on: it is done again soon."""
        try:
            action()
        except SQLAlchemyError:
            log.exception("the database could not be used; it is tried again")


def _said(watch: HostWatch) -> str:
    status = watch.status
    assert status is not None
    if status.error:
        return f"{status.state}: {status.error}"
    return f"{status.state}, {len(watch.view.states) if watch.view else 0} machines"


def _allow_many_descriptors() -> None:
    """Lift the soft limit: a pipe for each host. Not beyond need: some programs close every number below the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
