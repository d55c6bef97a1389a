"""What `virtfleet simulate` does: reads a cluster or a trace, asks the placement library, and reports."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import (
    SchemaError,
    capacity,
    consolidate,
    export_htools,
    import_htools,
    rebalance,
    replay,
    replay_loads,
    score,
    traces,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.explain import counted as in_words
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.htools import LOCAL_POOL
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import State, read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.standing import request_of
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import after, without_machines

from virtfleet.cli.client import USAGE, CliError, read_text

GIB = 2**30
HOSTS_FILE = "hosts.csv"
RACKS_FILE = "topology.csv"
"""What lies beside a trace of requests."""
FLAVORS = ("1x2GiB", "2x4GiB", "4x8GiB")

Report = dict[str, Any]


@dataclass(frozen=True)
class Hardware:
    """The hosts for a trace that brings none; no count means one host for each machine that lives at one time.

    `at_once`: all of them do.
    """

    count: int | None
    vcpus: int
    memory: str
    at_once: bool = False


@dataclass
class Simulation:
    """What a file holds: hosts with machines that stand or that come, or loads; and what it cost so far."""

    path: Path
    kind: str = "htools"
    state: State | None = None
    arrivals: list[traces.Arrival] = field(default_factory=list)
    loads: dict[str, list[float]] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: tuple[float, float] = field(default_factory=lambda: (time.process_time(), time.perf_counter()))

    def fleet(self) -> State:
        """Return the hosts and the machines that stand on them."""
        if self.state is None:
            raise CliError(f"{self.path} holds loads, no hosts. Try: virtfleet simulate replay {self.path}", USAGE)
        return self.state

    def settle(self, policy: str) -> State:
        """Place a trace's machines, so that there is a fleet to plan on: the one of the fullest moment."""
        state = self.fleet()
        if self.arrivals:
            answer = replay(state, self.arrivals, policy)
            state = self.state = read_state(answer["fullest"])
            self.rejected = answer["rejected"]
            self.notes.append(answer["summary"])
        return state

    def report(self, answer: dict[str, Any], **more: Any) -> Report:
        """Return an answer of the library with what is common to all simulations."""
        cpu, wall = self.started
        return {
            "file": str(self.path),
            "file_kind": self.kind,
            **answer,
            **more,
            "rejected": len(self.rejected),
            "rejections": self.rejected,
            "notes": self.notes,
            "cpu_seconds": round(time.process_time() - cpu, 4),
            "wall_seconds": round(time.perf_counter() - wall, 4),
        }


def read(path: Path, hardware: Hardware) -> Simulation:
    """Read a file of any of the kinds. Raises CliError, SchemaError."""
    simulation = Simulation(path)
    text = read_text(path, "the file")
    trace = traces.kind_of(text)
    if trace is not None:
        simulation.kind = trace
        _read_trace(simulation, text, hardware)
    elif (found := _state_in(text)) is not None:
        simulation.kind, simulation.state = "state", read_state(found)
    elif "|" in text:
        found, simulation.notes = import_htools(text)
        simulation.state = read_state(found)
    else:
        problem = "it is no htools file, no state and no trace. docs/placement.md says what they look like."
        raise CliError(f"Failed to read {path}: {problem}", USAGE)
    if simulation.state is not None and not simulation.state.hosts:
        raise CliError(f"Failed to simulate {path}: there are no hosts in it.", USAGE)
    return simulation


def _read_trace(simulation: Simulation, text: str, hardware: Hardware) -> None:
    if simulation.kind == "loads":
        simulation.loads = traces.read_loads_trace(text)
    elif simulation.kind == "requests":
        folder = simulation.path.parent
        hosts, racks = (read_text(folder / name, "the file beside the trace") for name in (HOSTS_FILE, RACKS_FILE))
        state, simulation.arrivals = traces.read_requests_trace(text, hosts, racks)
        simulation.state = read_state(state)
    else:
        simulation.arrivals, left_out = traces.read_machines_trace(text)
        if left_out:
            simulation.notes.append(f"{in_words(left_out, 'machine')} left out: a GPU is wanted")
        # Hosts enough for one machine each: how few of them the policy needs is the question.
        machines = len(simulation.arrivals) if hardware.at_once else traces.most_at_once(simulation.arrivals)
        count = hardware.count or max(1, machines)
        memory = parse_size(hardware.memory, "the memory of a host")
        simulation.state = read_state(traces.hosts_of_one_size(count, hardware.vcpus * traces.VCPU_MILLI, memory))


