"""All that a machine, or a job for one, can leave anywhere. Nothing is left when this is the same before and after."""

import sqlite3
from contextlib import closing
from pathlib import Path

from virtfleet.jobs import survivors
from virtfleet.lab import processes
from virtfleet.lab.layout import identity

from tests.lab.fleet import Fleet

ROWS = {
    "vm": "SELECT name FROM vms",
    "address": "SELECT address || ' ' || mac FROM addresses",
    "secret": "SELECT id FROM secrets",
    "lock": "SELECT resource FROM job_locks",
    "open job": "SELECT id || ' ' || kind FROM jobs WHERE state IN ('queued', 'running')",
}
OF_A_HOST = ("etc/libvirt/qemu", "var/lib/libvirt/images", "var/lib/libvirt/qemu", "run/libvirt/qemu")
OF_AN_ATTEMPT = ("artifacts", "ansible", "secrets")
"""Folders of an attempt that must not outlive it; its inventory, variables and output stay for people."""


def traces(fleet: Fleet) -> dict[str, set[str]]:
    """Return domains, volumes, files, rows, namespaces and processes; every host must be up."""
    holders = processes.holders(identity(fleet.lab.folder))
    files = {f"{host} {file}" for host, holder in holders.items() for file in _files_of(holder)}
    runs = [folder for folder in fleet.home.glob("runs/*/*") if folder.is_dir()]
    return {
        **fleet.things(),
        "files of hosts": files,
        "rows": rows(fleet),
        "namespaces": {path.name for path in Path("/run/netns").glob(f"vf{identity(fleet.lab.folder)}*")},
        "files of attempts": {str(path) for run in runs for path in run.iterdir() if path.name in OF_AN_ATTEMPT}
        | {str(path) for path in Path("/dev/shm").glob("virtfleet-*") if path.name[10:] in {run.name for run in runs}},
        "processes of attempts": {f"{run.name} {pid}" for run in runs for pid in survivors.find(run.name)},
    }


def rows(fleet: Fleet) -> set[str]:
    """Return the rows that are about machines, and the jobs that have not ended."""
    with closing(sqlite3.connect(f"file:{fleet.home / 'virtfleet.db'}?mode=ro", uri=True)) as database:
        return {f"{kind} {row[0]}" for kind, query in ROWS.items() for row in database.execute(query)}


def _files_of(holder: int) -> list[str]:
    root = Path(f"/proc/{holder}/root")
    found = [path for part in OF_A_HOST for path in (root / part).rglob("*") if not path.is_dir()]
    # Bases stay; and libvirt itself leaves the sockets of guests that a power cut ended, for ever.
    names = [str(path.relative_to(root)) for path in found if not path.name.startswith("base-")]
    return [name for name in names if not (name.startswith("var/lib/libvirt/qemu/") and "/domain-" in name)]
