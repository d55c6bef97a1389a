"""One light host: its folder, its boot, its end."""

import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtfleet.lab import links, processes
from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import LIBVIRT_PORT, HostLayout
from virtfleet.lab.programs import run

DISK_BYTES = 20 * 1024**3  # sparse: it takes what is written
BOOT_SECONDS = 30.0
INIT = Path(__file__).with_name("host_init.sh")
BOOTED = ["sleep", "infinity"]  # the last line of INIT
LOOP_DEVICES = Path("/sys/block")
MACHINE_FILTERS = Path("/etc/libvirt/nwfilter")
CAPABILITIES = Path("cache/qemu/capabilities")


def prepare(host: HostLayout, host_uuid: uuid.UUID) -> None:
    """Write the host's folder: configuration always anew, disks and keys only when there are none."""
    for part in ("etc/qemu", "ssh", "lib/images", "lib/shared", "cache", "log"):
        (host.folder / part).mkdir(parents=True, exist_ok=True)
    (host.folder / "no-kvm").touch(mode=0o600)
    (host.folder / "etc/libvirtd.conf").write_text(
        f'host_uuid = "{host_uuid}"\n'  # migration is refused between hosts of one UUID
        "listen_tls = 0\n"
        "listen_tcp = 1\n"
        f'listen_addr = "{host.address}"\n'
        f'tcp_port = "{LIBVIRT_PORT}"\n'
        'auth_tcp = "none"\n'
        'auth_unix_rw = "none"\n'
        'unix_sock_group = "root"\n'
        'unix_sock_rw_perms = "0700"\n'
        'log_outputs = "2:file:/var/log/libvirt/libvirtd.log"\n'
    )
    (host.folder / "etc/qemu.conf").write_text(
        'user = "root"\n'
        'group = "root"\n'
        "dynamic_ownership = 0\n"  # all is root's; nothing to relabel on folders that hosts share
        "remember_owner = 0\n"
        'security_driver = "none"\n'
        "cgroup_controllers = []\n"
        "namespaces = []\n"
        f'migration_address = "{host.address}"\n'
    )
    if MACHINE_FILTERS.is_dir() and not (host.folder / "etc/nwfilter").exists():
        shutil.copytree(MACHINE_FILTERS, host.folder / "etc/nwfilter")
    _prepare_ssh(host)
    disk = host.folder / "disk.img"
    if not disk.exists():
        fresh = disk.with_suffix(".new")
        with fresh.open("wb") as file:
            file.truncate(DISK_BYTES)
        features = ["-m", "0", "-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
        run(["mkfs.ext4", "-q", "-F", *features, str(fresh)], f"make the private disk of {host.name}")
        fresh.rename(disk)


def _prepare_ssh(host: HostLayout) -> None:
    folder = host.folder / "ssh"
    make_key(folder / "host_ed25519", comment=host.name)
    shutil.copyfile(host.lab.key.with_suffix(".pub"), folder / "authorized_keys")
    (folder / "authorized_keys").chmod(0o600)
    (folder / "sshd_config").write_text(
        f"ListenAddress {host.address}\n"
        "HostKey /etc/ssh/host_ed25519\n"
        "AuthorizedKeysFile /etc/ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM yes\n"  # without it sshd turns away a root whose password is locked
        "PrintMotd no\n"
        "UseDNS no\n"
        "MaxStartups 100\n"
        "Subsystem sftp internal-sftp\n"
    )


def make_key(path: Path, comment: str) -> None:
    """Make an SSH key pair without a passphrase, once. The private half has mode 0600."""
    if path.exists() and path.with_suffix(".pub").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(path.name + ".new")
    for left in (fresh, fresh.with_name(fresh.name + ".pub")):
        left.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(fresh)], f"make the SSH key {path}")
    fresh.with_name(fresh.name + ".pub").rename(path.with_suffix(".pub"))
    fresh.rename(path)


def start(host: HostLayout, *, kvm: bool) -> None:
    """Boot the host: namespaces, mounts, daemons. Whatever a dead run left of it is removed first; its disks stay.

    Returns at once; `wait_until_up` waits for the daemons.
    """
    stop(host)
    links.connect_host(host)
    script = [
        str(INIT),
        str(host.folder),
        str(host.lab.shared),
        str(host.lab.hosts_file),
        host.name,
        "yes" if kvm else "no",
    ]
    # unshare ends with its child and the child with it, so one mark on both is enough to find and end the host.
    argv = [
        *("nsenter", f"--net={links.NAMESPACES / host.namespace}"),
        *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("tini", "--", "sh", *script),
    ]
    processes.start(host.lab.id, host.name, argv, host.folder / "log" / "boot.log")


