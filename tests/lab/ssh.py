"""An `ssh` that gets into the lab's hosts as a person's own does: by what its configuration says."""

import shutil
from pathlib import Path

from virtfleet.lab import Lab

SSH = """#!/bin/sh
# What a person's ~/.ssh/config says, without one: the lab's key, and the hosts' keys as they are known.
exec {ssh} -F {config} "$@"
"""
CONFIG = """IdentityFile {key}
IdentitiesOnly yes
StrictHostKeyChecking yes
UserKnownHostsFile {known_hosts}
GlobalKnownHostsFile /dev/null
"""


def ssh_into(lab: Lab, folder: Path, known_hosts: Path | None = None) -> Path:
    """Make the program in a folder, and return the folder: it comes first on a PATH."""
    (folder / "config").write_text(CONFIG.format(key=lab.layout.key, known_hosts=known_hosts or lab.layout.known_hosts))
    (folder / "ssh").write_text(SSH.format(ssh=shutil.which("ssh"), config=folder / "config"))
    (folder / "ssh").chmod(0o755)
    return folder
