"""What an instance with a kernel of its own starts from: a disk, and User Mode Linux, a kernel that runs as a program.

Built once from the instances' root folder, cached outside the checkout.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from virtfleet.lab import locks
from virtfleet.lab.errors import LabError
from virtfleet.lab.programs import run

from tests.checks.homes import cache
from tests.instances.root_folder import ensure_root

HERE = Path(__file__).parent
INSTALLED = HERE / "machine_packages.txt"  # libvirt and QEMU: what the role hypervisor brings
FIRST_PROGRAM = HERE / "own_kernel.sh"
FIRST_PROGRAM_AT = "usr/local/sbin/own-kernel"
KERNEL_PACKAGE = "user-mode-linux"
DISK_BYTES = 8 * 1024**3  # sparse
BUILD_SECONDS = 1800.0
# Runs in namespaces of its own. Arguments: the root folder, what comes on top, a scratch folder, the kernel's release,
# the disk to make, the packages.
MAKE_DISK = r"""
set -e
root=$1 more=$2 work=$3 release=$4 disk=$5
shift 5
mkdir "$work/upper" "$work/work" "$work/merged"
mount -t overlay -o "volatile,lowerdir=$more:$root,upperdir=$work/upper,workdir=$work/work" overlay "$work/merged"
mount -t proc proc "$work/merged/proc"
printf '#!/bin/sh\nexit 101\n' >"$work/merged/usr/sbin/policy-rc.d"
chmod +x "$work/merged/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
chroot "$work/merged" apt-get --quiet --yes --no-install-recommends --no-download install "$@"
chroot "$work/merged" depmod "$release"
rm "$work/merged/usr/sbin/policy-rc.d"
umount "$work/merged/proc"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$work/merged" "$disk"
"""


@dataclass(frozen=True, slots=True)
class Start:
    """What a machine starts from: a raw disk without partitions, and the kernel, a program."""

    disk: Path
    kernel: Path


def ensure_start() -> Start:
    """Return the disk and the kernel, built first when this recipe has not been built here yet (a minute or two).

    Safe to call from many processes at once. Raises LabError.
    """
    root = ensure_root()
    folder = cache() / "instance-disk"
    name = _recipe_hash(root)
    found = Start(folder / name / "disk.img", folder / name / "linux")
    if found.disk.is_file():
        return found
    with locks.held(folder / f"{name}.lock"):
        if not found.disk.is_file():
            started = time.monotonic()
            print(f"instances: building their disk in {found.disk.parent} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
                _build(root, Path(work)).rename(found.disk.parent)
            print(f"instances: built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def _recipe_hash(root: Path) -> str:
    recipe = [Path(__file__).read_bytes(), INSTALLED.read_bytes(), FIRST_PROGRAM.read_bytes()]
    return hashlib.sha256(b"\0".join([*recipe, str(root).encode()])).hexdigest()[:16]


def _build(root: Path, work: Path) -> Path:
    """Make both files in a folder below `work` and return it."""
    wanted = "build the disk of instances with a kernel of their own"
    package, made, scratch = work / "package", work / "made", work / "scratch"
    for folder in (package, made, scratch):
        folder.mkdir()
    run(["sh", "-c", f'cd "$1" && apt-get download {KERNEL_PACKAGE}', "sh", str(work)], wanted, timeout=300)
    [archive] = work.glob("*.deb")
    run(["dpkg-deb", "-x", str(archive), str(package)], wanted, timeout=300)
    (package / "usr/bin/linux.uml").rename(made / "linux")
    modules = package / "usr/lib/uml/modules"
    [release] = [folder.name for folder in modules.iterdir()]

    more = work / "more"
    (more / "usr/lib").mkdir(parents=True)
    modules.rename(more / "usr/lib/modules")
    first = more / FIRST_PROGRAM_AT
    first.parent.mkdir(parents=True)
    first.write_bytes(FIRST_PROGRAM.read_bytes())
    first.chmod(0o755)
    disk = made / "disk.img"
    with disk.open("wb") as handle:
        handle.truncate(DISK_BYTES)
    arguments = [root, more, scratch, release, disk, *INSTALLED.read_text().split()]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", MAKE_DISK, "sh", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=BUILD_SECONDS,
    )
    if done.returncode != 0:
        last = "; ".join(done.stdout.strip().splitlines()[-5:])
        raise LabError(wanted, f"it ended with status {done.returncode}: {last}", "Run apt-get update and retry.")
    return made
