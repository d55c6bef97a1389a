"""What is known of a host at this moment: the last lines of its child, in the fleet's words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# libvirt has more states than the fleet has words for; one without a word here is not recorded.
_STATES = {
    "running": "running",
    "stopping": "running",
    "paused": "paused",
    "suspended": "paused",
    "stopped": "stopped",
    "crashed": "crashed",
}
ACTIVE = ("running", "paused")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as its host has it. `state` is running, paused, stopped, crashed or unknown."""

    uuid: str
    state: str
    vcpus: int
    memory_bytes: int

    @property
    def active(self) -> bool:
        """Whether a hypervisor runs it, so that it is nowhere else."""
        return self.state in ACTIVE


@dataclass(frozen=True, slots=True)
class Look:
    """Which machines a host had, and when the reading began: what happened later may be missing from it."""

    at: datetime
    machines: Mapping[str, Machine]


@dataclass(frozen=True, slots=True)
class View:
    """All that is known of a host which answers. `info` is its last `host_info` without machines."""

    info: Mapping[str, Any]
    latest: Look
    report: Look
    """The look that came with `info`: its pools and its machines are of one moment."""
    earlier: Look | None = None
    """The report before that one: a machine must be absent from both before it counts as missing."""

    def then(self, line: Mapping[str, Any]) -> "View":
        """Return the view after a line of kind `machines`."""
        return View(self.info, _look(line["at"], line["machines"]), self.report, self.earlier)

    @property
    def states(self) -> dict[str, str]:
        """The machines' states by UUID: when they change, somebody should know soon."""
        return {uuid: machine.state for uuid, machine in self.latest.machines.items()}


def view_of(line: Mapping[str, Any], before: View | None) -> View:
    """Return the view after a line of kind `report`."""
    info = {key: value for key, value in line["host"].items() if key != "machines"}
    look = _look(line["at"], line["host"]["machines"])
    return View(info, look, look, before.report if before else None)


def _look(at: float, machines: list[dict[str, Any]]) -> Look:
    seen = {
        machine["uuid"]: Machine(
            machine["uuid"],
            _STATES.get(machine["state"], "unknown"),
            machine["vcpus"],
            machine["memory_bytes"],
        )
        for machine in machines
    }
    return Look(datetime.fromtimestamp(at, UTC), seen)
