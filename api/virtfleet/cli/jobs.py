"""`virtfleet job`."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet.cli import complete
from virtfleet.cli.client import FAILED, USAGE, CliError, connect, ref, reported
from virtfleet.cli.output import Format, Output, plain, printable, say, show_list, show_one
from virtfleet.cli.progress import ENDED, finish, page_of_events
from virtfleet.cli.progress import events as all_events

app = typer.Typer(no_args_is_help=True, help="Jobs: one playbook run each.")

Job = Annotated[str, typer.Argument(help="Id or number.", autocompletion=complete.jobs)]
DIR = "{dir}"
COLUMNS = [
    *plain("number", "id", "kind", "state"),
    ("ABOUT", lambda item: ", ".join(subject["name"] for subject in item["subjects"])),
    ("HOSTS", lambda item: ", ".join(item["hosts"])),
    *plain("created_at", "ended_at"),
    ("ERROR", lambda item: (item["error"] or {}).get("message")),
]


@app.command("list")
def list_jobs(
    output: Format = Output.table,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, cancelled, or open.")] = None,
    kind: Annotated[str | None, typer.Option(help="Such as vm.create.")] = None,
    vm: Annotated[str | None, typer.Option(help="Only jobs about this machine.", autocompletion=complete.vms)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """List jobs, the newest first."""
    with reported():
        found = connect().items("/jobs", limit + 1, state=state, kind=kind, vm=vm)
        show_list(found[:limit], COLUMNS, output, "jobs")
        if len(found) > limit:
            say(f"These are the newest {limit}; --limit shows more.")


@app.command()
def show(job: Job, output: Format = Output.table) -> None:
    """Show a job."""
    with reported():
        lines = [
            *COLUMNS,
            *plain("attempt", "owner", "started_at"),
            ("TASK", lambda item: item["progress"].get("task")),
        ]
        show_one(connect().get(f"/jobs/{ref(job)}"), lines, output)


@app.command()
def events(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    output: Format = Output.table,
) -> None:
    """Show what happened in a job."""
    with reported():
        api = connect()
        if follow:
            if output not in (Output.table, Output.json):
                raise CliError("With --follow, choose table or json (an event per line).", USAGE)
            for kind, data in all_events(api, ref(job)):
                if kind != "end":
                    print(_line(data) if output is Output.table else json.dumps(data), flush=True)
            return
        found = page_of_events(api, ref(job))
        if output is Output.table:
            for event in found:
                print(_line(event))
            return
        show_list(found, [], output, "events")


def _line(event: dict[str, Any]) -> str:
    text = event["text"] or event["task"] or ""
    return printable(f"{event['time']}  {event['kind']:<12} {event['host'] or '-':<12} {text}")


@app.command()
def wait(job: Job) -> None:
    """Wait for the end of a job."""
    with reported():
        api = connect()
        finish(api, {"job": api.get(f"/jobs/{ref(job)}")}, wait=True)


@app.command()
def cancel(job: Job) -> None:
    """Cancel a job; what it had made of new machines is removed."""
    with reported():
        answer = connect().post(f"/jobs/{ref(job)}/cancel")
        ended = answer["job"]["state"] in ENDED
        say("It is cancelled." if ended else f"It is being ended. See: virtfleet job show {answer['job']['id']}")


@app.command()
def replay(
    job: Job,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where to put the files; a new folder if left out.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Run it, instead of printing the command.")] = False,
    output: Format = Output.table,
) -> None:
    """Write down the inventory and variables of a job's run, and print the command that does it again."""
    with reported():
        recipe = connect().get(f"/jobs/{ref(job)}/replay")
        if output in (Output.json, Output.yaml):
            show_one(recipe, [], output)
            return
        if not recipe["secrets"] and "secrets/" in "".join(recipe["files"].values()):
            say("The token does not allow secrets:read, so the secrets of this run are left out: it may not work.")
        where = _folder(folder)
        for name, text in {**recipe["files"], **recipe["secrets"]}.items():
            _write(where, name, text.replace(DIR, str(where)))
        environment = {name: value.replace(DIR, str(where)) for name, value in recipe["environment"].items()}
        argv = [word.replace(DIR, str(where)) for word in recipe["argv"]]
        if run:
            sys.stdout.flush()
            ended = subprocess.run(argv, env={**os.environ, **environment}, check=False)
            raise typer.Exit(FAILED if ended.returncode else 0)
        print(shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *argv]))


def _folder(chosen: Path | None) -> Path:
    if chosen is None:
        return Path(tempfile.mkdtemp(prefix="virtfleet-replay-"))
    try:
        chosen.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise CliError(
            f"Failed to make the folder {str(chosen)!r}: {error.strerror}. Choose a new one.", USAGE
        ) from error
    return chosen.absolute()


def _write(folder: Path, name: str, text: str) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CliError(f"The server wants to write outside of the folder: {name!r}.", FAILED)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
