"""Names and places of one instance."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from virtfleet.lab.layout import Layout


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance: `number` from 1 in its group. `is_machine`: it has a kernel of its own."""

    layout: Layout
    name: str
    number: int
    is_machine: bool = False

    @property
    def address(self) -> str:
        """The address of its eth0, among instances and machine."""
        return str(self.layout.management[10 + self.number])

    @property
    def folder(self) -> Path:
        """What it wrote over the root folder, and its log."""
        return self.layout.folder / "instances" / self.name

    @property
    def namespace(self) -> str:
        """The name of its network namespace and of its cgroup."""
        return f"{self.layout.prefix}-{self.name}"

    def mac(self, interface: str) -> str:
        """Return the hardware address of its interface, the same at every boot."""
        digest = hashlib.sha256(f"{self.folder}/{interface}".encode()).digest()
        return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # 02: locally administered
