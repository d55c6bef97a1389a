"""One lab: bringing it up and down, looking at it, breaking it on purpose."""

import json
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtfleet import settings
from virtfleet.lab import faults, inventory, libvirtd, links, locks, processes, programs, registry
from virtfleet.lab import host as hosts
from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import GUEST_BRIDGE, LIBVIRT_PORT, MAX_HOSTS, HostLayout, Layout, identity

DEFAULT_HOSTS = 3
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
FIRST_GUEST_ADDRESS = 10  # what lies below is the lab's own: the gateway, and room for more

Say = Callable[[str], None]


def _quietly(_line: str) -> None:
    """Say nothing: for callers that show no progress."""


@dataclass(slots=True)
class HostRecord:
    """What the lab remembers of one host: its number (from 1), its UUID, and the faults it was given."""

    number: int
    uuid: uuid.UUID
    faults: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Record:
    """What the lab remembers of itself, in `lab.json`."""

    slot: int
    kvm: bool
    image: str | None = None
    hosts: list[HostRecord] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "Record | None":
        """Return the record, None when there is none (or a crash left half of one)."""
        try:
            data = json.loads(file.read_text())
            rows = [HostRecord(row["number"], uuid.UUID(row["uuid"]), row["faults"]) for row in data["hosts"]]
            return cls(data["slot"], data["kvm"], data["image"], rows)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, file: Path) -> None:
        """Replace the file at once, so that no reader ever sees half of it."""
        rows = [{"number": host.number, "uuid": str(host.uuid), "faults": host.faults} for host in self.hosts]
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"slot": self.slot, "kvm": self.kvm, "image": self.image, "hosts": rows}, indent=1))
        fresh.rename(file)


