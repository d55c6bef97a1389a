"""`virtfleet vm exec`, `guest`, `freeze`, `thaw`, `put`, `authorize` and `password`: what is inside machines."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli.client import connect, read_text, ref, reported
from virtfleet.cli.output import Format, Output, printable, say, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import Name, Wait

app = typer.Typer()

KILLED = 128
"""Added to the number of a signal, as shells do."""


@app.command("exec")
def run(
    name: Name,
    argv: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The program and its arguments.")],
    stdin: Annotated[
        Path | None, typer.Option(help="A file that it reads from its input; - for our own.", allow_dash=True)
    ] = None,
    creates: Annotated[str | None, typer.Option(help="A file in the machine: if it is there, nothing is run.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that it may take.")] = 60.0,
    wait: Wait = True,
) -> None:
    """Run a program inside a machine; ends with its exit code."""
    with reported():
        api = connect()
        body: dict[str, Any] = {"argv": argv, "creates": creates, "timeout": timeout}
        if stdin is not None:
            body["stdin"] = sys.stdin.read() if str(stdin) == "-" else read_text(stdin, "the program's input")
        job = finish(api, api.post(f"/vms/{ref(name)}/exec", body), wait=wait)
        if job is None:
            return
        ran = _only(job)
    if ran.get("skipped"):
        say(f"{printable(str(creates))} is there: nothing was run.")
        return
    sys.stdout.write(ran["stdout"])
    sys.stderr.write(ran["stderr"])
    for stream in ("stdout", "stderr"):
        if ran[f"{stream}_truncated"]:
            say(f"The rest of its {stream} was cut off.")
    raise typer.Exit(ran["rc"] if ran["rc"] is not None else KILLED + (ran["signal"] or 0))


@app.command("guest")
def guest(name: Name, wait: Wait = True, output: Format = Output.table) -> None:
    """Show what the guest agent of a machine tells."""
    with reported():
        api = connect()
        job = finish(api, api.post(f"/vms/{ref(name)}/guest-info", {}), wait=wait)
        if job is None:
            return
        told = _only(job)
        if told["guest"] is None:
            say(f"The agent of {name} does not answer: {printable(told['reason'] or 'nobody knows why')}")
            raise typer.Exit(1)
        show_one(told["guest"], LINES, output)


def _change(name: str, done: str, wait: bool, body: dict[str, Any]) -> None:
    with reported():
        api = connect()
        if finish(api, api.post(f"/vms/{ref(name)}/guest", body), wait=wait) is not None:
            say(f"{name}: {done}")


User = Annotated[str, typer.Option(help="The user inside it.")]


@app.command()
def freeze(name: Name, wait: Wait = True) -> None:
    """Hold all writing to a machine's disks, until it is thawed."""
    _change(name, "frozen", wait, {"frozen": True})


@app.command()
def thaw(name: Name, wait: Wait = True) -> None:
    """Let a machine write again."""
    _change(name, "thawed", wait, {"frozen": False})


@app.command()
def put(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A file of text here.")],
    path: Annotated[str, typer.Argument(help="Its path inside the machine.")],
    wait: Wait = True,
) -> None:
    """Write a file inside a machine."""
    with reported():
        content = read_text(file, "the file")
    _change(name, f"{path} written", wait, {"file": {"path": path, "content": content}})


@app.command()
def authorize(
    name: Name,
    key: Annotated[list[Path], typer.Argument(help="Public key files.")],
    user: User = "root",
    only: Annotated[bool, typer.Option("--only", help="Let no other key in.")] = False,
    wait: Wait = True,
) -> None:
    """Let SSH keys into a machine that runs."""
    with reported():
        keys = [read_text(path, "the SSH key").strip() for path in key]
    _change(name, "keys set", wait, {"user": user, "ssh_keys": keys, "only_ssh_keys": only})


@app.command()
def password(name: Name, user: User = "root", wait: Wait = True) -> None:
    """Set a password inside a machine; it is asked for, or read from the input."""
    given = typer.prompt("Password", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    _change(name, "password set", wait, {"user": user, "password": given})


def _only(job: dict[str, Any]) -> dict[str, Any]:
    """Return what a job says of its one machine."""
    (machine,) = [each for result in job["result"].values() for each in result.get("vms") or []]
    return dict(machine)


def _system(guest: dict[str, Any]) -> str | None:
    os = guest["os"] or {}
    return os.get("pretty-name") or os.get("pretty_name") or os.get("name")


def _addresses(guest: dict[str, Any]) -> str:
    cards = guest["interfaces"] or []
    return ", ".join(f"{card['name']} {' '.join(card['addresses'])}" for card in cards if card["addresses"])


def _filesystems(guest: dict[str, Any]) -> str:
    found = guest["filesystems"] or []
    return ", ".join(f"{each['mountpoint']} ({each['type']})" for each in found)


LINES = [
    ("HOSTNAME", lambda guest: guest["hostname"]),
    ("SYSTEM", _system),
    ("KERNEL", lambda guest: (guest["os"] or {}).get("kernel_release")),
    ("AGENT", lambda guest: guest["agent"]["version"]),
    ("ADDRESSES", _addresses),
    ("FILE SYSTEMS", _filesystems),
    ("USERS", lambda guest: ", ".join(str(user["name"]) for user in guest["users"] or [])),
    ("FROZEN", lambda guest: guest["frozen"]),
]
