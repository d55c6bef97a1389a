"""A group of instances: made, reached by SSH, removed. It shares the lab's marks, subnets and cleaning."""

import hashlib
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from virtfleet.lab import host, links, locks, processes, registry
from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import Layout, identity
from virtfleet.lab.programs import run

from tests.checks.homes import cache
from tests.checks.runner import ROOT
from tests.instances import machine
from tests.instances.instance import Instance
from tests.instances.machine_disk import ensure_start
from tests.instances.root_folder import ensure_root

BOOT = Path(__file__).with_name("boot.sh")
BOOT_SECONDS = 60.0
MACHINE_BOOT_SECONDS = 600.0  # emulated, on a machine that has other things to do
MAX_INSTANCES = 9
SSH_PORT = 22
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
NAME_RULE = "Use up to 31 small letters, digits and '-', beginning with a letter."


class Group:
    """The instances of one purpose, such as one molecule scenario. Two checkouts may have groups of one name."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LabError("name a group of instances", f"{name[:40]!r} cannot be its name", NAME_RULE)
        self.name = name
        self.folder = _groups_folder() / name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs of this checkout off the group, which they would take for a crash's; wait for them first."""
        with locks.held(self.folder.with_name(f"{self.name}.run")):
            yield

    def up(self, names: list[str], machines: bool = False) -> list[dict[str, Any]]:
        """Make and boot instances with these names and return how to reach each. What an earlier run left goes first.

        With `machines` they are virtual machines, with a kernel of their own.
        Raises LabError when one does not come up; nothing is left then but the folder with the logs.
        """
        wanted = f"make the instances of {self.name}"
        if not 1 <= len(names) <= MAX_INSTANCES or len(set(names)) != len(names):
            raise LabError(wanted, f"their names are {', '.join(names) or 'missing'}", "Give 1 to 9 different names.")
        for name in names:
            if not NAME.fullmatch(name):
                raise LabError(wanted, f"{name[:40]!r} cannot be the name of one", NAME_RULE)
        root = ensure_root()
        start = ensure_start() if machines else None
        with locks.held(self._lock):
            self._sweep()
            self.folder.mkdir(parents=True, mode=0o700)
            slot = registry.reserve(identity(self.folder), self.name, self.folder, None)
            layout = Layout(self.name, self.folder, slot)
            host.make_key(layout.key, comment=self.name)
            instances = [Instance(layout, name, number, machines) for number, name in enumerate(names, start=1)]
            _write_inventory(layout, root, instances)
            try:
                links.ensure_bridges(layout)
                for instance in instances:
                    _prepare(instance)
                    if start is None:
                        _boot(instance, root)
                    else:
                        machine.boot(instance, start)
                for instance in instances:
                    _await_up(instance)
            except BaseException:
                self._end()
                raise
        return [_summary(instance) for instance in instances]

    def down(self) -> bool:
        """Remove the group with all that its instances wrote. Says whether there was anything."""
        with locks.held(self._lock):
            there = self._sweep()
            registry.release(identity(self.folder))
            self._lock.unlink()
        return there

    def processor_seconds(self) -> float:
        """Return for how long processors have worked for the instances since each booted."""
        prefix = Layout(self.name, self.folder, slot=0).prefix
        stats = [(top / "cpu.stat").read_text().split() for top in _cgroups(prefix)]
        return sum(int(stat[stat.index("usage_usec") + 1]) for stat in stats) / 1e6

    @property
    def _lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    def _end(self) -> bool:
        """End what runs and unplug it; the folder stays. Says whether there was anything."""
        layout = Layout(self.name, self.folder, slot=0)
        ended = processes.kill(layout.id, None)
        interfaces, namespaces = links.interfaces(layout.prefix), links.namespaces(f"{layout.prefix}-")
        links.remove(namespaces, interfaces)
        _remove_cgroups(layout.prefix)
        return bool(ended or interfaces or namespaces)

    def _sweep(self) -> bool:
        there = self._end()
        if self.folder.exists():
            shutil.rmtree(self.folder)
            return True
        return there


def groups() -> list[str]:
    """Return the names of the groups of this checkout, those of crashed runs included."""
    folder = _groups_folder()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _groups_folder() -> Path:
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    return cache() / "instances" / checkout


