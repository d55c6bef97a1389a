"""The Debian root folder that all instances lie over: built once from packages, cached outside the checkout."""

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from virtfleet.lab import locks
from virtfleet.lab.errors import LabError

from tests.checks.homes import cache

HERE = Path(__file__).parent
INSTALLED = HERE / "packages.txt"  # on every instance, as on a freshly installed machine
OFFERED = HERE / "offered.txt"  # in apt's cache: roles install them without any network
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
BUILD_SECONDS = 1800.0
# What no test reads; without it a package is unpacked in a fraction of the time. A throw-away disk needs no fsync.
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
)
# Timers that would fetch from registries, and services that wait for what an instance does not have.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-networkd-wait-online.service", "getty-static.service", "console-getty.service"),
)


def ensure_root() -> Path:
    """Return the root folder, built first when this recipe has not been built here yet (about a minute).

    Safe to call from many processes at once. Raises LabError.
    """
    folder = cache() / "instance-root"
    root = folder / _recipe_hash() / "root"
    if root.is_dir():
        return root
    with locks.held(folder / f"{root.parent.name}.lock"):
        if not root.is_dir():
            started = time.monotonic()
            print(f"instances: building their Debian root folder in {root.parent} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
                _build(Path(work) / "root")
                (Path(work) / "root").chmod(0o755)
                root.parent.mkdir(exist_ok=True)
                (Path(work) / "root").rename(root)
            print(f"instances: built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return root


def _recipe_hash() -> str:
    parts = [Path(__file__).read_bytes(), INSTALLED.read_bytes(), OFFERED.read_bytes(), _release().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise LabError("build the instances' root folder", "/etc/os-release names no Debian release", "Use Debian 12.")


def _build(root: Path) -> None:
    wanted = "build the instances' root folder"
    sources = next((file for file in SOURCES if file.is_file()), None)
    if sources is None:
        raise LabError(wanted, f"this machine has none of {', '.join(map(str, SOURCES))}", "Use Debian 12.")
    offered = shlex.join(OFFERED.read_text().split())
    apt = "APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --no-install-recommends"
    hooks = [
        f"{apt} clean",
        f"{apt} --download-only install {offered}",
        f'chroot "$1" systemctl mask {shlex.join(MASKED)}',
        'chroot "$1" systemctl disable systemd-networkd systemd-timesyncd 2>/dev/null || true',
        ': > "$1/etc/machine-id"',  # each instance makes its own at its first boot
        'printf "UseDNS no\\n" > "$1/etc/ssh/sshd_config.d/instances.conf"',
    ]
    argv = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--skip=cleanup/apt"),
        f"--include={','.join(INSTALLED.read_text().split())}",
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(_release(), str(root), str(sources)),
    ]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError as error:
        raise LabError(wanted, "the program mmdebstrap is missing", "apt-get install mmdebstrap") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(
            wanted, f"it took longer than {BUILD_SECONDS:.0f} s", "Is the registry slow? Try again."
        ) from error
    if done.returncode != 0:
        last = "; ".join(done.stdout.strip().splitlines()[-5:])
        raise LabError(
            wanted, f"mmdebstrap ended with status {done.returncode}: {last}", "Run apt-get update and retry."
        )
