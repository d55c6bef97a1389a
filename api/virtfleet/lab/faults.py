"""The faults that a host can be given, each with its undo. Both ways are idempotent."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from virtfleet.lab import host as hosts
from virtfleet.lab import libvirtd, links, processes
from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import PRIVATE_FOLDER, HostLayout

Detail = dict[str, Any]
FILL_FILE = PRIVATE_FOLDER / "virtfleet-fault-fill"
DEFAULT_DELAY_MS = 200
DEFAULT_RATE_KBIT = 256
CABLES = ("management", "guests", "both")


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. `inject` takes the host and the options, and returns what `undo` needs to know."""

    options: frozenset[str]
    inject: Callable[[HostLayout, Mapping[str, Any]], Detail]
    undo: Callable[[HostLayout, Detail, bool], None]  # the flag: may the host use KVM


def _kill_libvirtd(host: HostLayout, _options: Mapping[str, Any]) -> Detail:
    holder = hosts.holder_of(host, f"kill libvirtd on {host.name}")
    processes.send(holder, [process.pid for process in hosts.libvirtd_of(holder)], signal.SIGKILL)
    _wait_until(lambda: not hosts.libvirtd_of(holder), f"kill libvirtd on {host.name}")
    return {}


def _restart_libvirtd(host: HostLayout, _detail: Detail, _kvm: bool) -> None:
    wanted = f"start libvirtd on {host.name}"
    holder = hosts.holder_of(host, wanted)
    # A boot that still goes on, after a run that was killed, starts libvirtd by itself; two cannot be.
    if hosts.has_booted(holder) and not hosts.libvirtd_of(holder):
        hosts.run_inside(host, ["libvirtd", "--listen", "-d"], wanted)
    hosts.wait_until_up(host)


def _freeze_libvirtd(host: HostLayout, _options: Mapping[str, Any]) -> Detail:
    wanted = f"freeze libvirtd on {host.name}"
    holder = hosts.holder_of(host, wanted)
    running = hosts.libvirtd_of(holder)
    if not running:
        raise LabError(wanted, "it does not run", f"Start it: virtfleet lab fault undo {host.name}")
    processes.send(holder, [process.pid for process in running], signal.SIGSTOP)
    _wait_until(lambda: all(process.stopped for process in hosts.libvirtd_of(holder)), wanted)
    return {}


THAW_SECONDS = 2.0
"""How long a libvirtd that was thawed is watched."""


def _thaw_libvirtd(host: HostLayout, detail: Detail, kvm: bool) -> None:
    holder = processes.holders(host.lab.id).get(host.name)
    if holder is None:
        return
    processes.send(holder, [process.pid for process in hosts.libvirtd_of(holder)], signal.SIGCONT)
    # libvirtd 9.0 may crash when all the clients that gave it up hang up at once; systemd would start it again.
    end = time.monotonic() + THAW_SECONDS
    while time.monotonic() < end:
        time.sleep(0.1)
        if not hosts.libvirtd_of(holder):
            _restart_libvirtd(host, detail, kvm)
            return


def _power_off(host: HostLayout, _options: Mapping[str, Any]) -> Detail:
    hosts.stop(host)
    return {}


def _power_on(host: HostLayout, _detail: Detail, kvm: bool) -> None:
    if host.name not in processes.holders(host.lab.id):
        hosts.start(host, kvm=kvm)
    hosts.wait_until_up(host)


def _cut_link(host: HostLayout, options: Mapping[str, Any]) -> Detail:
    which = options.get("link") or "management"
    if which not in CABLES:
        raise LabError(
            f"cut the link of {host.name}", f"there is no link {which!r}", f"Choose one of: {', '.join(CABLES)}."
        )
    ends = {"management": [host.management_link], "guests": [host.guest_link]}
    for end in ends.get(which, [host.management_link, host.guest_link]):
        links.switch(end, on=False)
    return {"link": which}


def _mend_link(host: HostLayout, _detail: Detail, _kvm: bool) -> None:
    for end in (host.management_link, host.guest_link):
        if (links.INTERFACES / end).exists() and not links.is_up(end):
            links.switch(end, on=True)


