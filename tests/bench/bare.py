"""Machines made by nothing but libvirt calls: what the benchmarks measure against."""

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import libvirt
from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.build import build
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml.spec import Disk, Nic, VmSpec
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes

THREADS = 4


@dataclass(frozen=True)
class Machines:
    """What the machines are made of: the volume their disks lie over, and bytes."""

    base: str
    memory: int
    disk: int

    def make(self, connection: libvirt.virConnect, name: str) -> None:
        """Make one machine, started paused: overlay, seed, domain."""
        pool = connection.storagePoolLookupByName("default")
        identifier = str(uuid.uuid4())
        mac = mac_of(identifier)
        disk = volumes.make_overlay(pool, f"{name}-root", pool.storageVolLookupByName(self.base), self.disk)
        files = seed.files(instance_id=name, hostname=name, ssh_keys=[], user_data=None, nics=[seed.Nic(mac)])
        iso = volumes.write_bytes(pool, f"{name}-seed.iso", seed.image(files))
        spec = VmSpec(
            name=name,
            uuid=identifier,
            vcpus=1,
            memory_bytes=self.memory,
            virt_type="qemu",
            arch="x86_64",
            disks=(Disk(disk.path(), "qcow2"), Disk(iso.path(), "raw", read_only=True)),
            nics=(Nic("bridge", "vmbr0", mac),),
        )
        connection.defineXML(build(spec)).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def make_many(self, connections: Sequence[libvirt.virConnect], prefix: str, each: int) -> None:
        """Make `each` machines on every host, with four threads a host."""
        with ExitStack() as stack:
            pools = [stack.enter_context(ThreadPoolExecutor(THREADS)) for _ in connections]
            work = [
                pool.submit(self.make, connection, f"{prefix}{number}")
                for number in range(each)
                for pool, connection in zip(pools, connections, strict=True)
            ]
            for one in work:
                one.result()

    def remove(self, connection: libvirt.virConnect, prefix: str) -> None:
        """Remove the machines whose names begin so, and their volumes, whoever made them; the base stays."""
        for domain in connection.listAllDomains(0):
            if domain.name().startswith(prefix):
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        for volume in connection.storagePoolLookupByName("default").listAllVolumes():
            if volume.name().startswith(prefix) and self.base not in volume.name():
                volume.delete(0)


def mac_of(identifier: str) -> str:
    """Return a MAC made from a UUID."""
    return "52:54:00:" + ":".join(identifier[at : at + 2] for at in (0, 2, 4))


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
