"""`virtfleet plan`: what moves would do, and why. Nothing is moved."""

import re
from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import REFUSED, USAGE, CliError, connect, reported
from virtfleet.cli.output import Column, Format, Output, plain, say, show_list, show_one

app = typer.Typer(no_args_is_help=True, help="Plans: what moves would do, and why. Nothing is moved.")

Zone = Annotated[str | None, typer.Option(help="The zone; machines do not leave it.")]
MaxMoves = Annotated[int | None, typer.Option(min=0, help="The most moves.")]
PerHost = Annotated[int | None, typer.Option(min=1, help="Moves at one time that a host takes part in; 2.")]
KeepSpare = Annotated[bool, typer.Option("--keep-spare/--no-keep-spare", help="The loss of a host stays bearable.")]
Policy = Annotated[str | None, typer.Option(help="The placement policy that chooses the hosts.")]


def _memory(move: dict[str, Any]) -> str:
    shares = move["memory_percent"]
    return ", ".join(f"{move[end]} {shares[end][0]:.0f} → {shares[end][1]:.0f} %" for end in ("from", "to"))


def _bearable(holds: bool) -> str:
    return "bearable" if holds else "not bearable"


MOVES: list[Column] = [
    ("STEP", lambda move: move["batch"] + 1),
    *plain("vm", "from", "to"),
    ("GIB", lambda move: f"{move['bytes'] / 2**30:.1f}"),
    ("SCORE", lambda move: f"{move['score_before']:.4f} → {move['score_after']:.4f}"),
    ("MEMORY", _memory),
]
PLAN: list[Column] = [
    (
        "HOSTS",
        lambda plan: f"{plan['hosts_total']}, in use {plan['hosts_used_before']} → {plan['hosts_used_after']}",
    ),
    ("SCORE", lambda plan: f"{plan['score_before']:.4f} → {plan['score_after']:.4f}"),
    ("MOVES", lambda plan: f"{len(plan['moves'])} in {len(plan['batches'])} steps"),
    ("MOVED", lambda plan: f"{plan['moved_gib']:,.1f} GiB"),
    ("LOSS OF A HOST", lambda plan: " → ".join(_bearable(plan["n_plus_one"][when]) for when in ("before", "after"))),
]
SEEN: list[Column] = [*plain("zone"), ("AS SEEN AT", lambda plan: plan["observed_at"]), *plain("summary")]
WHAT_IF: list[Column] = [
    ("SCORE", lambda plan: f"{plan['score_before']:.4f} → {plan['score_after']:.4f}"),
    ("ALL FIT", lambda plan: "yes" if plan["fits"] else "no"),
    ("LOSS OF A HOST", lambda plan: f"{_bearable(plan['n_plus_one']['after'])} then"),
]
CHOICES: list[Column] = [
    *plain("hosts_used", "hosts_freed", "moves"),
    ("GIB", lambda choice: f"{choice['moved_gib']:,.1f}"),
]
STAYING: list[Column] = [*plain("vm", "host"), ("MUST STAY BECAUSE", lambda left: left["text"])]
STARTING: list[Column] = [*plain("vm"), ("WAS ON", lambda each: each["from"]), ("STARTS ON", lambda each: each["to"])]
HOMELESS: list[Column] = [
    *plain("vm"),
    ("WAS ON", lambda each: each["from"]),
    ("HAS NO PLACE BECAUSE", lambda each: each["text"]),
]
PLACED: list[Column] = [*plain("request", "host"), ("WHY", lambda each: each["explanation"]["text"])]
UNPLACED: list[Column] = [*plain("request"), ("HAS NO PLACE BECAUSE", lambda each: each["explanation"]["text"])]


def show_part(plan: dict[str, Any], part: str, columns: list[Column]) -> None:
    """Write one table of a plan, below an empty line; nothing when the plan has no such rows."""
    if plan.get(part):
        print()
        show_list(plan[part], columns, Output.table, part)


def _ask(kind: str, output: Output, **options: Any) -> dict[str, Any]:
    """Ask for a plan and write it; return it."""
    plan: dict[str, Any] = connect().post("/plans", {"kind": kind, **options})
    if output is Output.name:
        for each in plan.get("moves", plan.get("restarted", ())):
            print(each["vm"])
        return plan
    show_one(plan, [*(WHAT_IF if kind == "what-if" else PLAN), *SEEN], output)
    if output is Output.table:
        show_part(plan, "moves", MOVES)
        show_part(plan, "left", STAYING)
        show_part(plan, "choices", CHOICES)
        show_part(plan, "restarted", STARTING)
        show_part(plan, "homeless", HOMELESS)
        show_part(plan, "placements", PLACED)
        show_part(plan, "unplaced", UNPLACED)
        for note in plan["notes"]:
            say(f"Note: {note}.")
    return plan