def _slow_link(host: HostLayout, options: Mapping[str, Any]) -> Detail:
    hosts.holder_of(host, f"slow the link of {host.name}")
    delay_ms, rate_kbit = options.get("delay_ms"), options.get("rate_kbit")
    if delay_ms is not None and rate_kbit is not None:
        raise LabError(f"slow the link of {host.name}", "both a delay and a rate were given", "Give one of them.")
    for name, value in (("delay", delay_ms), ("rate", rate_kbit)):
        if value is not None and value <= 0:
            raise LabError(
                f"slow the link of {host.name}", f"the {name} {value} is not above zero", "Give a positive number."
            )
    if rate_kbit is None:
        try:
            links.delay(host, delay_ms or DEFAULT_DELAY_MS)
            return {"delay_ms": delay_ms or DEFAULT_DELAY_MS}
        except LabError:
            if delay_ms is not None:
                raise
    links.throttle(host, rate_kbit or DEFAULT_RATE_KBIT)
    return {"rate_kbit": rate_kbit or DEFAULT_RATE_KBIT}


def _unslow_link(host: HostLayout, _detail: Detail, _kvm: bool) -> None:
    if (links.INTERFACES / host.management_link).exists():
        links.unslow(host)


def _kill_guest(host: HostLayout, options: Mapping[str, Any]) -> Detail:
    guest = options.get("guest")
    wanted = f"kill the guest {guest} on {host.name}"
    if not guest:
        raise LabError(f"kill a guest on {host.name}", "no guest was named", "Name one: --guest NAME.")
    holder = hosts.holder_of(host, wanted)
    # libvirt doubles commas in a name when it writes QEMU's command line
    argument = "guest=" + guest.replace(",", ",,") + ","
    found = []
    for process in processes.within(holder):
        words = processes.arguments(process.pid)
        if any(word == "-name" and after.startswith(argument) for word, after in itertools.pairwise(words)):
            found.append(process.pid)
    if not found:
        raise LabError(wanted, "no QEMU of that name runs there", f"See what runs: virsh -c {host.uri} list")
    processes.send(holder, found, signal.SIGKILL)
    _wait_until(lambda: not {p.pid for p in processes.within(holder)} & set(found), wanted)
    return {"guest": guest}


def _restart_guest(host: HostLayout, detail: Detail, _kvm: bool) -> None:
    if detail.get("guest"):
        libvirtd.start_domain(host, detail["guest"])


def _fill_pool(host: HostLayout, _options: Mapping[str, Any]) -> Detail:
    wanted = f"fill the pool default of {host.name}"
    holder = hosts.holder_of(host, wanted)
    folder = hosts.inside_path(holder, PRIVATE_FOLDER)
    if folder.stat().st_dev == folder.parent.stat().st_dev:
        raise LabError(
            wanted,
            "it is a plain folder of this machine, whose disk the lab will not fill",
            "The lab gives pools a disk of their own where the kernel has loop devices.",
        )
    descriptor = os.open(hosts.inside_path(holder, FILL_FILE), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # Reserved in the pool's own file system only: on the machine's disk this takes no room.
        size = os.fstat(descriptor).st_size
        step = 1 << 30
        while step >= os.fstatvfs(descriptor).f_bsize:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError:
                step //= 2
    finally:
        os.close(descriptor)
    _refresh_if_it_answers(host, holder)
    return {"bytes": size}


def _empty_pool(host: HostLayout, _detail: Detail, _kvm: bool) -> None:
    holder = hosts.holder_of(host, f"empty the pool default of {host.name}")
    hosts.inside_path(holder, FILL_FILE).unlink(missing_ok=True)
    _refresh_if_it_answers(host, holder)


def _refresh_if_it_answers(host: HostLayout, holder: int) -> None:
    running = hosts.libvirtd_of(holder)
    if running and not any(process.stopped for process in running) and links.is_up(host.management_link):
        libvirtd.refresh_pool(host, "default")


def _wait_until(done: Callable[[], bool], wanted: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise LabError(wanted, f"it had not happened after {seconds:.0f} s")
        time.sleep(0.02)


# In the order in which they are undone: a host must be on before anything in it can be mended.
FAULTS: dict[str, Fault] = {
    "power-off": Fault(frozenset(), _power_off, _power_on),
    "cut-link": Fault(frozenset({"link"}), _cut_link, _mend_link),
    "slow-link": Fault(frozenset({"delay_ms", "rate_kbit"}), _slow_link, _unslow_link),
    "freeze-libvirtd": Fault(frozenset(), _freeze_libvirtd, _thaw_libvirtd),
    "kill-libvirtd": Fault(frozenset(), _kill_libvirtd, _restart_libvirtd),
    "fill-pool": Fault(frozenset(), _fill_pool, _empty_pool),
    "kill-guest": Fault(frozenset({"guest"}), _kill_guest, _restart_guest),
}
