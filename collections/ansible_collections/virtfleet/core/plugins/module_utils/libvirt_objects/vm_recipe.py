# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a machine into a wanted state: made, changed or removed, whichever it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm as vms
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_addresses, vm_update
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
    domain = _found(connection, wanted)
    if domain is None:
        return make(connection, wanted, check=check, deadline=deadline)
    return _change(connection, wanted, domain, check=check, deadline=deadline)


def _found(connection: libvirt.virConnect, wanted: Wanted) -> libvirt.virDomain | None:
    """Return the machine, also when it has its new name already."""
    new_name = wanted.options["new_name"]
    found = vms.find(connection, wanted.name or None, wanted.uuid)
    if new_name is None:
        return found
    renamed = vms.find(connection, new_name, wanted.uuid)
    if found is not None and renamed is not None and found.UUIDString() != renamed.UUIDString():
        hint = "Choose another name; the other machine is left alone."
        text = f"the host has a machine {new_name} already"
        raise VirtfleetError(f"rename machine {found.name()}", text, hint, "already_exists")
    if found is None and renamed is None:
        hint = "Leave new_name out to make it."
        raise VirtfleetError(f"rename machine {wanted.name or wanted.uuid}", "there is none", hint, "not_found")
    return found or renamed


def _shown(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what of a machine a diff shows."""
    return None if facts is None else {"name": facts["name"], "state": facts["state"]}


def _change(
    connection: libvirt.virConnect, wanted: Wanted, domain: libvirt.virDomain, *, check: bool, deadline: Deadline
) -> Done:
    facts = vms.describe(domain)
    _refuse_unmanaged(wanted, facts)
    refuse_older(wanted.attempt, facts)
    options, state, goal = wanted.options, facts["state"], wanted.state
    after_state = {"restarted": "running", "present": state, "saved": "stopped"}.get(goal, goal)
    todo = _step(connection, wanted, domain, state, deadline)
    runs = state in ("running", "paused") and after_state in ("running", "paused")
    # A new name needs a stopped machine, so one whose power may be cycled for it is compared as if it were stopped.
    renaming = runs and options["allow_power_cycle"] and options["new_name"] not in (None, facts["name"])
    prepared = vm_update.prepare(
        connection, domain, options, active=runs and not renaming, paused="paused" in (state, after_state)
    )
    update = prepared.update
    if update.changed and (goal == "saved" or (not runs and vms.is_saved(domain))):
        text = "its memory is saved, or is to be, and goes with the definition that it runs with"
        raise VirtfleetError(f"change machine {facts['name']}", text, "Start it first.", "refused")
    cycling = runs and options["allow_power_cycle"] and (renaming or bool(update.next_boot))
    if cycling:
        update = update.cycled()
    name = (options["new_name"] or facts["name"]) if update.changed else facts["name"]
    before = {**(_shown(facts) or {}), **{change.what: change.before for change in update.changes}}
    after = {"name": name, "state": after_state, **{change.what: change.after for change in update.changes}}
    changed = cycling or todo is not None or update.changed
    done = Done(changed, {**facts, "name": name, "state": after_state}, before, after)
    done.differences, done.update, done.power_cycled = _differences(wanted, facts), update, cycling
    done.needs_power_cycle = runs and not cycling and bool(update.next_boot)
    if not check:
        run = _Run(connection, wanted, domain, prepared, deadline)
        addresses = run.cycle(after_state) if cycling else run.plain(todo, after_state, stopping=goal == "stopped")
        done.vm = vms.describe(run.domain, addresses)
    return done


class _Run:
    """The changes of one machine, carried out: its settings before it starts, or after it was stopped."""

    def __init__(
        self,
        connection: libvirt.virConnect,
        wanted: Wanted,
        domain: libvirt.virDomain,
        prepared: vm_update.Prepared,
        deadline: Deadline,
    ) -> None:
        self.domain = domain
        self._connection = connection
        self._wanted = wanted
        self._prepared = prepared
        self._deadline = deadline
        self._state = vms.state_of(domain)
        self._acted = False

    def plain(self, todo: Callable[[], None] | None, after_state: str, *, stopping: bool) -> list[str]:
        """Change what can be changed now, and bring the machine into its state. Returns its addresses."""
        with self._telling(after_state):
            if not stopping:
                self._change(live=True)
            if todo is not None:
                if self._state in ("running", "paused"):
                    todo()
                else:
                    self._start(todo)
                self._acted = True
            if stopping:
                self._change(live=False)
            return self._awaited(after_state)

    def cycle(self, after_state: str) -> list[str]:
        """Stop the machine, change it, and start it again. Returns its addresses."""
        options = self._wanted.options
        with self._telling(after_state):
            vms.stop(
                self._connection,
                self.domain,
                grace=options["grace"],
                force=options["force"],
                deadline=self._deadline,
            )
            self._acted = True
            try:
                self._change(live=False)
            except VirtfleetError:
                vms.start(self.domain, paused=self._state == "paused")
                raise
            self._start(partial(vms.start, self.domain, paused=after_state == "paused"))
            return self._awaited(after_state)

    def _change(self, *, live: bool) -> None:
        if self._prepared.update.changed:
            self.domain = vm_update.carry_out(self._connection, self.domain, self._prepared, self._deadline, live=live)
            self._acted = True

    def _start(self, start: Callable[[], None]) -> None:
        """Start the machine; when it does not with its new definition, put the old one back."""
        try:
            start()
        except VirtfleetError as error:
            if self._prepared.update.changed and vm_update.put_back(self._connection, self.domain, self._prepared):
                error.hint = f"{error.hint} Its definition was put back.".lstrip()
                if self._state in ("running", "paused"):
                    with contextlib.suppress(VirtfleetError):
                        vms.start(self.domain, paused=self._state == "paused")
            raise

    def _awaited(self, after_state: str) -> list[str]:
        if after_state != "running":
            return []
        asked = self._wanted.options["wait_for"], self._wanted.fixed_addresses
        return vm_addresses.await_guest(self._connection, self.domain, *asked, self._deadline)

    @contextlib.contextmanager
    def _telling(self, after_state: str) -> Iterator[None]:
        """Say in an error whether anything was changed before it."""
        try:
            yield
        except VirtfleetError as error:
            with contextlib.suppress(libvirtError):
                error.values["changed"] = self._acted or vms.state_of(self.domain) != self._state
            if self._acted and error.code == "timeout" and after_state == "running":
                error.hint = f"{error.hint} The machine is left running.".lstrip()
            raise


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
        ("running", "saved"): partial(vms.save, domain, deadline),
        ("paused", "saved"): partial(vms.save, domain, deadline),
        ("paused", "running"): partial(vms.resume, domain),
        ("paused", "stopped"): partial(vms.stop, connection, domain, **obeying),
    }
    if (state, goal) == ("paused", "restarted"):
        raise VirtfleetError(f"reboot machine {domain.name()}", "it is paused", "Resume it first.", "refused")
    if goal == "saved" and state in ("stopped", "crashed") and not vms.is_saved(domain):
        text = "it is stopped, so there is no memory to save"
        raise VirtfleetError(f"save the memory of machine {domain.name()}", text, "Start it first.", "refused")
    return steps.get(("off" if state in ("stopped", "crashed") else state, goal))


def _refuse_unmanaged(wanted: Wanted, facts: dict[str, Any]) -> None:
    if wanted.options["managed_only"] and not facts["managed"]:
        raise VirtfleetError(
            f"work on machine {facts['name']}",
            "virtfleet did not make it: it has no metadata of ours",
            "Leave it to whoever made it, or set managed_only to false (of a playbook: virtfleet_force_unmanaged).",
            "refused",
        )


def refuse_older(attempt: int, facts: dict[str, Any]) -> None:
    """Refuse to work on a machine that a later attempt has in hand; attempt 0 is nobody's. Raises VirtfleetError."""
    kept = facts["metadata"].get("attempt")
    if attempt and isinstance(kept, int) and attempt < kept:
        raise VirtfleetError(
            f"work on machine {facts['name']}",
            f"attempt {kept} has it already, this is attempt {attempt}",
            "Let the newer run finish; this one is out of date.",
            "refused",
        )


def _differences(wanted: Wanted, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return in what an existing machine is not as asked for; it is left so."""
    options, found = wanted.options, []
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
    # One that was made for it and then detached is in nobody's way, and has data in it.
    attached |= {each["name"] for each in facts["detached_volumes"]}
    left = vms.leftovers(connection, facts["name"], facts["uuid"])
    return made + [each for each in left if each["name"] not in attached]