def _state_in(text: str) -> Any:
    """Return what is in a JSON or YAML text that names a schema version; None when it is something else."""
    if "schema_version" not in text:
        return None
    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise SchemaError("", f"it is neither JSON nor YAML: {' '.join(str(error).split())}") from error


def balanced(simulation: Simulation, policy: str, options: dict[str, Any], save: Path | None) -> Report:
    """Plan the moves that even the load out."""
    state = simulation.settle(policy)
    return _planned(simulation, state, rebalance(state, options), save)


def consolidated(simulation: Simulation, policy: str, options: dict[str, Any], save: Path | None) -> Report:
    """Plan the moves that leave the fewest hosts in use."""
    state = simulation.settle(policy)
    return _planned(simulation, state, consolidate(state, options), save)


def _planned(simulation: Simulation, state: State, plan: dict[str, Any], save: Path | None) -> Report:
    report = simulation.report(plan, hosts_used=plan["hosts_used_after"])
    _save(after(state, plan), save)
    return report


def _used(state: State) -> int:
    return len({vm.host for vm in state.vms})


def _save(state: State, path: Path | None) -> None:
    if path is None:
        return
    try:
        path.write_text(export_htools(state), encoding="utf-8")
    except OSError as error:
        raise CliError(f"Failed to write {path}: {error.strerror}.", USAGE) from error


def counted(simulation: Simulation, policy: str, flavors: list[str]) -> Report:
    """Count how many more machines of each flavor fit."""
    state = simulation.settle(policy)
    vcpu = traces.VCPU_MILLI if simulation.kind == "machines" else 1
    answer = capacity(state, [_flavor(text, vcpu) for text in dict.fromkeys(flavors or FLAVORS)])
    return simulation.report(answer, hosts_used=_used(state), moves=[], moved_gib=0.0)


def _flavor(text: str, vcpu: int) -> dict[str, Any]:
    """Read VCPUSxMEMORY, or VCPUSxMEMORYxDISK; `vcpu` is what one vCPU counts."""
    vcpus, *sizes = text.split("x")
    if not (vcpus.isascii() and vcpus.isdecimal() and len(vcpus) < 8 and len(sizes) in (1, 2)):
        problem = "a flavor is VCPUSxMEMORY or VCPUSxMEMORYxDISK, such as 2x4GiB or 2x4GiBx20GiB"
        raise CliError(f"Failed to read {text!r}: {problem}.", USAGE)
    flavor: dict[str, Any] = {"name": text, "vcpus": int(vcpus) * vcpu}
    flavor["memory_bytes"] = parse_size(sizes[0], "the flavor's memory")
    if len(sizes) == 2:
        size = parse_size(sizes[1], "the flavor's disk")
        flavor["disks"] = [{"pool": LOCAL_POOL, "size_bytes": size, "overlay": False}]
    return flavor


def resized(simulation: Simulation, up: float, down: float, sample_seconds: float) -> Report:
    """Judge a trace of loads, sample by sample."""
    rules = {"up_percent": up, "down_percent": down}
    return simulation.report(replay_loads(simulation.loads, sample_seconds, rules))


def replayed(simulation: Simulation, policy: str, *, at_once: bool, save: Path | None) -> Report:
    """Place a trace's machines as they come and go, or those of a cluster anew on its empty hosts."""
    state = simulation.fleet()
    arrivals, homes = simulation.arrivals, {}
    if not arrivals:
        homes = {vm.id: vm.host for vm in state.vms}
        arrivals = [traces.Arrival(request_of(vm)) for vm in state.vms]
    answer = replay(without_machines(state, homes), arrivals, policy, at_once=at_once)
    fullest = read_state(answer.pop("fullest"))
    simulation.rejected = answer.pop("rejected")
    elsewhere = [vm for vm in fullest.vms if vm.id in homes and homes[vm.id] != vm.host]
    report = simulation.report(
        answer,
        hosts_used_before=_used(state),
        score_before=score(state)["score"],
        score_after=score(fullest)["score"],
        moves=[{"vm": vm.id, "from": homes[vm.id], "to": vm.host, "bytes": vm.memory_bytes} for vm in elsewhere],
        moved_gib=sum(vm.memory_bytes for vm in elsewhere) / GIB,
    )
    _save(fullest, save)
    return report