def wait_until_up(host: HostLayout) -> None:
    """Wait until the host's libvirtd listens. Raises LabError with the end of its log when it does not come up."""
    deadline = time.monotonic() + BOOT_SECONDS
    seen = False
    while True:
        holder = processes.holders(host.lab.id).get(host.name)
        seen = seen or holder is not None
        if holder is not None and _listens(holder):
            return
        if (seen and holder is None) or time.monotonic() > deadline:
            raise LabError(
                f"boot {host.name} of the lab {host.lab.name}",
                _last_words(host),
                f"Its logs are in {host.folder / 'log'}.",
            )
        time.sleep(0.03)


def _listens(holder: int) -> bool:
    """Say whether libvirtd listens, from the kernel's table, which also works when the host's link is cut."""
    try:
        rows = (processes.PROC / str(holder) / "net" / "tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(row.split()[1].endswith(f":{LIBVIRT_PORT:04X}") and row.split()[3] == "0A" for row in rows)


def _last_words(host: HostLayout) -> str:
    words = []
    for name in ("boot.log", "libvirtd.log"):
        with suppress(OSError):
            words += (host.folder / "log" / name).read_text(errors="replace").strip().splitlines()[-3:]
    return "; ".join(words) or f"its daemons did not answer within {BOOT_SECONDS:.0f} s"


def stop(host: HostLayout) -> bool:
    """End all processes of the host at once and unplug it, as a power cut does. Its disks stay. Says whether it ran."""
    ran = bool(processes.kill(host.lab.id, {host.name}))
    links.disconnect_host(host)
    wait_until_disk_is_released(host.folder / "disk.img")
    return ran


def wait_until_disk_is_released(disk: Path, seconds: float = 15.0) -> None:
    """Wait until no loop device holds the disk: a mount namespace goes a moment after its last process."""
    deadline = time.monotonic() + seconds
    while any(_backing_file(device) == str(disk) for device in LOOP_DEVICES.glob("loop*")):
        if time.monotonic() > deadline:
            raise LabError(
                f"release the disk {disk}", f"a loop device still held it after {seconds:.0f} s", "See losetup -a."
            )
        time.sleep(0.02)


def _backing_file(device: Path) -> str | None:
    try:
        return (device / "loop" / "backing_file").read_text().strip()
    except OSError:
        return None


def run_inside(host: HostLayout, argv: list[str], wanted: str) -> str:
    """Run a program inside the host and return its output. Raises LabError, also when the host is down."""
    holder = holder_of(host, wanted)
    inside = ["nsenter", "--target", str(holder), "--mount", "--uts", "--net", "--pid", "--", *argv]
    return run(inside, wanted, mark=processes.mark(host.lab.id, host.name))


def holder_of(host: HostLayout, wanted: str) -> int:
    """Return the pid of the host's holder. Raises LabError when the host is down."""
    holder = processes.holders(host.lab.id).get(host.name)
    if holder is None:
        raise LabError(wanted, f"{host.name} is powered off", f"Boot it: virtfleet lab fault undo {host.name}")
    return holder


def has_booted(holder: int) -> bool:
    """Say whether the host's boot is over: what `INIT` becomes after it has started every daemon is there."""
    return any(processes.arguments(process.pid) == BOOTED for process in processes.within(holder))


def libvirtd_of(holder: int) -> list[processes.Process]:
    """Return the libvirtd processes of the host."""
    return [process for process in processes.within(holder) if process.command == "libvirtd"]


def inside_path(holder: int, path: Path) -> Path:
    """Return the path by which the machine reaches a file of the host's own mount namespace."""
    return processes.PROC / str(holder) / "root" / path.relative_to("/")


def share_capabilities(hosts: list[HostLayout]) -> bool:
    """Give every host what one of them found out about QEMU, so that it need not start QEMU to ask again.

    Libvirt checks by itself whether a copy is stale. Says whether any host knew.
    """
    source = next((host.folder / CAPABILITIES for host in hosts if _knows(host)), None)
    if source is None:
        return False
    for host in hosts:
        target = host.folder / CAPABILITIES
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.xml"):
            if not (target / file.name).exists():
                fresh = target / f"{file.name}.new"
                shutil.copyfile(file, fresh)
                fresh.chmod(0o600)
                fresh.rename(target / file.name)
    return True


def _knows(host: HostLayout) -> bool:
    return any((host.folder / CAPABILITIES).glob("*.xml"))


def summary(host: HostLayout) -> dict[str, Any]:
    """Return how to reach the host."""
    return {
        "name": host.name,
        "uri": host.uri,
        "address": str(host.address),
        "ssh": {"user": "root", "port": 22, "key": str(host.lab.key), "known_hosts": str(host.lab.known_hosts)},
    }
