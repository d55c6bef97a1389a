"""The network cards of machines that are there: attached with an address, cut off, detached."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from virtfleet.errors import Problem, not_found
from virtfleet.models import Address, Job, Vm
from virtfleet.services import addresses, ledger, nwfilters, zones
from virtfleet.services.auth import Principal
from virtfleet.services.vms import actions

MOST = 8
"""Network cards of one machine."""


def of(vm: Vm) -> list[dict[str, Any]]:
    """Return the cards of a machine as they are known."""
    down = set(vm.spec.get("links_down") or [])
    return [
        {
            **{"mac": each.mac, "network": each.network.name, "address": each.address},
            "link": "down" if each.mac in down else "up",
            "filter": each.filter or nwfilters.NONE,
        }
        for each in vm.addresses
    ]


def find(vm: Vm, mac: str) -> Address:
    """Return one card. Raises Problem `not_found`."""
    found = next((each for each in vm.addresses if each.mac == mac.lower()), None)
    if found is None:
        raise not_found("nic", mac)
    return found


def attach(
    session: Session,
    who: Principal,
    vm: Vm,
    *,
    network: str | None = None,
    address: str | None = None,
    nwfilter: str | None = None,
) -> tuple[Job, Address]:
    """Reserve an address and make the job that attaches a card with it, filtered if that is said. Raises Problem.

    The machine is not told of the address: whoever runs it sets it, or asks by DHCP where the network answers that.
    """
    actions.require_ready(vm)
    if len(vm.addresses) >= MOST:
        raise Problem("conflict", f"Vm {vm.name!r} has {MOST} network cards already.", "Detach one of them first.")
    chosen = zones.network(session, vm.zone, network)
    if chosen is None:
        raise Problem("not_found", f"Zone {vm.zone.name!r} has no network.", "Register one: virtfleet network add.")
    guard = _checked(nwfilter)
    row = addresses.reserve(session, vm, chosen, address, guard)
    nic = {"mac": row.mac, "network" if chosen.kind == "nat" else "bridge": chosen.source}
    if row.filter is not None:
        nic["filter"] = row.filter
    return _submit(session, who, vm, nic, "attach"), row


def change(
    session: Session, who: Principal, vm: Vm, mac: str, *, link: str | None = None, nwfilter: str | None = None
) -> Job:
    """Make the job that cuts a card's link or mends it, or gives it another filter. Raises Problem."""
    actions.require_ready(vm)
    wanted = {"mac": find(vm, mac).mac, "link": link, "filter": _checked(nwfilter)}
    return _submit(session, who, vm, {key: value for key, value in wanted.items() if value is not None}, "change")


def _checked(nwfilter: str | None) -> str | None:
    return None if nwfilter is None else nwfilters.check_name(nwfilter)


def detach(session: Session, who: Principal, vm: Vm, mac: str) -> Job:
    """Make the job that detaches a card; then its address is free. Raises Problem."""
    actions.require_ready(vm)
    return _submit(session, who, vm, {"mac": find(vm, mac).mac, "state": "absent"}, "detach")


def settle(session: Session, vm: Vm, context: Mapping[str, Any], *, done: bool) -> None:
    """Note what became of a card when its job has ended."""
    row = next((each for each in vm.addresses if each.mac == context["mac"]), None)
    if row is None:
        return
    if (context["action"] == "detach") == done and context["action"] != "change":
        vm.addresses.remove(row)
        session.flush()
    if context["action"] == "change" and done and context.get("filter") is not None:
        row.filter = None if context["filter"] == nwfilters.NONE else context["filter"]
    if context["action"] == "change" and done and context["link"] is not None:
        others = [mac for mac in vm.spec.get("links_down") or [] if mac != row.mac]
        vm.spec = {**vm.spec, "links_down": [*others, row.mac] if context["link"] == "down" else others}


def _submit(session: Session, who: Principal, vm: Vm, nic: dict[str, Any], action: str) -> Job:
    vm.generation += 1
    variables = {"virtfleet_vm": actions.reference(vm), "virtfleet_nics": [nic]}
    context = {"action": action, "mac": nic["mac"], "link": nic.get("link"), "filter": nic.get("filter")}
    job = actions.submit(session, who, "vm.nic", [vm], variables=variables, context=context)
    ledger.audit(session, who, f"vm.nic.{action}", vm.id, job.id)
    ledger.changed(session, "vm", vm.id, "updated", vm.project_id, name=vm.name, state=vm.state)
    return job
