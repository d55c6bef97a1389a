"""`virtfleet lab`: real libvirt hosts on this machine, for trying out, testing and breaking things."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from virtfleet.lab import Lab

app = typer.Typer(no_args_is_help=True, help="Several real libvirt hosts on this machine (needs root).")
fault = typer.Typer(no_args_is_help=True, help="Break something in a host on purpose; `undo` mends it.")
app.add_typer(fault, name="fault")


class Output(StrEnum):
    """How results are written."""

    table = "table"
    json = "json"
    yaml = "yaml"
    name = "name"


class Cable(StrEnum):
    """Which of a host's cables."""

    management = "management"
    guests = "guests"
    both = "both"


Name = Annotated[str, typer.Option("--name", "-n", help="The lab, if you have several.")]
Host = Annotated[str, typer.Argument(help="The host, such as host1.")]
Format = Annotated[Output, typer.Option("--output", "-o", help="table, json, yaml or name.")]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _lab(name: str) -> "Iterator[Lab]":
    """Give the lab; what it cannot do ends the command with its sentence and status 1."""
    from virtfleet.lab import Lab, LabError  # noqa: PLC0415 - loads libvirt, which other commands need not wait for

    try:
        yield Lab(name, say=_say)
    except LabError as error:
        _say(str(error))
        raise typer.Exit(1) from error


def _show(status: dict[str, Any], output: Output) -> None:
    if output is Output.json:
        print(json.dumps(status, indent=2))
    elif output is Output.yaml:
        import yaml  # noqa: PLC0415 - rarely needed

        print(yaml.safe_dump(status, sort_keys=False), end="")
    elif output is Output.name:
        for host in status["hosts"]:
            print(host["name"])
    else:
        rows = [["HOST", "STATE", "ADDRESS", "URI", "FAULTS"]]
        for host in status["hosts"]:
            faults = ", ".join(entry["fault"] for entry in host["faults"]) or "-"
            rows.append([host["name"], host["state"], host["address"], host["uri"], faults])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        guests = status["networks"]["guests"]
        print(f"\nguests     {guests['cidr']} on {guests['bridge']}, gateway {guests['gateway']}")
        print(f"image      {status['image'] or '-'}")
        print(f"inventory  {status['inventory']}")


@app.command()
def up(
    hosts: Annotated[
        int | None, typer.Option(help="How many hosts, 1 to 20 (3 in a new lab).", show_default=False)
    ] = None,
    name: Name = "lab",
    kvm: Annotated[
        bool | None,
        typer.Option("--kvm/--no-kvm", help="Let hosts use this machine's KVM (default: no).", show_default=False),
    ] = None,
    image: Annotated[bool, typer.Option(help="Make the small guest image, too.")] = True,
    output: Format = Output.table,
) -> None:
    """Bring the lab up: make what is missing, boot hosts that died, undo every fault."""
    with _lab(name) as lab:
        _show(lab.up(hosts, kvm=kvm, image=image), output)


@app.command()
def down(name: Name = "lab") -> None:
    """Remove the lab with all its guests and disks, and nothing else."""
    with _lab(name) as lab:
        _say(f"The lab {name} is gone." if lab.down() else f"There was no lab {name}.")


@app.command()
def status(name: Name = "lab", output: Format = Output.table) -> None:
    """Show the hosts, their state and their faults."""
    with _lab(name) as lab:
        _show(lab.status(), output)


@fault.command("kill-libvirtd")
def kill_libvirtd(host: Host, name: Name = "lab") -> None:
    """Kill the host's libvirtd; its guests go on."""
    with _lab(name) as lab:
        lab.fault("kill-libvirtd", host)


@fault.command("freeze-libvirtd")
def freeze_libvirtd(host: Host, name: Name = "lab") -> None:
    """Stop the host's libvirtd (SIGSTOP): connections open, nothing answers; its guests go on."""
    with _lab(name) as lab:
        lab.fault("freeze-libvirtd", host)


@fault.command("power-off")
def power_off(host: Host, name: Name = "lab") -> None:
    """End everything in the host at once, its guests too; its disks stay."""
    with _lab(name) as lab:
        lab.fault("power-off", host)


@fault.command("cut-link")
def cut_link(
    host: Host,
    link: Annotated[Cable, typer.Option(help="Cut the host off, its guests, or both.")] = Cable.management,
    name: Name = "lab",
) -> None:
    """Cut a network cable of the host."""
    with _lab(name) as lab:
        lab.fault("cut-link", host, link=link.value)


@fault.command("slow-link")
def slow_link(
    host: Host,
    delay_ms: Annotated[
        int | None, typer.Option(help="Add so much to every round trip (needs the kernel's netem).")
    ] = None,
    rate_kbit: Annotated[int | None, typer.Option(help="Let only so many kbit/s through, each way.")] = None,
    name: Name = "lab",
) -> None:
    """Slow the host's management link; with no option 200 ms of delay, or 256 kbit/s where the kernel has no netem."""
    with _lab(name) as lab:
        lab.fault("slow-link", host, delay_ms=delay_ms, rate_kbit=rate_kbit)


@fault.command("kill-guest")
def kill_guest(
    host: Host, guest: Annotated[str, typer.Argument(help="The guest's libvirt name.")], name: Name = "lab"
) -> None:
    """Kill the QEMU of a guest; the undo starts the guest again."""
    with _lab(name) as lab:
        lab.fault("kill-guest", host, guest=guest)


@fault.command("fill-pool")
def fill_pool(host: Host, name: Name = "lab") -> None:
    """Leave no free byte in the host's private pool `default`."""
    with _lab(name) as lab:
        lab.fault("fill-pool", host)


@fault.command("undo")
def undo(
    host: Host,
    kind: Annotated[
        str | None, typer.Argument(help="Only this fault, such as cut-link; otherwise all of the host's.")
    ] = None,
    name: Name = "lab",
) -> None:
    """Undo the faults of a host."""
    with _lab(name) as lab:
        if not lab.undo(host, kind):
            _say(f"{host} has no such fault." if kind else f"{host} has no faults.")
