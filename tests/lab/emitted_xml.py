"""Every document that goes to libvirt is held against libvirt's own schemas. The calls are libvirt's, only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import libvirt
from lxml import etree  # type: ignore[import-untyped]

SCHEMAS = Path("/usr/share/libvirt/schemas")
# The root element of a document → the file that describes it.
FILES = {
    "domain": "domain",
    "domainsnapshot": "domainsnapshot",
    "domaincheckpoint": "domaincheckpoint",
    "domainbackup": "domainbackup",
    "pool": "storagepool",
    "volume": "storagevol",
    "network": "network",
    "secret": "secret",
    "filter": "nwfilter",
    "cpu": "cpu",
}
DEVICES = ("disk", "interface", "controller")
"""Devices that are attached one by one: parts of the schema of a domain, under their own names."""
OURS = "vm"
"""A machine's metadata have no schema but ours."""

_ONE_DEVICE = """<grammar xmlns="http://relaxng.org/ns/structure/1.0">
  <include href="domain.rng"><start><ref name="{}"/></start></include>
</grammar>"""
_NETWORK_PARTS = {
    "host": "<network><name>n</name><ip address='192.0.2.1' prefix='24'><dhcp>{}</dhcp></ip></network>",
    "dns-host": "<network><name>n</name><dns>{}</dns></network>",
}


@cache
def _schema(tag: str) -> Any:
    if tag in DEVICES:
        return etree.RelaxNG(etree.fromstring(_ONE_DEVICE.format(tag), base_url=f"{SCHEMAS}/{tag}.rng"))
    return etree.RelaxNG(file=str(SCHEMAS / f"{FILES[tag]}.rng"))


def check(document: str) -> str | None:
    """Hold a document, or the part of one that a call takes, against its schema; return the name of its root."""
    root = etree.fromstring(document)
    tag = str(root.tag)
    if tag == OURS:
        return None
    if tag == "host":
        whole = etree.fromstring(_NETWORK_PARTS["host" if root.get("mac") else "dns-host"].format(document))
        _schema("network").assertValid(whole)
    else:
        _schema(tag).assertValid(root)
    return tag


class _Read:
    """libvirt's C module, with every document among the arguments of its calls checked before the call is made."""

    def __init__(self, real: Any, seen: set[str]) -> None:
        self._real = real
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def called(*arguments: Any) -> Any:
            for text in _texts(arguments):
                if text.lstrip().startswith("<"):
                    tag = check(text)
                    self._seen.update([tag] if tag else [])
            return found(*arguments)

        return called


def _texts(arguments: Any) -> Iterator[str]:
    for each in arguments:
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            yield from _texts(each.values())


@contextmanager
def validated() -> Iterator[set[str]]:
    """Check each document that the block sends; yield the names of their roots. What is not valid is not sent."""
    real, seen = libvirt.libvirtmod, set[str]()
    libvirt.libvirtmod = _Read(real, seen)
    try:
        yield seen
    finally:
        libvirt.libvirtmod = real