def _write_inventory(layout: Layout, root: Path, instances: list[Instance]) -> None:
    """Write the instances' host keys and an Ansible inventory."""
    key = " ".join((root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
    layout.known_hosts.write_text("".join(f"{instance.address} {key}\n" for instance in instances))
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(layout.key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={layout.known_hosts}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts = {instance.name: {"ansible_host": instance.address} for instance in instances}
    layout.inventory.parent.mkdir()
    layout.inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": variables}}, sort_keys=False))


def _prepare(instance: Instance) -> None:
    """Write what makes the instance itself: its name, its address, who may enter."""
    layout, upper = instance.layout, instance.folder / "upper"
    for part in ("etc/systemd/network", "etc/systemd/system/multi-user.target.wants", "root/.ssh"):
        (upper / part).mkdir(parents=True)
    (instance.folder / "merged").mkdir()
    (upper / "root/.ssh").chmod(0o700)
    (upper / "root").chmod(0o700)
    shutil.copyfile(layout.key.with_suffix(".pub"), upper / "root/.ssh/authorized_keys")
    (upper / "root/.ssh/authorized_keys").chmod(0o600)
    (upper / "etc/hostname").write_text(f"{instance.name}\n")
    (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {instance.name}\n")
    (upper / "etc/resolv.conf").write_text("")  # nothing to ask; the root folder has the machine's
    (upper / "etc/systemd/network/eth0.network").write_text(
        "[Match]\nName=eth0\n\n[Network]\n"
        f"Address={instance.address}/{layout.management.prefixlen}\nGateway={layout.management[1]}\n"
    )
    unit = "/lib/systemd/system/systemd-networkd.service"
    (upper / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service").symlink_to(unit)
    # Packages are in apt's cache, and there is no network to refresh its lists from: they count as fresh.
    (upper / "var/lib/apt/periodic").mkdir(parents=True)
    (upper / "var/lib/apt/periodic/update-success-stamp").touch()


def _boot(instance: Instance, root: Path) -> None:
    layout = instance.layout
    argv = [
        *("sh", str(BOOT), str(instance.folder), str(root), instance.name, instance.namespace, layout.prefix),
        *(str(instance.number), layout.management_bridge, layout.guest_bridge),
        *(instance.mac("eth0"), instance.mac("eth1")),
    ]
    processes.start(layout.id, instance.name, argv, instance.folder / "boot.log")


def run_inside(instance: Instance, argv: list[str], wanted: str) -> str:
    """Run a program inside the instance and return its output. Raises LabError, also when it is off."""
    if instance.is_machine:
        return machine.run_inside(instance, argv, wanted)
    init = processes.holders(instance.layout.id).get(instance.name)
    if init is None:
        raise LabError(wanted, f"{instance.name} is off", f"Its log: {instance.folder / 'boot.log'}")
    inside = ["nsenter", "--target", str(init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
    return run([*inside, "--wd=/", "--", *argv], wanted)


def _await_up(instance: Instance) -> None:
    """Wait until systemd has started everything and sshd listens. An SSH before that may hang for 20 s."""
    seconds = MACHINE_BOOT_SECONDS if instance.is_machine else BOOT_SECONDS
    deadline = time.monotonic() + seconds
    wanted = f"boot the instance {instance.name}"
    state = "nothing answered"
    while time.monotonic() < deadline:
        try:
            state = run_inside(instance, ["sh", "-c", "systemctl is-system-running || true"], wanted).strip()
            if state in ("running", "degraded"):
                socket.create_connection((instance.address, SSH_PORT), timeout=2).close()
                return
        except (LabError, OSError) as error:
            state = str(error)
        time.sleep(2 if instance.is_machine else 0.1)
    log = (instance.folder / "boot.log").read_text(errors="replace").strip().splitlines()[-5:]
    raise LabError(wanted, f"after {seconds:.0f} s: {state}; {'; '.join(log)}", f"See {instance.folder}/boot.log.")


def _cgroups(prefix: str) -> list[Path]:
    """Return the cgroups of the instances of a group."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    points = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    return [top for point in points for top in point.glob(f"{prefix}-*")]


def _remove_cgroups(prefix: str) -> None:
    for top in _cgroups(prefix):
        folders = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*folders, top]:
            folder.rmdir()


def _summary(instance: Instance) -> dict[str, Any]:
    layout = instance.layout
    return {
        "instance": instance.name,
        "address": instance.address,
        "gateway": str(layout.management[1]),
        "port": SSH_PORT,
        "user": "root",
        "identity_file": str(layout.key),
        "known_hosts": str(layout.known_hosts),
        "inventory": str(layout.inventory),
    }
