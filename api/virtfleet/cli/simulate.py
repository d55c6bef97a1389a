"""`virtfleet simulate`: placement and balancing on a file, offline; no server, no database, nothing is changed.

FILE is an htools text file of Ganeti, a state as docs/placement.md describes it (JSON or YAML), or a trace (CSV).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from virtfleet.cli.client import USAGE, CliError, reported
from virtfleet.cli.output import Column, Format, Output, plain, say, show_list, show_one
from virtfleet.cli.plans import MOVES, PLAN

if TYPE_CHECKING:
    from types import ModuleType

app = typer.Typer(no_args_is_help=True, help="Placement and balancing on a file: offline, nothing is changed.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="An htools file, a state (JSON, YAML) or a trace (CSV).")]
Policy = Annotated[str, typer.Option(help="The policy that places a trace's machines.")]
Hosts = Annotated[int | None, typer.Option(min=1, max=100_000, help="How many hosts, for a trace without any.")]
HostVcpus = Annotated[int, typer.Option(min=1, max=100_000, help="vCPUs of each of them.")]
HostMemory = Annotated[str, typer.Option(help="Memory of each of them, with its unit.")]
MaxMoves = Annotated[int | None, typer.Option(min=0, help="The most moves.")]
Save = Annotated[Path | None, typer.Option(help="Write what comes out as an htools file.")]

FLAVORS: list[Column] = [
    *plain("flavor", "fits"),
    ("WITH ONE HOST LOST", lambda each: each["fits_n_plus_one"]),
    ("NEXT IS REFUSED", lambda each: each["limit"]),
]
COMMON: list[Column] = [
    *plain("rejected"),
    ("TIME", lambda report: f"{report['cpu_seconds']:.2f} s of CPU, {report['wall_seconds']:.2f} s"),
    *plain("summary"),
]
PLANNED: list[Column] = [*PLAN, *COMMON]
CAPACITY: list[Column] = [("HOSTS", lambda report: f"{report['hosts']}, in use {report['hosts_used']}"), *COMMON]
REPLAY: list[Column] = [
    ("MACHINES", lambda report: f"{report['machines']}, at most {report['machines_at_once']} at one time"),
    ("HOSTS", lambda report: f"{report['hosts']}, in use at most {report['hosts_used']} at one time"),
    ("SCORE", lambda report: f"{report['score_after']:.4f}"),
    ("ELSEWHERE NOW", lambda report: f"{len(report['moves'])} machines, {report['moved_gib']:,.1f} GiB"),
    *COMMON,
]
LOADS: list[Column] = [
    ("MACHINES", lambda report: f"{report['machines']}, {report['samples']} samples each"),
    ("RESIZED", lambda report: f"{report['actions']}, of them {report['flaps']} within an hour of the last"),
    ("SLOWEST", lambda report: f"{report['slowest_seconds'] / 60:.0f} min from overload to action"),
    *COMMON,
]


@contextmanager
def _simulation(file: Path) -> Iterator["ModuleType"]:
    """Give what does the work, loaded only now; end with a sentence when a file or an option says what cannot be."""
    from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError  # noqa: PLC0415 - lazy
    from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import SchemaError  # noqa: PLC0415

    from virtfleet.cli import simulation  # noqa: PLC0415

    with reported():
        try:
            yield simulation
        except SchemaError as error:
            place = f"{error.path}: " if error.path else ""
            raise CliError(f"Failed to simulate {file}: {place}{error.problem}.", USAGE) from error
        except VirtfleetError as error:
            raise CliError(str(error), USAGE) from error


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show(
    report: dict[str, Any],
    lines: Sequence[Column],
    output: Output,
    rows: str = "",
    columns: Sequence[Column] = (),
    name: Callable[[dict[str, Any]], str] = lambda row: row["vm"],
) -> None:
    """Write a report: all of it to programs; to people its lines, the table of its `rows`, and notes aside."""
    if output is Output.name:
        for row in report[rows or "rejections"]:
            print(name(row))
        return
    show_one(report, lines, output)
    if output is not Output.table:
        return
    if rows and report[rows]:
        print()
        show_list(report[rows], columns, output, rows)
    for each in report["rejections"][:3]:
        say(each["text"])
    if len(report["rejections"]) > 3:
        say(f"… and {len(report['rejections']) - 3} more rejected; -o json has them all.")
    for note in report["notes"]:
        say(f"Note: {note}")


@app.command()
def balance(
    file: File,
    max_moves: MaxMoves = None,
    enough: Annotated[float | None, typer.Option(help="The score that is even enough; 0.1.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="What a move must gain from there on; 0.01.")] = None,
    policy: Policy = "bin_packing",
    hosts: Hosts = None,
    host_vcpus: HostVcpus = 96,
    host_memory: HostMemory = "384GiB",
    save: Save = None,
    output: Format = Output.table,
) -> None:
    """Plan the moves that even the load out."""
    with _simulation(file) as simulation:
        found = simulation.read(file, simulation.Hardware(hosts, host_vcpus, host_memory))
        options = _given(max_moves=max_moves, enough=enough, min_gain=min_gain)
        _show(simulation.balanced(found, policy, options, save), PLANNED, output, "moves", MOVES)


@app.command()
def consolidate(
    file: File,
    rule: Annotated[str, typer.Option(help="fewest_hosts or volume_ratio.")] = "fewest_hosts",
    max_moves: MaxMoves = None,
    least_hosts: Annotated[int | None, typer.Option(min=1, help="Keep at least so many in use.")] = None,
    policy: Policy = "balanced",
    hosts: Hosts = None,
    host_vcpus: HostVcpus = 96,
    host_memory: HostMemory = "384GiB",
    save: Save = None,
    output: Format = Output.table,
) -> None:
    """Plan the moves that leave the fewest hosts in use."""
    with _simulation(file) as simulation:
        found = simulation.read(file, simulation.Hardware(hosts, host_vcpus, host_memory))
        options = _given(rule=rule, max_moves=max_moves, least_hosts=least_hosts)
        _show(simulation.consolidated(found, policy, options, save), PLANNED, output, "moves", MOVES)


@app.command()
def capacity(
    file: File,
    flavor: Annotated[
        list[str] | None, typer.Option(help="VCPUSxMEMORY or VCPUSxMEMORYxDISK, such as 2x4GiB; may be given again.")
    ] = None,
    policy: Policy = "bin_packing",
    hosts: Hosts = None,
    host_vcpus: HostVcpus = 96,
    host_memory: HostMemory = "384GiB",
    output: Format = Output.table,
) -> None:
    """Count how many more machines fit, and how many while the loss of any one host can still be absorbed."""
    with _simulation(file) as simulation:
        found = simulation.read(file, simulation.Hardware(hosts, host_vcpus, host_memory))
        report = simulation.counted(found, policy, flavor or [])
        _show(report, CAPACITY, output, "flavors", FLAVORS, lambda row: row["flavor"])


@app.command()
def replay(
    file: File,
    policy: Policy = "balanced",
    at_once: Annotated[bool, typer.Option("--at-once", help="All machines of a trace live at one time.")] = False,
    hosts: Hosts = None,
    host_vcpus: HostVcpus = 96,
    host_memory: HostMemory = "384GiB",
    up: Annotated[float, typer.Option(min=0, help="Loads: larger from this many percent on.")] = 76.0,
    down: Annotated[float, typer.Option(min=0, help="Loads: smaller from this many percent down.")] = 24.0,
    sample_seconds: Annotated[float, typer.Option(min=1, help="Loads: from one sample to the next.")] = 300.0,
    save: Save = None,
    output: Format = Output.table,
) -> None:
    """Place a file's machines anew, as they come and go; or judge a trace of loads, sample by sample."""
    with _simulation(file) as simulation:
        found = simulation.read(file, simulation.Hardware(hosts, host_vcpus, host_memory, at_once))
        if found.kind == "loads":
            _show(simulation.resized(found, up, down, sample_seconds), LOADS, output)
        else:
            report = simulation.replayed(found, policy, at_once=at_once, save=save)
            _show(report, REPLAY, output, name=lambda row: row["request"])
