"""The lab as an Ansible inventory."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from virtfleet import settings
from virtfleet.lab.layout import HostLayout, Layout
from virtfleet.lab.libvirtd import SHARED_POOLS

HEADER = "# Written by `virtfleet lab up`; changes are lost. Try: ansible -i {path} hypervisors -m ping\n"


def write(lab: Layout, hosts: list[HostLayout]) -> None:
    """Write the inventory, all hosts of the lab as one zone, and let the checkout's `inventories/lab/` point at it."""
    group = lab.name.replace("-", "_")
    tree: dict[str, Any] = {
        "hypervisors": {
            "children": {
                group: {"hosts": {host.name: _variables(host) for host in hosts}, "vars": {"virtfleet_zone": lab.name}}
            },
            "vars": {
                # The pools that are one and the same storage in all hosts. Libvirt has no place to note it, and
                # believes it of no plain folder; the lab knows, because it mounted the folder into every host itself.
                "virtfleet_shared_pools": SHARED_POOLS,
                "ansible_user": "root",
                # A light host sees the machine's own files, so this Python serves plays over SSH and local ones alike.
                "ansible_python_interpreter": sys.executable,
                "ansible_ssh_private_key_file": str(lab.key),
                "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab.known_hosts} -o StrictHostKeyChecking=yes",
            },
        }
    }
    text = HEADER.format(path=lab.inventory) + yaml.safe_dump(tree, sort_keys=False)
    lab.inventory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not lab.inventory.exists() or lab.inventory.read_text() != text:
        fresh = lab.inventory.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(lab.inventory)
    _point_at(lab)


def _variables(host: HostLayout) -> dict[str, str]:
    return {"ansible_host": str(host.address), "virtfleet_uri": host.uri}


def _pointer() -> Path | None:
    """Return where the checkout has the inventory of its lab, None outside a checkout."""
    root = settings.checkout()
    return root / "inventories" / "lab" / "hosts.yml" if root else None


def _point_at(lab: Layout) -> None:
    """Let `inventories/lab/` lead to this lab, unless it leads to another one that exists: first come, first served."""
    pointer = _pointer()
    if pointer is None or pointer.exists():
        return
    fresh = pointer.with_name(f".{lab.id}.new")
    # A checkout that cannot be written to is no reason to have no lab: the inventory itself lies in the fleet's home.
    with suppress(OSError):
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(lab.inventory)
        fresh.rename(pointer)


def withdraw(lab: Layout) -> None:
    """Remove what leads to this lab from the checkout."""
    pointer = _pointer()
    if pointer is not None and pointer.is_symlink() and pointer.readlink() == lab.inventory:
        pointer.unlink()
        with suppress(OSError):
            pointer.parent.rmdir()
