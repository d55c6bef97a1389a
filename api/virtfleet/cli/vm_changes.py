"""`virtfleet vm resize`, `virtfleet vm disk` and `virtfleet vm nic`: what is changed about machines that are there."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from virtfleet.cli.client import connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import MaxMemory, MaxVcpus, Name, Wait

disk = typer.Typer(no_args_is_help=True, help="Disks of a machine.")
nic = typer.Typer(no_args_is_help=True, help="Network cards of a machine.")

Serial = Annotated[str, typer.Argument(help="The disk's serial number, such as data.")]
Mac = Annotated[str, typer.Argument(help="The card's MAC address.")]
Size = Annotated[str | None, typer.Option(help="The size to grow to, with its unit.")]
GrowBy = Annotated[str | None, typer.Option(help="How much to grow by, with its unit.")]
Iops = Annotated[int | None, typer.Option(help="How many times a second it may read and write; 0 for no limit.")]
Rate = Annotated[str | None, typer.Option(help="How much it may read and write in a second, such as 10MiB.")]

Filter = Annotated[str | None, typer.Option("--filter", help="The network filter that guards it; none for none.")]


class Bus(StrEnum):
    """What a disk is plugged into."""

    virtio = "virtio"
    scsi = "scsi"
    usb = "usb"


class Link(StrEnum):
    """Whether a card's cable is plugged in."""

    up = "up"
    down = "down"


def resize(
    name: Name,
    vcpus: Annotated[int | None, typer.Option(help="vCPUs in use.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory in use, with its unit.")] = None,
    disk: Annotated[str | None, typer.Option(help="Size that its disk is to grow to, with its unit.")] = None,
    grow_disk_by: GrowBy = None,
    max_vcpus: MaxVcpus = None,
    max_memory: MaxMemory = None,
    threads: Annotated[int | None, typer.Option(help="Threads per core that its vCPUs look like.")] = None,
    autostart: Annotated[bool | None, typer.Option("--autostart/--no-autostart", help="Start with its host.")] = None,
    iops: Iops = None,
    bytes_per_second: Rate = None,
    allow_power_cycle: Annotated[
        bool, typer.Option("--allow-power-cycle", help="Stop and start it for what needs that.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Cut its power if it does not obey in time.")] = False,
    grace: Annotated[float | None, typer.Option(help="Seconds it may take to shut down.")] = None,
    wait: Wait = True,
) -> None:
    """Change what a machine has, without a reboot as far as that goes."""
    with reported():
        api = connect()
        body: dict[str, Any] = {
            **{"vcpus": vcpus, "memory": memory, "disk": disk, "grow_disk_by": grow_disk_by},
            **{"max_vcpus": max_vcpus, "max_memory": max_memory, "autostart": autostart},
            **{"topology": None if threads is None else {"threads": threads}},
            **{"io": _limits(iops, bytes_per_second), "grace": grace},
        }
        given = {key: value for key, value in body.items() if value is not None}
        job = finish(
            api,
            api.patch(f"/vms/{ref(name)}", given | {"allow_power_cycle": allow_power_cycle, "force": force}),
            wait=wait,
        )
        if job is not None:
            say(f"{name}: resized")


def _limits(iops: int | None, bytes_per_second: str | None) -> dict[str, Any] | None:
    found = {"iops": iops, "bytes_per_second": bytes_per_second}
    given = {key: value for key, value in found.items() if value is not None}
    return given or None


@disk.command("list")
def list_disks(name: Name, output: Format = Output.table) -> None:
    """List the disks of a machine."""
    with reported():
        found = connect().items(f"/vms/{ref(name)}/disks")
        show_list(found, plain("serial", "size", "pool", "volume", "bus", "read_only", "shareable"), output, "disks")


