"""The lab: several real libvirt hosts on one machine, made of namespaces, with faults to inject."""

from virtfleet.lab.errors import LabError
from virtfleet.lab.lab import Lab

__all__ = ["Lab", "LabError"]
