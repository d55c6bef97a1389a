# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a machine into a wanted state: made, changed or removed, whichever it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_making import make
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects.vm_wanted import Done, Wanted, source_of
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

try:
    import libvirt
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError


def bring(connection: libvirt.virConnect, wanted: Wanted, *, check: bool, deadline: Deadline) -> Done:
    """Bring one machine into its wanted state.

    Raises VirtfleetError; its `values["cleaned"]` says whether all that was made was removed again.
    """
    if wanted.state == "absent":
        # Another machine of that name is not the one that is to go.
        name = wanted.name if wanted.uuid is None else None
        return _remove(connection, wanted, vms.find(connection, name, wanted.uuid), check=check)
    domain = vms.find(connection, wanted.name or None, wanted.uuid)
    if domain is None:
        return make(connection, wanted, check=check, deadline=deadline)
    return _change(connection, wanted, domain, check=check, deadline=deadline)


def _shown(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what of a machine a diff shows."""
    return None if facts is None else {"name": facts["name"], "state": facts["state"]}


def _change(
    connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain, *, check: bool, deadline: Deadline
) -> Done:
    facts = vms.describe(domain)
    _refuse_unmanaged(wanted, facts)
    _refuse_older(wanted, facts)
    options, state, goal = wanted.options, facts["state"], wanted.state
    todo = _step(connection, wanted, domain, state, deadline)
    after_state = {"restarted": "running", "present": state}.get(goal, goal)
    changed = todo is not None
    differences = _differences(wanted, facts)
    before, after = _shown(facts), {"name": facts["name"], "state": after_state}
    if check:
        return Done(changed, {**facts, "state": after_state}, before, after, differences)
    addresses: list[str] = []
    acted = False
    try:
        if todo is not None:
            todo()
            acted = True
        if after_state == "running":
            addresses = vms.await_guest(connection, domain, options["wait_for"], wanted.fixed_addresses, deadline)
    except VirtfleetError as error:
        with contextlib.suppress(libvirtError):
            error.values["changed"] = acted or vms.state_of(domain) != state
        if acted and error.code == "timeout":
            error.hint = f"{error.hint} The machine is left running.".lstrip()
        raise
    return Done(changed, vms.describe(domain, addresses), before, after, differences)


def _step(
    connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain, state: str, deadline: Deadline
) -> Callable[[], None] | None:
    """Return what leads from a state to the wanted one; None when that is it already."""
    goal = wanted.state
    obeying = {"grace": wanted.options["grace"], "force": wanted.options["force"], "deadline": deadline}
    steps: dict[tuple[str, str], Callable[[], None]] = {
        ("off", "running"): partial(vms.start, domain),
        ("off", "restarted"): partial(vms.start, domain),
        ("off", "paused"): partial(vms.start, domain, paused=True),
        ("running", "paused"): partial(vms.pause, domain),
        ("running", "stopped"): partial(vms.stop, connection, domain, **obeying),
        ("running", "restarted"): partial(vms.restart, connection, domain, **obeying),
        ("paused", "running"): partial(vms.resume, domain),
        ("paused", "stopped"): partial(vms.stop, connection, domain, **obeying),
    }
    if (state, goal) == ("paused", "restarted"):
        raise VirtfleetError(f"reboot machine {domain.name()}", "it is paused", "Resume it first.", "refused")
    return steps.get(("off" if state in ("stopped", "crashed") else state, goal))


def _refuse_unmanaged(wanted: Wanted, facts: dict[str, Any]) -> None:
    if wanted.options["managed_only"] and not facts["managed"]:
        raise VirtfleetError(
            f"work on machine {facts['name']}",
            "virtfleet did not make it: it has no metadata of ours",
            "Leave it to whoever made it, or set managed_only to false (of a playbook: virtfleet_force_unmanaged).",
            "refused",
        )


def _refuse_older(wanted: Wanted, facts: dict[str, Any]) -> None:
    kept = facts["metadata"].get("attempt")
    if wanted.attempt and isinstance(kept, int) and wanted.attempt < kept:
        raise VirtfleetError(
            f"work on machine {facts['name']}",
            f"attempt {kept} has it already, this is attempt {wanted.attempt}",
            "Let the newer run finish; this one is out of date.",
            "refused",
        )


def _differences(wanted: Wanted, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return in what an existing machine is not as asked for; it is left so."""
    options, found = wanted.options, []
    if options["vcpus"] is not None and options["vcpus"] != facts["vcpus"]:
        found.append({"what": "vcpus", "is": facts["vcpus"], "wanted": options["vcpus"]})
    memory = wanted.memory_bytes
    if memory is not None and memory != facts["memory_bytes"]:
        found.append({"what": "memory_bytes", "is": facts["memory_bytes"], "wanted": memory})
    if options["networks"] is not None:
        is_, should = [nic["source"] for nic in facts["networks"]], [source_of(nic)[1] for nic in options["networks"]]
        if is_ != should:
            found.append({"what": "networks", "is": is_, "wanted": should})
    return found


def _remove(connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain | None, *, check: bool) -> Done:
    listed = list(wanted.options["delete_volumes"] or [])
    facts = vms.describe(domain) if domain is not None else None
    if facts is not None:
        _refuse_unmanaged(wanted, facts)
    if wanted.options["delete_made_volumes"]:
        listed += _made_for(connection, wanted, facts)
    unique = [dict(each) for each in {(each["pool"], each["name"]): each for each in listed}.values()]
    going = vms.removable(connection, facts["name"] if facts else None, unique)
    changed = domain is not None or bool(going)
    before = None
    if changed:
        before = {**(_shown(facts) or {}), "volumes": [name for _pool, name in going]}
    if not check and changed:
        if domain is not None:
            vms.destroy(domain)
        for pool, name in going:
            volumes.delete(pool, name)
        if domain is not None:
            # Last, for its metadata name the volumes: a run that is cut off here can be repeated.
            vms.undefine(domain)
    gone = {"name": facts["name"] if facts else wanted.name, "uuid": facts["uuid"] if facts else wanted.uuid}
    return Done(changed, {**gone, "state": "absent", "deleted_volumes": [name for _pool, name in going]}, before, None)


def _made_for(connection: libvirt.virConnect, wanted: Wanted, facts: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the volumes made for a machine, by its metadata, and what broken runs left of such, by their names."""
    if facts is None:
        return vms.leftovers(connection, wanted.name, wanted.uuid) if wanted.name and wanted.uuid else []
    made = list(facts["made_volumes"])
    attached = {PurePosixPath(disk["source"] or "").name for disk in facts["disks"]} - {each["name"] for each in made}
    left = vms.leftovers(connection, facts["name"], facts["uuid"])
    return made + [each for each in left if each["name"] not in attached]
