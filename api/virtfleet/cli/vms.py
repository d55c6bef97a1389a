"""`virtfleet vm` and `virtfleet placement`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import NO_ANSWER, NOT_FOUND, REFUSED, Api, CliError, connect, read_text, ref, reported
from virtfleet.cli.output import Format, Output, field, plain, say, show_list, show_one
from virtfleet.cli.progress import finish, finish_all

app = typer.Typer(no_args_is_help=True, help="Machines.")
placement = typer.Typer(no_args_is_help=True, help="Where machines would go, and why.")


class WaitFor(StrEnum):
    """What a command waits for once a machine runs."""

    none = "none"
    running = "running"
    address = "address"
    agent = "agent"


Name = Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.vms)]
Names = Annotated[list[str], typer.Argument(help="Names, ids or numbers.", autocompletion=complete.vms)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the job's end, or print its id.")]
Flavor = Annotated[
    str | None, typer.Option(help="A size by name: virtfleet flavor list.", autocompletion=complete.flavors)
]
Vcpus = Annotated[int | None, typer.Option(help="vCPUs, instead of the flavor's.")]
Memory = Annotated[str | None, typer.Option(help="Memory with its unit, such as 512MiB.")]
Disk = Annotated[str | None, typer.Option(help="Size of the disk with its unit, such as 10GiB.")]
MaxVcpus = Annotated[int | None, typer.Option(help="vCPUs it can have without a reboot.")]
MaxMemory = Annotated[str | None, typer.Option(help="Memory it can have without a reboot.")]
Image = Annotated[
    str | None, typer.Option(help="What it boots; the first image if left out.", autocompletion=complete.images)
]
Count = Annotated[int, typer.Option(help="How many: NAME-1, NAME-2, …")]
Zone = Annotated[str | None, typer.Option(help="The zone to place it in.", autocompletion=complete.zones)]
Host = Annotated[str | None, typer.Option(help="The only host that will do.", autocompletion=complete.hosts)]
Network = Annotated[str | None, typer.Option(help="A network of the zone, or none.", autocompletion=complete.networks)]
Pool = Annotated[str | None, typer.Option(help="The storage pool of its disk.")]
Policy = Annotated[str | None, typer.Option(help="The placement policy, such as bin_packing or round_robin.")]

COLUMNS = plain("id", "name", "state", "host", "address", "vcpus", "memory", "disk", "image")
LINES = [
    *plain("id", "number", "name", "state", "host", "zone", "address", "mac", "vcpus", "memory", "disk", "pool"),
    *plain("max_vcpus", "max_memory", "autostart"),
    ("IO", lambda item: ", ".join(f"{name} {limit}" for name, limit in item["io"].items()) or None),
    *plain("flavor", "image", "policy", "owner", "project", "created_at", "observed_at", "job"),
    ("PLACED", lambda item: item["explanation"].get("text")),
    ("ERROR", lambda item: (item["error"] or {}).get("message")),
]


@app.command("list")
def list_vms(
    output: Format = Output.table,
    state: Annotated[str | None, typer.Option(help="Only machines in this state.")] = None,
    host: Host = None,
    zone: Zone = None,
) -> None:
    """List machines."""
    with reported():
        found = connect().items("/vms", state=state, host=host, zone=zone)
        show_list(found, COLUMNS, output, "vms")


@app.command()
def show(name: Name, output: Format = Output.table) -> None:
    """Show a machine."""
    with reported():
        show_one(connect().get(f"/vms/{ref(name)}"), LINES, output)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name; all else has defaults.")],
    flavor: Flavor = None,
    vcpus: Vcpus = None,
    memory: Memory = None,
    max_vcpus: MaxVcpus = None,
    max_memory: MaxMemory = None,
    disk: Disk = None,
    image: Image = None,
    count: Count = 1,
    all_or_nothing: Annotated[bool, typer.Option("--all-or-nothing", help="If one fails, make none.")] = False,
    zone: Zone = None,
    host: Host = None,
    pool: Pool = None,
    network: Network = None,
    address: Annotated[str | None, typer.Option(help="Its address; a free one if left out.")] = None,
    nwfilter: Annotated[str | None, typer.Option("--filter", help="The network filter that guards its card.")] = None,
    policy: Policy = None,
    ssh_key: Annotated[list[Path] | None, typer.Option(help="A public key file; may be given again.")] = None,
    user_data: Annotated[Path | None, typer.Option(help="A file with cloud-init user data.")] = None,
    wait_for: Annotated[WaitFor | None, typer.Option(help="What to wait for once it runs.")] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it.")] = True,
    paused: Annotated[bool, typer.Option("--paused", help="Start it paused.")] = False,
    wait: Wait = True,
    output: Format = Output.table,
) -> None:
    """Create a machine, or several."""
    with reported():
        api = connect()
        body = _wish(flavor, vcpus, memory, disk, image, count, zone, host, pool, policy) | {
            "name": name,
            "max_vcpus": max_vcpus,
            "max_memory": max_memory,
            "all_or_nothing": all_or_nothing,
            "network": network,
            "address": address,
            "filter": nwfilter,
            "ssh_keys": [_key(path) for path in ssh_key or []],
            "user_data": read_text(user_data, "the user data") if user_data else None,
            "wait_for": wait_for.value if wait_for else None,
            "start": start,
            "paused": paused,
        }
        answer = api.post("/vms", body)
        try:
            if finish(api, answer, wait=wait) is None:
                return
        except CliError as error:
            # Without --all-or-nothing some may be there although the job failed.
            if error.code != NO_ANSWER and (some := _made(api, answer["vms"])):
                show_list(some, COLUMNS, output, "vms")
            raise
        show_list(_made(api, answer["vms"]), COLUMNS, output, "vms")


def _made(api: Api, vms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for vm in vms:
        try:
            found.append(api.get(f"/vms/{vm['id']}"))
        except CliError as error:
            if error.code != NOT_FOUND:
                raise
    return found


def _key(path: Path) -> str:
    return read_text(path, "the SSH key").strip()


def _wish(
    flavor: str | None,
    vcpus: int | None,
    memory: str | None,
    disk: str | None,
    image: str | None,
    count: int,
    zone: str | None,
    host: str | None,
    pool: str | None,
    policy: str | None,
) -> dict[str, Any]:
    wish = {"flavor": flavor, "vcpus": vcpus, "memory": memory, "disk": disk, "image": image, "count": count}
    return wish | {"zone": zone, "host": host, "pool": pool, "policy": policy}


def _act(names: list[str], action: str, *, wait: bool, **more: Any) -> None:
    with reported():
        api = connect()

        def ask(name: str) -> dict[str, Any]:
            return dict(api.post(f"/vms/{ref(name)}/actions", {"action": action, **more}))

        finish_all(api, names, ask, f"{action} done", wait=wait)


Force = Annotated[bool, typer.Option("--force", help="Cut the power if it does not obey in time.")]
Grace = Annotated[float | None, typer.Option(help="Seconds it may take to obey.")]


@app.command()
def start(names: Names, wait: Wait = True) -> None:
    """Start machines; paused ones go on."""
    _act(names, "start", wait=wait)


@app.command()
def stop(names: Names, force: Force = False, grace: Grace = None, wait: Wait = True) -> None:
    """Shut machines down cleanly."""
    _act(names, "stop", wait=wait, force=force, grace=grace)


@app.command()
def reboot(names: Names, force: Force = False, grace: Grace = None, wait: Wait = True) -> None:
    """Reboot machines."""
    _act(names, "reboot", wait=wait, force=force, grace=grace)


@app.command()
def reset(names: Names, wait: Wait = True) -> None:
    """Press the reset button of machines, which lose what they had not written."""
    _act(names, "reset", wait=wait)


@app.command()
def pause(names: Names, wait: Wait = True) -> None:
    """Halt machines where they are."""
    _act(names, "pause", wait=wait)


@app.command()
def resume(names: Names, wait: Wait = True) -> None:
    """Let paused machines go on."""
    _act(names, "resume", wait=wait)


@app.command()
def save(names: Names, wait: Wait = True) -> None:
    """Save the memory of machines and stop them; the next start lets them go on where they were."""
    _act(names, "save", wait=wait)


@app.command()
def delete(names: Names, wait: Wait = True) -> None:
    """Delete machines with the disks that were made for them."""
    with reported():
        api = connect()

        def ask(name: str) -> dict[str, Any]:
            answer: dict[str, Any] = api.delete(f"/vms/{ref(name)}")
            if answer["job"]["kind"] == "vm.create":
                # It was cancelled before anything was made, which is all that was wanted.
                answer["job"]["state"] = "succeeded"
            return answer

        finish_all(api, names, ask, "deleted", wait=wait)


@placement.command("explain")
def explain(
    name: Annotated[str, typer.Argument(help="What to call it.")] = "vm",
    flavor: Flavor = None,
    vcpus: Vcpus = None,
    memory: Memory = None,
    disk: Disk = None,
    image: Image = None,
    count: Count = 1,
    zone: Zone = None,
    host: Host = None,
    pool: Pool = None,
    policy: Policy = None,
    output: Format = Output.table,
) -> None:
    """Show where machines would go and why; nothing is reserved."""
    with reported():
        body = _wish(flavor, vcpus, memory, disk, image, count, zone, host, pool, policy)
        decision = connect().post("/placements", body | {"name": name})
        if output is Output.table:
            _show_verdicts(decision)
        elif output is Output.name:
            for each in decision["placements"]:
                print(each["host"])
        else:
            show_one(decision, [], output)
        if not decision["fits"]:
            raise typer.Exit(REFUSED)


def _show_verdicts(decision: dict[str, Any]) -> None:
    """Write a table for each machine: every host, with its score and what it is made of, or the reasons against it."""
    columns = [("HOST", field("host")), *plain("verdict", "score", "why")]
    for each in [*decision["placements"], *decision["unplaced"]]:
        why = each["explanation"]
        say(why["text"])
        rows = [
            {"host": one["host"], "verdict": "chosen" if one["host"] == why["chosen"] else "fits"}
            | {"score": f"{one['score']:.3f}", "why": ", ".join(f"{k} {v:.3f}" for k, v in one["terms"].items())}
            for one in why["ranked"]
        ] + [
            {"host": one["host"], "verdict": "refused", "score": "-"}
            | {"why": "; ".join(reason["text"] for reason in one["reasons"])}
            for one in why["rejected"]
        ]
        show_list(rows, columns, Output.table, "hosts")