class Lab:
    """Several real libvirt hosts on this machine. Needs root.

    `name` tells labs of one `home` (default: the fleet's, see `settings.home`) apart;
    `say` is given a line of progress now and then.
    """

    def __init__(self, name: str = "lab", home: Path | None = None, say: Say = _quietly) -> None:
        if not NAME.fullmatch(name):
            raise LabError(
                "name the lab",
                f"{name[:40]!r} cannot be its name",
                "Use up to 31 small letters, digits and '-', beginning with a letter.",
            )
        self.name = name
        self.folder = (home or settings.home()).absolute() / "lab" / name
        self._say = say

    # ---- what there is

    @property
    def exists(self) -> bool:
        """Whether the lab was brought up and not taken down, however broken it may be."""
        return Record.read(self._record_file) is not None

    @property
    def layout(self) -> Layout:
        """Names, folders and addresses of the lab. Raises LabError when there is no such lab."""
        return self._layout(self._recorded())

    def host(self, name: str) -> HostLayout:
        """Return names, folders and addresses of one host. Raises LabError when the lab has no such host."""
        record = self._recorded()
        return self._layout(record).host(self._host_record(record, name).number)

    def hosts(self) -> list[HostLayout]:
        """Return names, folders and addresses of all hosts."""
        record = self._recorded()
        return [self._layout(record).host(row.number) for row in record.hosts]

    def status(self) -> dict[str, Any]:
        """Return the state of the lab and of each of its hosts. Raises LabError when there is no such lab.

        A host is `up`, `frozen` (libvirtd is stopped), `no-libvirtd`, `down` (powered off, or died), or
        `unreachable` (its link is cut or libvirtd does not answer).
        """
        programs.check(f"look at the lab {self.name}")
        record = self._recorded()
        layout = self._layout(record)
        holders = processes.holders(layout.id)
        with ThreadPoolExecutor(max_workers=8) as pool:
            states = list(pool.map(lambda row: _state(layout.host(row.number), holders), record.hosts))
        return {
            "name": self.name,
            "hosts": [
                {**hosts.summary(layout.host(row.number)), "state": state, "uuid": str(row.uuid), "faults": row.faults}
                for row, state in zip(record.hosts, states, strict=True)
            ],
            "image": record.image if record.image and Path(record.image).is_file() else None,
            "networks": {
                "guests": {
                    "cidr": str(layout.guests),
                    "gateway": str(layout.gateway),
                    "bridge": GUEST_BRIDGE,
                    "range": {"first": str(layout.guests[FIRST_GUEST_ADDRESS]), "last": str(layout.guests[-2])},
                },
                "management": {"cidr": str(layout.management), "gateway": str(layout.management[1])},
            },
            "shared_pools": libvirtd.SHARED_POOLS,
            "shared_folder": str(layout.shared),
            "kvm": record.kvm,
            "inventory": str(layout.inventory),
        }

    # ---- up and down

    def up(self, count: int | None = None, *, kvm: bool | None = None, image: bool = True) -> dict[str, Any]:
        """Bring the lab up and return its status: keep what is in place, make what is missing, undo every fault.

        `count` (1 to 20) is how many hosts there shall be at least; a lab grows, it does not shrink. `kvm` lets the
        hosts use the machine's KVM (None: as before, else not). `image` also makes the small guest image.
        Raises LabError.
        """
        wanted = f"bring up the lab {self.name}"
        if count is not None and not 1 <= count <= MAX_HOSTS:
            raise LabError(wanted, f"{count} hosts were asked for", f"A lab has 1 to {MAX_HOSTS} hosts.")
        programs.check(wanted)
        with self._locked():
            record = self._reserved(kvm)
            layout = self._layout(record)
            present = len(record.hosts)
            if count is not None and count < present:
                self._say(f"The lab has {present} hosts already; a lab does not shrink. virtfleet lab down removes it.")
            for number in range(present + 1, max(count or (present or DEFAULT_HOSTS), present) + 1):
                record.hosts.append(HostRecord(number, uuid.uuid4()))
            record.write(self._record_file)
            self._make_whole(record, layout)
        if image:
            self._ensure_image()
        return self.status()

    def _reserved(self, kvm: bool | None) -> Record:
        """Return the lab's record with subnets that are its own; a lab without a record begins on clean ground."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = Record.read(self._record_file)
        if record is None:
            self._sweep()
        elif kvm is not None and kvm != record.kvm:
            raise LabError(
                f"bring up the lab {self.name} {'with' if kvm else 'without'} KVM",
                f"it was brought up {'with' if record.kvm else 'without'} it",
                f"Take it down first: virtfleet lab down --name {self.name}",
            )
        slot = registry.reserve(identity(self.folder), self.name, self.folder, record.slot if record else None)
        if record is None:
            record = Record(slot, bool(kvm))
        elif record.slot != slot:
            self._sweep()  # after a reboot somebody else may have taken the subnets
            record.slot = slot
        return record

    def _make_whole(self, record: Record, layout: Layout) -> None:
        layout.shared.mkdir(exist_ok=True)
        hosts.make_key(layout.key, comment=f"virtfleet lab {self.name}")
        _write_in_place(layout.hosts_file, _hosts_text(layout, record))
        links.ensure_bridges(layout)
        alive = processes.holders(layout.id)
        rows = {layout.host(row.number): row for row in record.hosts}
        dead = [host for host in rows if host.name not in alive or not _is_connected(host)]

        def boot(host: HostLayout) -> None:
            hosts.prepare(host, rows[host].uuid)
            hosts.start(host, kvm=record.kvm)
            hosts.wait_until_up(host)

        with ThreadPoolExecutor(max_workers=8) as pool:
            if dead:
                self._say(f"Booting {', '.join(host.name for host in dead)} …")
                hosts.share_capabilities(list(rows))
            list(pool.map(boot, dead))
            for host, row in rows.items():
                self._undo(record, host, row, None)
                if host not in dead:
                    for kind in ("cut-link", "freeze-libvirtd", "kill-libvirtd"):  # by somebody else, so unrecorded
                        faults.FAULTS[kind].undo(host, {}, record.kvm)
            list(pool.map(libvirtd.ensure_pools, rows))
        if dead and not hosts.share_capabilities(list(rows)):
            # Asking takes most of a second of processor time: one host asks, the others are told.
            libvirtd.probe_capabilities(next(iter(rows)))
            hosts.share_capabilities(list(rows))
        _write_in_place(layout.known_hosts, _known_hosts_text(rows))
        inventory.write(layout, list(rows))
        self._say(f"The lab {self.name} is up: {', '.join(f'{host.name} {host.address}' for host in rows)}.")

    def _ensure_image(self) -> None:
        """Make the small guest image, outside the lab's lock: it takes seconds and other calls need not wait."""
        from virtfleet.lab.guest_image.build import BuildError, ensure_image  # noqa: PLC0415 - a lab can do without

        try:
            path = ensure_image()
        except BuildError as error:
            hint = "The hosts are up; without the image: virtfleet lab up --no-image"
            raise LabError(f"give the lab {self.name} its image", str(error), hint) from error
        with self._locked():
            record = self._recorded()
            if record.image != str(path):
                record.image = str(path)
                record.write(self._record_file)

    def down(self) -> bool:
        """Remove the lab with its guests and disks, and nothing else. Says whether there was anything."""
        programs.check(f"take down the lab {self.name}")
        with self._locked() as lock_file:
            there = self.folder.exists()
            inventory.withdraw(Layout(self.name, self.folder, slot=0))
            there = self._sweep() or there
            if self.folder.exists():
                shutil.rmtree(self.folder)
            registry.release(identity(self.folder))
            lock_file.unlink()
        with suppress(OSError):
            self.folder.parent.rmdir()
        return there

    def _sweep(self) -> bool:
        """End and remove whatever carries this lab's marks, recorded or not. Says whether there was anything."""
        lab = Layout(self.name, self.folder, slot=0)
        ended = processes.kill(lab.id, None)
        interfaces, namespaces = links.interfaces(lab.prefix), links.namespaces(f"{lab.prefix}-")
        links.remove(namespaces, interfaces)
        for disk in self.folder.glob("hosts/*/disk.img"):
            hosts.wait_until_disk_is_released(disk)
        if ended:
            self._say(f"Ended {', '.join(ended)} of the lab {self.name}.")
        return bool(ended or interfaces or namespaces)

    # ---- faults

    def fault(self, kind: str, host_name: str, **options: Any) -> dict[str, Any]:
        """Give a host a fault and return what was done. Kinds and options: see `faults.FAULTS`. Raises LabError."""
        wanted = f"inject {kind} into {host_name}"
        programs.check(wanted)
        given = {name: value for name, value in options.items() if value is not None}
        if kind not in faults.FAULTS:
            raise LabError(wanted, "there is no such fault", f"There are: {', '.join(sorted(faults.FAULTS))}.")
        unknown = sorted(set(given) - faults.FAULTS[kind].options)
        if unknown:
            raise LabError(wanted, f"{kind} knows no {', '.join(unknown)}", "Leave it out.")
        with self._locked():
            record = self._recorded()
            row = self._host_record(record, host_name)
            entry = {"fault": kind, **given}
            # Recorded before it happens: if this process dies in between, `undo` still knows of it.
            row.faults.append(entry)
            record.write(self._record_file)
            try:
                detail = faults.FAULTS[kind].inject(self._layout(record).host(row.number), given)
            except LabError:
                row.faults.remove(entry)
                record.write(self._record_file)
                raise
            row.faults = [other for other in row.faults[:-1] if other != {**entry, **detail}] + [{**entry, **detail}]
            record.write(self._record_file)
            self._say(f"{host_name}: {_words(row.faults[-1])}")
            return row.faults[-1]

    def undo(self, host_name: str, kind: str | None = None) -> list[dict[str, Any]]:
        """Undo the faults of a host, all or those of one kind, and return what they were. Raises LabError."""
        programs.check(f"undo the faults of {host_name}")
        with self._locked():
            record = self._recorded()
            row = self._host_record(record, host_name)
            return self._undo(record, self._layout(record).host(row.number), row, kind)

    def _undo(self, record: Record, host: HostLayout, row: HostRecord, kind: str | None) -> list[dict[str, Any]]:
        undone = []
        for name, fault in faults.FAULTS.items():
            for entry in [entry for entry in row.faults if entry["fault"] == name and kind in (None, name)]:
                fault.undo(host, entry, record.kvm)
                row.faults.remove(entry)
                record.write(self._record_file)
                undone.append(entry)
                self._say(f"{host.name}: undone: {_words(entry)}")
        return undone

    # ---- the record

    @property
    def _record_file(self) -> Path:
        return self.folder / "lab.json"

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Hold this lab against other processes. The lock file lies beside the folder, which goes with `down`."""
        file = self.folder.with_name(f"{self.name}.lock")
        with locks.held(file):
            yield file

    def _layout(self, record: Record) -> Layout:
        return Layout(self.name, self.folder, record.slot)

    def _recorded(self) -> Record:
        record = Record.read(self._record_file)
        if record is None:
            raise LabError(
                f"find the lab {self.name}",
                f"there is none in {self.folder.parent}",
                f"Bring it up: virtfleet lab up --name {self.name}",
            )
        return record

    def _host_record(self, record: Record, name: str) -> HostRecord:
        layout = self._layout(record)
        for row in record.hosts:
            if layout.host(row.number).name == name:
                return row
        names = ", ".join(layout.host(row.number).name for row in record.hosts)
        raise LabError(f"find {name[:64]!r} in the lab {self.name}", "it has no such host", f"It has: {names}.")


def _words(entry: dict[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in entry.items() if name != "fault")
    return f"{entry['fault']} ({options})" if options else str(entry["fault"])


def _is_connected(host: HostLayout) -> bool:
    return all((links.INTERFACES / end).exists() for end in (host.management_link, host.guest_link))


def _state(host: HostLayout, holders: dict[str, int]) -> str:
    holder = holders.get(host.name)
    if holder is None:
        return "down"
    running = hosts.libvirtd_of(holder)
    if not running:
        return "no-libvirtd"
    if any(process.stopped for process in running):
        return "frozen"
    if not links.is_up(host.management_link):
        return "unreachable"
    try:
        socket.create_connection((str(host.address), LIBVIRT_PORT), timeout=2).close()
    except OSError:
        return "unreachable"
    return "up" if libvirtd.answers(host) else "unreachable"


def _hosts_text(layout: Layout, record: Record) -> str:
    rows = [f"{layout.host(row.number).address} {layout.host(row.number).name}" for row in record.hosts]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *rows, ""])


def _known_hosts_text(rows: dict[HostLayout, HostRecord]) -> str:
    lines = []
    for host in rows:
        kind, key = (host.folder / "ssh" / "host_ed25519.pub").read_text().split()[:2]
        lines.append(f"{host.name},{host.address} {kind} {key}\n")
    return "".join(lines)


def _write_in_place(file: Path, text: str) -> None:
    """Write a file that hosts may have mounted: a new file under the same name would leave them with the old one."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
