# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is made of, as plain data: between the module's options and libvirt's XML. Sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.patch import Step


@dataclass(frozen=True)
class Disk:
    """A disk on the virtio bus. `source` is the path of its volume, on the host."""

    source: str
    format: str
    block: bool = False
    serial: str | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Nic:
    """A network card: joined to a bridge, or to one of libvirt's networks. `filter` names a network filter."""

    kind: str
    source: str
    mac: str | None = None
    model: str = "virtio"
    filter: str | None = None


@dataclass(frozen=True)
class VmSpec:
    """A whole machine. `virt_type` is kvm or qemu (emulated)."""

    name: str
    uuid: str
    vcpus: int
    memory_bytes: int
    virt_type: str
    arch: str
    machine: str | None = None
    cpu_model: str | None = None
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings, by their names in `domain_xml.settings`."""
    patch: tuple[Step, ...] = ()