@app.command()
def balance(
    zone: Zone = None,
    enough: Annotated[float | None, typer.Option(help="The score that is even enough; 0.1.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="What a move must gain from there on; 0.01.")] = None,
    per_gib: Annotated[float | None, typer.Option(help="The price of moving a GiB; 0.004.")] = None,
    per_move: Annotated[float | None, typer.Option(help="The price of a move; 0.008.")] = None,
    max_moves: MaxMoves = None,
    per_host: PerHost = None,
    keep_spare: KeepSpare = True,
    output: Format = Output.table,
) -> None:
    """Plan the moves that even the load out."""
    with reported():
        prices = {"enough": enough, "min_gain": min_gain, "per_gib": per_gib, "per_move": per_move}
        limits = {"max_moves": max_moves, "per_host": per_host, "keep_n_plus_one": keep_spare}
        _ask("balance", output, zone=zone, **prices, **limits)


@app.command()
def consolidate(
    zone: Zone = None,
    rule: Annotated[str | None, typer.Option(help="fewest_hosts or volume_ratio.")] = None,
    least_hosts: Annotated[int | None, typer.Option(min=1, help="Keep at least so many in use.")] = None,
    choices: Annotated[int | None, typer.Option(min=1, help="For how many numbers of hosts to show the moves.")] = None,
    max_moves: MaxMoves = None,
    per_host: PerHost = None,
    keep_spare: KeepSpare = True,
    output: Format = Output.table,
) -> None:
    """Plan the moves that leave the fewest hosts in use."""
    with reported():
        limits = {"max_moves": max_moves, "per_host": per_host, "keep_n_plus_one": keep_spare}
        _ask("consolidate", output, zone=zone, rule=rule, least_hosts=least_hosts, choices=choices, **limits)


@app.command()
def drain(
    hosts: Annotated[list[str], typer.Argument(help="Names, ids or numbers.", autocompletion=complete.hosts)],
    zone: Zone = None,
    policy: Policy = None,
    per_host: PerHost = None,
    keep_spare: KeepSpare = True,
    output: Format = Output.table,
) -> None:
    """Plan the moves that empty hosts; exit code 4 when a machine must stay."""
    with reported():
        limits = {"per_host": per_host, "keep_n_plus_one": keep_spare}
        plan = _ask("drain", output, hosts=hosts, zone=zone, policy=policy, **limits)
        if plan["left"]:
            raise typer.Exit(REFUSED)


@app.command("what-if")
def what_if(
    lose_host: Annotated[
        list[str] | None, typer.Option(help="A host that is lost; may be given again.", autocompletion=complete.hosts)
    ] = None,
    add_host: Annotated[
        list[str] | None, typer.Option(help="VCPUSxMEMORY or VCPUSxMEMORYxDISK of a host that comes, as 16x64GiB.")
    ] = None,
    remove_vm: Annotated[
        list[str] | None, typer.Option(help="A machine that goes; may be given again.", autocompletion=complete.vms)
    ] = None,
    add_vm: Annotated[
        list[str] | None, typer.Option(help="A flavor, or VCPUSxMEMORY[xDISK], of a machine that comes, as 2x4GiB.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of each that comes.")] = 1,
    zone: Zone = None,
    policy: Policy = None,
    output: Format = Output.table,
) -> None:
    """See what would happen when hosts are lost or come, or machines go or come; exit code 4 when not all fit."""
    with reported():
        event = {
            "lose_hosts": lose_host,
            "add_hosts": [_sized(text, "host") | {"count": count} for text in add_host or []] or None,
            "remove_vms": remove_vm,
            "add_vms": [_of_flavor(text) | {"count": count} for text in add_vm or []] or None,
        }
        if not _ask("what-if", output, zone=zone, policy=policy, **event)["fits"]:
            raise typer.Exit(REFUSED)


SIZE = re.compile(r"([0-9]{1,6})x([0-9][^x]*)(?:x([0-9][^x]*))?", re.ASCII)


def _sized(text: str, what: str) -> dict[str, Any]:
    """Read VCPUSxMEMORY, or VCPUSxMEMORYxDISK. Raises CliError."""
    found = SIZE.fullmatch(text)
    if found is None:
        problem = f"a {what} is VCPUSxMEMORY or VCPUSxMEMORYxDISK, such as 16x64GiB"
        raise CliError(f"Failed to read {text!r}: {problem}.", USAGE)
    vcpus, memory, disk = found.groups()
    return {"vcpus": int(vcpus), "memory": memory} | ({"disk": disk} if disk else {})


def _of_flavor(text: str) -> dict[str, Any]:
    return _sized(text, "machine") if SIZE.fullmatch(text) else {"flavor": text}
