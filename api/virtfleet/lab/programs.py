"""The programs the lab runs: which there must be, and how one is called."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from virtfleet.lab.errors import LabError

PACKAGES_FILE = Path(__file__).with_name("packages.txt")
REQUIRED = (
    *("ip", "tc", "nsenter", "unshare", "mount", "tini", "mkfs.ext4", "ssh-keygen"),
    *("libvirtd", "virtlogd", "sshd", "qemu-system-x86_64", "qemu-img", "dnsmasq"),
)
# Every process of a host inherits it (but for QEMU, to which libvirt gives none); its value: <lab id>/<host name>.
MARK = "VIRTFLEET_LAB_MARK"
# Where Debian keeps what root runs; a user's PATH may lack the sbin folders.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def packages() -> list[str]:
    """Return the Debian packages that bring all the programs."""
    return PACKAGES_FILE.read_text().split()


def check(wanted: str) -> None:
    """Make sure that the lab can work on this machine. Raises LabError that says what to install or to do."""
    if os.geteuid() != 0:
        raise LabError(
            wanted,
            "making network namespaces and mounts needs root, and this is user " + str(os.geteuid()),
            "Run it again with sudo.",
        )
    missing = [program for program in REQUIRED if shutil.which(program, path=SEARCH_PATH) is None]
    if missing:
        raise LabError(
            wanted,
            f"these programs are missing: {', '.join(missing)}",
            f"Install them: apt-get install --no-install-recommends {' '.join(packages())}",
        )


def environment(mark: str | None = None) -> dict[str, str]:
    """Return the environment for a program of the lab: none of the caller's, which may hold secrets.

    `mark` says to which lab and host the program belongs.
    """
    marked = {} if mark is None else {MARK: mark}
    return {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": "/root", **marked}


def run(
    argv: Sequence[str], wanted: str, *, text: str | None = None, timeout: float = 30.0, mark: str | None = None
) -> str:
    """Run a program to its end and return its standard output.

    `text` becomes its standard input, `timeout` is in seconds, `mark` as in `environment`.
    Raises LabError with the program's own words when it fails.
    """
    try:
        done = subprocess.run(
            argv,
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(mark),
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(wanted, f"{argv[0]} did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "it said nothing").replace("\n", "; ")
        raise LabError(wanted, f"{argv[0]} ended with status {done.returncode}: {words}")
    return done.stdout
