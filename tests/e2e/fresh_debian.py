"""`./fleet demo` on a fresh, minimal Debian 12, as a new user meets it; a table of what each step took at the end.

    .venv/bin/python -m tests.e2e.fresh_debian [--test=WORDS]    # then also `./fleet test WORDS`, e.g. --test=--quick

The system is a folder made by mmdebstrap (Debian's smallest variant and Python), with namespaces of its own for mounts,
processes, IPC and its name; in it lies a clean clone of this checkout's last commit. It shares the kernel, the devices
and the network with this machine, and has no systemd running. Needs root, git, mmdebstrap and tini; its apt and pip
reach their sources as this machine's do.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.checks.homes import cache
from tests.checks.runner import ROOT

SUITE = "bookworm"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
PASSED_ON = re.compile(r"(https?|ftp|no)_proxy|pip_(?!find_links).*", re.IGNORECASE)
"""Variables of the environment that lead apt and pip to their sources."""
COPIED = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/apt/apt.conf")
CHECKOUT = "/root/virtfleet"
INIT = """
set -e
cd "$1"
hostname fresh
mount --bind . .
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir .old
pivot_root . .old
exec /.old/usr/bin/tini -s -- /bin/sh -c 'umount -l /.old && rmdir /.old && touch /run/up && exec sleep infinity'
"""
COMMANDS = (
    "./fleet vm create web1",
    "./fleet vm create web --count 2 --policy round_robin --paused",
    "./fleet vm list",
    "./fleet placement explain --memory 1TiB",
    "./fleet job replay 1",
    "./fleet host list",
)
REFUSED = {"./fleet placement explain --memory 1TiB": 4}
"""What ends with another status than 0, on purpose."""


def unpack(folder: Path) -> None:
    """Put a fresh system into `folder`; what mmdebstrap makes is kept in the cache for the next time."""
    packed = cache() / "fresh-debian" / f"{SUITE}.tar"
    if not packed.exists():
        packed.parent.mkdir(parents=True, exist_ok=True)
        new = packed.with_suffix(".new.tar")
        lenient = [f'--aptopt=Acquire::{name} "false"' for name in ("Check-Valid-Until", "Check-Date")]
        sources = [str(SOURCES)] if SOURCES.exists() else []
        include = "--include=python3,ca-certificates"
        subprocess.run(["mmdebstrap", "--variant=minbase", include, *lenient, SUITE, new, *sources], check=True)
        new.rename(packed)
    subprocess.run(["tar", "-C", folder, "--numeric-owner", "-xf", packed], check=True)
    for name in COPIED:
        if Path(name).exists():
            (folder / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name[1:])
    subprocess.run(["git", "clone", "-q", ROOT, folder / CHECKOUT[1:]], check=True)


class System:
    """The fresh system, running."""

    def __init__(self, holder: int) -> None:
        self.holder = holder

    def run(self, command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command line in the checkout there, as root with an environment of its own."""
        kept = [f"{name}={value}" for name, value in os.environ.items() if PASSED_ON.fullmatch(name)]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        enter = ["nsenter", f"--target={self.holder}", "--mount", "--uts", "--ipc", "--pid", "--root"]
        clean = ["env", "-i", path, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", *kept]
        return subprocess.run(
            [*enter, *clean, "/bin/sh", "-c", f"cd {CHECKOUT} && {command}"],
            cwd="/",
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=None,
        )

    def processes(self) -> set[str]:
        """Return the command lines of all that runs in it."""
        space = Path(f"/proc/{self.holder}/ns/pid").readlink()
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns/pid").readlink() == space:
                    found.add((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def things(self) -> set[str]:
        """Return what must not be left: processes, mounts, network namespaces, names of interfaces, loop devices."""
        root = Path(f"/proc/{self.holder}/root")
        mounts = Path(f"/proc/{self.holder}/mounts").read_text().splitlines()
        # ip leaves the folder of its names mounted on itself, empty.
        targets = {line.split()[1] for line in mounts} - {"/run/netns"}
        loops = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        names = [path.name for path in (root / "run/netns").glob("*")]
        return {
            *(f"process {each}" for each in self.processes()),
            *(f"mount {each}" for each in targets),
            *(f"loop device on {each}" for each in loops if each.startswith(("/root/.local/", str(root)))),
            *(f"network namespace {each}" for each in names),
            *(f"file {path.relative_to(root)}" for path in (root / "root/.local/share/virtfleet").glob("*.img")),
        }


@contextmanager
def running(folder: Path) -> Iterator[System]:
    """Start the system that lies in `folder`; end all of it afterwards."""
    spaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    outer = subprocess.Popen([*spaces, "/bin/sh", "-c", INIT, "sh", folder], stdin=subprocess.DEVNULL)
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        deadline = time.monotonic() + 60
        while not (child := children.read_text().split()) or not Path(f"/proc/{child[0]}/root/run/up").exists():
            if outer.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("Failed to start the fresh system: what stood in the way is printed above.")
            time.sleep(0.1)
        yield System(int(child[0]))
    finally:
        # The first process of the system dies with its parent, and all others with it.
        outer.send_signal(signal.SIGKILL)
        outer.wait()


def main() -> int:
    """Run the steps; return 0 when all of them went well and nothing was left."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.fresh_debian", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--test", metavar="WORDS", help="run ./fleet test WORDS there, too")
    options = parser.parse_args()
    missing = [name for name in ("git", "mmdebstrap", "tini", "nsenter") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        raise SystemExit(f"Failed to make a fresh system: needs root and {', '.join(missing) or 'nothing else'}.")
    steps = ["./fleet demo", "./fleet demo", *COMMANDS, "./fleet down"]
    if options.test is not None:
        steps.append(f"apt-get -q install -y git >/dev/null && ./fleet test {options.test}")
    table = []
    with tempfile.TemporaryDirectory(prefix="virtfleet-fresh-", dir="/var/tmp") as name:
        unpack(Path(name))
        with running(Path(name)) as system:
            before = system.things()
            for step in steps:
                print(f"\n# {step}", flush=True)
                began = time.monotonic()
                code = system.run(step).returncode
                word = "ok" if code == REFUSED.get(step, 0) else f"FAILED ({code})"
                table.append((word, time.monotonic() - began, step))
            left = sorted(system.things() - before)
    print(f"\n{time.strftime('%Y-%m-%d')}, Debian {SUITE}, {os.cpu_count()} processors")
    for word, seconds, step in table:
        print(f"{word:12} {seconds:7.1f} s  {step}")
    for thing in left:
        print(f"{'LEFT':12} {thing}")
    return 1 if left or any(word != "ok" for word, _, _ in table) else 0


if __name__ == "__main__":
    sys.exit(main())
