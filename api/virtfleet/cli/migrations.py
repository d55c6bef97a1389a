"""`virtfleet vm migrate`, `vm preflight` and `host evacuate`."""

from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import REFUSED, connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, say, show_list, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Wait

HostName = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.hosts)]
VmName = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.vms)]
Live = Annotated[bool, typer.Option("--live/--no-live", help="Let it run while it moves, or pause it meanwhile.")]
Copy = Annotated[bool, typer.Option("--copy-storage/--no-copy-storage", help="Copy disks that are not shared.")]
Bandwidth = Annotated[str | None, typer.Option(help="How much may be sent in a second, such as 100MiB.")]
Downtime = Annotated[float | None, typer.Option(help="Seconds it may stand still at the end.")]
Converge = Annotated[bool, typer.Option("--auto-converge", help="Slow it down if it writes its memory too fast.")]
PostCopy = Annotated[bool, typer.Option("--post-copy", help="Let it go on there before all its memory has come.")]
Timeout = Annotated[float, typer.Option(help="Seconds for each machine; one that is not there by then stays.")]


def migrate(
    name: VmName,
    to: Annotated[
        str | None, typer.Option(help="The host to go to; placement chooses.", autocompletion=complete.hosts)
    ] = None,
    came_from: Annotated[
        str | None, typer.Option("--from", help="The host that it must be on now.", autocompletion=complete.hosts)
    ] = None,
    live: Live = True,
    copy_storage: Copy = True,
    bandwidth: Bandwidth = None,
    max_downtime: Downtime = None,
    auto_converge: Converge = False,
    post_copy: PostCopy = False,
    timeout: Timeout = 600.0,
    wait: Wait = True,
    output: Format = Output.table,
) -> None:
    """Move a machine to another host while it runs; it keeps its address."""
    with reported():
        api = connect()
        body = _way(live, copy_storage, bandwidth, max_downtime, auto_converge, post_copy, timeout)
        answer = api.post(f"/vms/{ref(name)}/migrate", body | {"host": to, "from": came_from})
        say(answer["explanation"]["text"])
        ended = finish(api, answer, wait=wait)
        if ended is None:
            return
        took = [item["migration"] or {} for item in _items(ended)]
        if output in (Output.json, Output.yaml):
            show_one(
                {"vm": answer["vm"], "from": answer["from"], "host": answer["host"], **(took or [{}])[0]}, [], output
            )
            return
        say(f"{answer['vm']}: {answer['from']} → {answer['host']}{_told(took)}")


def preflight(name: VmName, copy_storage: Copy = True, output: Format = Output.table) -> None:
    """Show which hosts could take a machine, and why not; nothing is changed."""
    with reported():
        api = connect()
        ended = finish(api, api.post(f"/vms/{ref(name)}/preflight", {"copy_storage": copy_storage}), wait=True)
        verdicts = [verdict for item in _items(ended or {}) for verdict in item["verdicts"]]
        columns = [
            *plain("host"),
            ("VERDICT", lambda item: "yes" if item["ok"] else "no"),
            ("WHY", lambda item: "; ".join([reason["text"] for reason in item["reasons"]] + item["warnings"])),
            ("DISKS", lambda item: ", ".join(f"{disk['target']} {disk['how']}" for disk in item["disks"])),
            ("UNKNOWN", lambda item: ", ".join(key for key, word in item["checks"].items() if word == "unknown")),
        ]
        show_list(verdicts, columns, output, "other hosts")


def evacuate(
    name: HostName,
    policy: Annotated[str | None, typer.Option(help="The placement policy for the targets.")] = None,
    live: Live = True,
    copy_storage: Copy = True,
    bandwidth: Bandwidth = None,
    max_downtime: Downtime = None,
    auto_converge: Converge = False,
    post_copy: PostCopy = False,
    timeout: Timeout = 600.0,
    wait: Wait = True,
) -> None:
    """Move all machines of a host elsewhere and let none come; back: host set NAME --no-maintenance."""
    with reported():
        api = connect()
        body = _way(live, copy_storage, bandwidth, max_downtime, auto_converge, post_copy, timeout)
        answer = api.post(f"/hosts/{ref(name)}/evacuate", body | {"policy": policy})
        say(answer["summary"])
        for each in answer["left"]:
            say(f"  stays: {each['text']}")
        if answer["job"] is None:
            if answer["left"]:
                raise typer.Exit(REFUSED)
            return
        if (ended := finish(api, answer, wait=wait)) is not None:
            for item in _items(ended):
                move = item["item"]
                say(f"{move['vm']}: {move['from']} → {move['to']}{_told([item['migration'] or {}])}")


def _way(
    live: bool,
    copy_storage: bool,
    bandwidth: str | None,
    max_downtime: float | None,
    auto_converge: bool,
    post_copy: bool,
    timeout: float,
) -> dict[str, Any]:
    way = {"live": live, "copy_storage": copy_storage, "bandwidth": bandwidth, "max_downtime": max_downtime}
    return way | {"auto_converge": auto_converge, "post_copy": post_copy, "timeout": timeout}


def _items(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for result in (job.get("result") or {}).values() for item in result.get("vms") or []]


def _told(took: list[dict[str, Any]]) -> str:
    """Return how long it took, how long the machine stood still and what was sent."""
    if not took or not took[0]:
        return ""
    one = took[0]
    still = f", {one['downtime']:.2f} s still" if one.get("downtime") is not None else ""
    return f" in {one['duration']:.1f} s{still}, {one['bytes'] / 2**20:.0f} MiB"