@disk.command()
def attach(
    name: Name,
    serial: Serial,
    size: Annotated[str | None, typer.Option(help="Make a new volume of this size, with its unit.")] = None,
    volume: Annotated[str | None, typer.Option(help="The volume to attach, instead of a new one.")] = None,
    pool: Annotated[str | None, typer.Option(help="Its storage pool.")] = None,
    bus: Annotated[Bus, typer.Option(help="What to plug it into.")] = Bus.virtio,
    read_only: Annotated[bool, typer.Option("--read-only", help="The machine can only read it.")] = False,
    shareable: Annotated[bool, typer.Option("--shareable", help="Other machines may have it too.")] = False,
    iops: Iops = None,
    bytes_per_second: Rate = None,
    wait: Wait = True,
) -> None:
    """Attach a disk: a new one, or a volume that is there."""
    with reported():
        api = connect()
        body: dict[str, Any] = {"serial": serial, "size": size, "volume": volume, "pool": pool, "bus": bus.value}
        body |= {"read_only": read_only, "shareable": shareable, "io": _limits(iops, bytes_per_second)}
        answer = api.post(f"/vms/{ref(name)}/disks", {key: value for key, value in body.items() if value is not None})
        if finish(api, answer, wait=wait) is not None:
            say(f"{name}: disk {serial} attached")


@disk.command()
def change(
    name: Name,
    serial: Serial,
    size: Size = None,
    grow_by: GrowBy = None,
    iops: Iops = None,
    bytes_per_second: Rate = None,
    wait: Wait = True,
) -> None:
    """Grow a disk, with the file system on it, or limit it."""
    with reported():
        api = connect()
        body = {"size": size, "grow_by": grow_by, "io": _limits(iops, bytes_per_second)}
        given = {key: value for key, value in body.items() if value is not None}
        if finish(api, api.patch(f"/vms/{ref(name)}/disks/{ref(serial)}", given), wait=wait) is not None:
            say(f"{name}: disk {serial} changed")


@disk.command()
def detach(name: Name, serial: Serial, wait: Wait = True) -> None:
    """Detach a disk; its volume stays."""
    with reported():
        api = connect()
        if finish(api, api.delete(f"/vms/{ref(name)}/disks/{ref(serial)}"), wait=wait) is not None:
            say(f"{name}: disk {serial} detached")


@nic.command("list")
def list_nics(name: Name, output: Format = Output.table) -> None:
    """List the network cards of a machine."""
    with reported():
        found = connect().items(f"/vms/{ref(name)}/nics")
        show_list(found, plain("mac", "network", "address", "link", "filter"), output, "nics")


@nic.command("attach")
def attach_nic(
    name: Name,
    network: Annotated[str | None, typer.Option(help="The network to join; the zone's first if left out.")] = None,
    address: Annotated[str | None, typer.Option(help="Its address; a free one if left out.")] = None,
    nwfilter: Filter = None,
    wait: Wait = True,
) -> None:
    """Attach a network card."""
    with reported():
        api = connect()
        body = {"network": network, "address": address, "filter": nwfilter}
        answer = api.post(f"/vms/{ref(name)}/nics", {key: value for key, value in body.items() if value is not None})
        if finish(api, answer, wait=wait) is not None:
            say(f"{name}: card {answer['nic']['mac']} attached")


@nic.command("change")
def change_nic(
    name: Name,
    mac: Mac,
    link: Annotated[Link | None, typer.Option(help="Plug its cable in or out.")] = None,
    nwfilter: Filter = None,
    wait: Wait = True,
) -> None:
    """Cut the link of a network card or mend it, or give it another filter."""
    with reported():
        api = connect()
        body = {"link": link.value if link else None, "filter": nwfilter}
        if finish(api, api.patch(f"/vms/{ref(name)}/nics/{ref(mac)}", body), wait=wait) is not None:
            say(f"{name}: card {mac} changed")


@nic.command("detach")
def detach_nic(name: Name, mac: Mac, wait: Wait = True) -> None:
    """Detach a network card; its address is free again."""
    with reported():
        api = connect()
        if finish(api, api.delete(f"/vms/{ref(name)}/nics/{ref(mac)}"), wait=wait) is not None:
            say(f"{name}: card {mac} detached")
