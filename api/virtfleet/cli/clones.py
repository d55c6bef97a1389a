"""`virtfleet vm clone`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import connect, read_text, ref, reported
from virtfleet.cli.output import Format, Output, say, show_one
from virtfleet.cli.progress import finish
from virtfleet.cli.vms import LINES, Wait, WaitFor


class Mode(StrEnum):
    """What becomes of the disks."""

    full = "full"
    linked = "linked"
    fresh = "fresh"


def clone(
    source: Annotated[str, typer.Argument(help="Name, id or number.", autocompletion=complete.vms)],
    name: Annotated[str, typer.Argument(help="The name of the new machine.")],
    mode: Annotated[
        Mode, typer.Option(help="Independent copies, copies over the same image, or new disks.")
    ] = Mode.full,
    snapshot: Annotated[str | None, typer.Option(help="A snapshot that the disks are to be as.")] = None,
    delete_source: Annotated[
        bool, typer.Option("--delete-source", help="Delete SOURCE once the new one is there.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Its address; a free one if left out.")] = None,
    ssh_key: Annotated[
        list[Path] | None, typer.Option(help="A public key file; may be given again. SOURCE's keys if left out.")
    ] = None,
    user_data: Annotated[Path | None, typer.Option(help="A file with cloud-init user data.")] = None,
    wait_for: Annotated[WaitFor | None, typer.Option(help="What to wait for once it runs.")] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it.")] = True,
    wait: Wait = True,
    output: Format = Output.table,
) -> None:
    """Make a machine like another one, which stays as it is."""
    with reported():
        api = connect()
        body = {
            "name": name,
            "mode": mode.value,
            "snapshot": snapshot,
            "delete_source": delete_source,
            "address": address,
            "ssh_keys": [read_text(path, "the SSH key").strip() for path in ssh_key] if ssh_key else None,
            "user_data": read_text(user_data, "the user data") if user_data else None,
            "wait_for": wait_for.value if wait_for else None,
            "start": start,
        }
        answer = api.post(f"/vms/{ref(source)}/clone", body)
        say(answer["vms"][0]["explanation"]["text"])
        if finish(api, answer, wait=wait) is not None:
            show_one(api.get(f"/vms/{answer['vms'][0]['id']}"), LINES, output)
