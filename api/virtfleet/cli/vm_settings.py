"""`virtfleet vm set` and `virtfleet vm rename`: what a machine is, beside its sizes."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli.client import USAGE, CliError, connect, read_text, ref, reported
from virtfleet.cli.output import say
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Force, Grace, Name, Wait

PowerCycle = Annotated[bool, typer.Option("--allow-power-cycle", help="Stop and start it for what needs that.")]


class Firmware(StrEnum):
    """What starts a machine."""

    bios = "bios"
    uefi = "uefi"


class Video(StrEnum):
    """A video card."""

    none = "none"
    vga = "vga"
    virtio = "virtio"
    qxl = "qxl"
    cirrus = "cirrus"
    bochs = "bochs"


class Serial(StrEnum):
    """A serial port."""

    none = "none"
    pty = "pty"


class Watchdog(StrEnum):
    """What a watchdog does."""

    none = "none"
    reset = "reset"
    shutdown = "shutdown"
    poweroff = "poweroff"
    pause = "pause"
    dump = "dump"


def set_settings(
    name: Name,
    boot: Annotated[str | None, typer.Option(help="What it boots from, in order: hd,cdrom,network,fd.")] = None,
    firmware: Annotated[Firmware | None, typer.Option(help="What starts it.")] = None,
    machine: Annotated[str | None, typer.Option(help="The machine type, such as q35.")] = None,
    cpu_model: Annotated[str | None, typer.Option(help="A CPU model, or host-model, maximum.")] = None,
    hugepages: Annotated[str | None, typer.Option(help="The size of its huge pages, default, or off.")] = None,
    video: Annotated[Video | None, typer.Option(help="The video card.")] = None,
    serial: Annotated[Serial | None, typer.Option(help="The serial port, with the console.")] = None,
    rng: Annotated[bool | None, typer.Option("--rng/--no-rng", help="A source of random numbers.")] = None,
    watchdog: Annotated[Watchdog | None, typer.Option(help="What its watchdog does.")] = None,
    tpm: Annotated[bool | None, typer.Option("--tpm/--no-tpm", help="An emulated TPM 2.0.")] = None,
    xml_patch: Annotated[
        Path | None,
        typer.Option(help="A JSON file with changes of libvirt's document: [{path, attribute, value, state}]."),
    ] = None,
    allow_power_cycle: PowerCycle = False,
    force: Force = False,
    grace: Grace = None,
    wait: Wait = True,
) -> None:
    """Change what a machine is; it holds after its power was cycled."""
    with reported():
        body: dict[str, Any] = {
            **{"boot": None if boot is None else boot.split(","), "firmware": firmware, "machine": machine},
            **{"cpu_model": cpu_model, "hugepages": hugepages, "video": video, "serial": serial, "rng": rng},
            **{"watchdog": watchdog, "tpm": tpm, "grace": grace},
            "xml_patch": None if xml_patch is None else _steps(xml_patch),
        }
        given = {key: value for key, value in body.items() if value is not None}
        _patch(name, given | {"allow_power_cycle": allow_power_cycle, "force": force}, f"{name}: changed", wait=wait)


def rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(help="What it is to be called.")],
    allow_power_cycle: PowerCycle = False,
    force: Force = False,
    grace: Grace = None,
    wait: Wait = True,
) -> None:
    """Give a machine another name; it must be stopped for that."""
    with reported():
        body = {"name": new_name, "allow_power_cycle": allow_power_cycle, "force": force}
        given = body if grace is None else body | {"grace": grace}
        _patch(name, given, f"{name} is called {new_name} now", wait=wait)


def _patch(name: str, body: dict[str, Any], done: str, *, wait: bool) -> None:
    api = connect()
    if finish(api, api.patch(f"/vms/{ref(name)}", body), wait=wait) is not None:
        say(done)


def _steps(path: Path) -> Any:
    try:
        return json.loads(read_text(path, "the changes"))
    except ValueError as error:
        raise CliError(f"Failed to read the changes {str(path)!r}: it is not JSON: {error}.", USAGE) from error
