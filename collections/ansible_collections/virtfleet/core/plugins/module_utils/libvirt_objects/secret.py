# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets that libvirt keeps for disks, pools, TLS and virtual TPMs. A value is never part of what is told here."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils import plan
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError, code_of, translate

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

# What a secret is for → libvirt's number of it, and the element that says for which one.
USAGES = {"volume": (1, "volume"), "ceph": (2, "name"), "iscsi": (3, "target"), "tls": (4, "name"), "vtpm": (5, "name")}
LONGEST_VALUE_BYTES = 65536  # as much as libvirt's protocol carries

# What of a value may be told. No word of it depends on the value itself.
NONE, ANOTHER, UNREADABLE, SET = "none", "another", "unreadable", "set"


def find(connection: libvirt.virConnect, usage: str, usage_id: str) -> libvirt.virSecret | None:
    """Return the secret that is for that use, or None: libvirt has at most one."""
    try:
        return connection.secretLookupByUsage(USAGES[usage][0], usage_id)
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"look up the secret for {usage} {usage_id}") from error


def all_of(connection: libvirt.virConnect) -> list[dict[str, Any]]:
    """Return which secrets a host keeps, `{uuid, usage, usage_id}`; none where libvirt has no driver for them."""
    usages = {number: name for name, (number, _tag) in USAGES.items()}
    try:
        found = connection.listAllSecrets()
    except libvirtError as error:
        if code_of(error) == "refused":
            return []
        raise
    listed = [
        {"uuid": each.UUIDString(), "usage": usages.get(each.usageType(), "none"), "usage_id": each.usageID() or ""}
        for each in found
    ]
    return sorted(listed, key=lambda each: (each["usage"], each["usage_id"], each["uuid"]))


def settings(secret: libvirt.virSecret) -> dict[str, Any]:
    """Return `{usage, usage_id, description, ephemeral, private}`, what module secret can set besides the value."""
    root = ET.fromstring(secret.XMLDesc(0))
    usage = next(name for name, (number, _tag) in USAGES.items() if number == secret.usageType())
    return {
        "usage": usage,
        "usage_id": secret.usageID(),
        "description": root.findtext("description"),
        "ephemeral": root.get("ephemeral") == "yes",
        "private": root.get("private") == "yes",
    }


def secret_xml(wanted: dict[str, Any], uuid: str | None = None) -> str:
    """Return the `<secret>` document of what `settings` reads."""
    flags = {name: "yes" if wanted[name] else "no" for name in ("ephemeral", "private")}
    root = ET.Element("secret", flags)
    if uuid:
        ET.SubElement(root, "uuid").text = uuid
    if wanted["description"]:
        ET.SubElement(root, "description").text = wanted["description"]
    usage = ET.SubElement(root, "usage", type=wanted["usage"])
    ET.SubElement(usage, USAGES[wanted["usage"]][1]).text = wanted["usage_id"]
    return ET.tostring(root, encoding="unicode")


def plan_present(
    secret: libvirt.virSecret | None, wanted: dict[str, Any], value: bytes | None, update_value: str | None
) -> plan.Plan:
    """Return the plan that leads to a secret. What is None in `wanted`, or a value that is, stays as it is.

    A private value cannot be compared: it is set when the secret is made, or each time if `update_value` is always.
    Raises VirtfleetError `refused` for a private secret that is to become readable.
    """
    given = {name: each for name, each in wanted.items() if each is not None}
    if secret is None:
        new = {"description": None, "ephemeral": False, "private": False, **given}
        return plan.compare(None, {**new, "value": SET if value is not None else NONE})
    before = settings(secret)
    if before["private"] and given.get("private") is False:
        hint = "Remove it and make it anew, with its value."
        raise VirtfleetError(
            f"make the secret for {before['usage']} {before['usage_id']} readable",
            "libvirt refuses that",
            hint,
            "refused",
        )
    held = _value(secret, private=before["private"])
    is_set = SET if held is not None or before["private"] else NONE
    state, after = is_set, is_set
    if value is not None and before["private"] and update_value == "always":
        state, after = UNREADABLE, SET
    elif (
        value is not None and not before["private"] and held != value and (held is None or update_value != "on_create")
    ):
        state, after = (NONE if held is None else ANOTHER), SET
    return plan.compare({**before, "value": state}, {**before, **given, "value": after})


def _value(secret: libvirt.virSecret, *, private: bool) -> bytes | None:
    """Return what a secret holds; None when it holds nothing, or is private."""
    if private:
        return None
    try:
        return bytes(secret.value())
    except libvirtError as error:
        if code_of(error) == "not_found":
            return None
        raise translate(error, f"read the secret for {secret.usageID()}") from error


def apply(
    connection: libvirt.virConnect,
    secret: libvirt.virSecret | None,
    todo: plan.Plan,
    value: bytes | None,
    uuid: str | None,
) -> libvirt.virSecret:
    """Carry out a plan of `plan_present`, and undo it when it fails half-way."""
    after = todo.after or {}
    wanted = f"keep the secret for {after['usage']} {after['usage_id']}"
    sets_value = value is not None and after["value"] == SET and (secret is None or todo.touches("value"))
    try:
        if secret is None:
            made = connection.secretDefineXML(secret_xml(after, uuid), 0)
            if sets_value:
                _set_on_new(made, value)
            return made
        old_document = secret.XMLDesc(0)
        old_value = _value(secret, private=bool(todo.before and todo.before["private"]))
        if [change for change in todo.changes if change.what != "value"]:
            connection.secretDefineXML(secret_xml(after, secret.UUIDString()), 0)
        if sets_value:
            try:
                secret.setValue(value, 0)
            except libvirtError:
                with contextlib.suppress(libvirtError):
                    if old_value is not None:
                        secret.setValue(old_value, 0)
                    connection.secretDefineXML(old_document, 0)
                raise
    except libvirtError as error:
        raise translate(error, wanted) from error
    return secret


def _set_on_new(made: libvirt.virSecret, value: bytes | None) -> None:
    try:
        made.setValue(value, 0)
    except libvirtError:
        with contextlib.suppress(libvirtError):
            made.undefine()
        raise


def check_unused(connection: libvirt.virConnect, secret: libvirt.virSecret) -> None:
    """Refuse to remove a secret that a machine or a pool names. Raises VirtfleetError `refused`."""
    uuid, usage_id = secret.UUIDString(), secret.usageID()
    users = []
    for thing in [*connection.listAllDomains(), *connection.listAllStoragePools()]:
        with contextlib.suppress(libvirtError):  # gone meanwhile
            if _names(ET.fromstring(thing.XMLDesc(0)), uuid, usage_id):
                users.append(thing.name())
    if users:
        text = f"{', '.join(sorted(users)[:5])} cannot work without it"
        hint = "Remove it from those machines and pools first."
        raise VirtfleetError(f"remove the secret for {usage_id}", text, hint, "refused")


def _names(root: ET.Element, uuid: str, usage_id: str) -> bool:
    """Whether a document refers to a secret: disks and pools by an element, a virtual TPM by an attribute."""
    named = any(each.get("uuid") == uuid or each.get("usage") == usage_id for each in root.iter("secret"))
    return named or any(each.get("secret") == uuid for each in root.iter("encryption"))


def remove(secret: libvirt.virSecret) -> None:
    """Forget a secret and its value."""
    usage_id = secret.usageID()
    try:
        secret.undefine()
    except libvirtError as error:
        raise translate(error, f"remove the secret for {usage_id}") from error
