"""The machine's list of its labs, so that no two take the same subnets, wherever their state lies."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from virtfleet.lab import layout, links, locks
from virtfleet.lab.errors import LabError

# One per machine, not per VIRTFLEET_HOME; emptied by a reboot as the interfaces are.
FOLDER = Path("/run/virtfleet")
FILE = FOLDER / "labs.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One lab of this machine."""

    id: str
    name: str
    folder: Path
    slot: int


@contextmanager
def _opened() -> Iterator[dict[str, Entry]]:
    """Give the entries by id under the machine-wide lock; what the caller leaves in the dictionary is written back."""
    with locks.held(FILE) as descriptor:
        text = os.pread(descriptor, 1 << 20, 0).decode()
        try:
            records = json.loads(text) if text else []
            found = [Entry(r["id"], r["name"], Path(r["folder"]), int(r["slot"])) for r in records]
        except (ValueError, KeyError, TypeError):
            found = []  # half written by a crash; the interfaces that exist still guard their subnets
        entries = {entry.id: entry for entry in found if entry.folder.is_dir()}
        yield entries
        if not entries:
            FILE.unlink()
            with suppress(OSError):
                FOLDER.rmdir()
            return
        rows = [{"id": e.id, "name": e.name, "folder": str(e.folder), "slot": e.slot} for e in entries.values()]
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(rows, indent=1).encode(), 0)


def entries() -> list[Entry]:
    """Return the labs of this machine whose state folder still exists."""
    if not FILE.exists():
        return []
    with _opened() as known:
        return list(known.values())


def reserve(lab_id: str, name: str, folder: Path, preferred: int | None) -> int:
    """Return the number of the pair of subnets for this lab, reserved until `release`.

    A pair is free when no other lab has it and no address or route of the machine lies in it.
    Raises LabError when none is.
    """
    with _opened() as known:
        if lab_id in known:
            return known[lab_id].slot
        taken = {entry.slot for entry in known.values()}
        in_use = links.networks_in_use(except_prefix=f"vf{lab_id}")
        candidates = [*([] if preferred is None else [preferred]), *range(layout.SLOTS)]
        for slot in candidates:
            if slot not in taken and _is_free(slot, in_use):
                known[lab_id] = Entry(lab_id, name, folder, slot)
                return slot
    raise LabError(
        f"find subnets for the lab {name}",
        f"this machine has labs, addresses or routes in all {layout.SLOTS} pairs of 10.77.0.0/16 and 10.78.0.0/16",
        "Take down a lab you no longer need.",
    )


def _is_free(slot: int, in_use: list[IPv4Network]) -> bool:
    mine = (layout.management_network(slot), layout.guest_network(slot))
    return not any(network.overlaps(other) for network in mine for other in in_use)


def release(lab_id: str) -> None:
    """Give the lab's subnets back."""
    if FILE.exists():
        with _opened() as known:
            known.pop(lab_id, None)
