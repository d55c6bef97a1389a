"""Waiting for a job, with a line that tells how far it is."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer

from virtfleet.cli.client import FAILED, NO_ANSWER, Api, CliError, tell
from virtfleet.cli.output import printable, say

ENDED = ("succeeded", "failed", "cancelled")
INTERRUPTED = 130
UNAVAILABLE = 503
TRIES = 60
PAUSE_SECONDS = 0.5
"""How often, and after what pause, a server that went away is tried before we give up."""
TOLD = ("message", "retried", "failed", "unreachable")
"""Events that are worth a line of their own; the others only move the line of progress."""


class Line:
    """One line that is written over and over on a terminal; elsewhere every new text is a line."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ""

    def show(self, text: str) -> None:
        """Show how far it is."""
        text = printable(text)
        if text == self._last:
            return
        self._last = text
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        else:
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._last:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._last = ""


def events(api: Api, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind, data) of a job's events as they come; the last one is `end`, with the job.

    A stream that breaks is taken up again where it was. When the server has no stream to spare, it is asked now and
    then instead. Raises CliError when the server is away for too long.
    """
    after, tries = 0, 0
    while True:
        try:
            for kind, number, data in api.events(job_id, after):
                after, tries = number, 0
                yield kind, data
                if kind == "end":
                    return
        except CliError as error:
            if error.status == UNAVAILABLE:
                job = api.get(f"/jobs/{job_id}")  # before its events, so that none of them is missed
                for data in page_of_events(api, job_id, after):
                    after = data["seq"]
                    if data["kind"] != "end":
                        yield data["kind"], data
                if job["state"] in ENDED:
                    yield "end", job
                    return
            elif error.code != NO_ANSWER or error.status is not None or tries >= TRIES:
                raise
        tries += 1
        time.sleep(PAUSE_SECONDS)


def page_of_events(api: Api, job_id: str, after: int = 0) -> list[dict[str, Any]]:
    """Return the events of a job so far, those after a number."""
    found: list[dict[str, Any]] = []
    while page := api.get(f"/jobs/{job_id}/events", after=after)["items"]:
        found += page
        after = page[-1]["seq"]
    return found


def follow(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a job and return it. Ctrl-C leaves the job running."""
    began, line = time.monotonic(), Line()
    try:
        for kind, data in events(api, job["id"]):
            if kind == "end":
                line.end()
                return data
            if kind in TOLD:
                line.end()
                say(f"  {data['host'] or job['kind']}: {printable(data['text'])}")
            elif kind in ("task", "progress"):
                subject = " ".join([job["kind"], *([", ".join(job["vms"])] if job["vms"] else [])])
                line.show(f"{subject}: {data['text']} ({time.monotonic() - began:.0f} s)")
    except KeyboardInterrupt:
        line.end()
        say(f"The job goes on. Follow it: virtfleet job events --follow {job['id']}")
        raise typer.Exit(INTERRUPTED) from None
    except CliError:
        line.end()
        say(f"The job {job['id']} may go on. See: virtfleet job show {job['id']}")
        raise
    raise AssertionError("a job's events end with its end")


def finish(api: Api, answer: dict[str, Any], *, wait: bool) -> dict[str, Any] | None:
    """Wait for the job of an answer and return it, or print its id and return None. Raises CliError when it failed.

    A job without an id stands for what was done without one.
    """
    job = answer["job"]
    if not wait and job["id"]:
        print(job["id"])
        return None
    ended = job if job["state"] in ENDED else follow(api, job)
    if ended["state"] != "succeeded":
        error = ended.get("error") or {}
        text = f"The job {ended['id']} {'was' if ended['state'] == 'cancelled' else 'has'} {ended['state']}"
        reason, hint = error.get("message") or "", error.get("hint") or ""
        reason = reason if hint in reason else f"{reason} {hint}".lstrip()  # a module's message ends with its hint
        raise CliError(f"{text}: {reason}" if reason else f"{text}.", FAILED)
    return ended


def finish_all(api: Api, names: Sequence[str], ask: Callable[[str], dict[str, Any]], done: str, *, wait: bool) -> None:
    """Ask for something for each name, then wait for all; one that fails does not keep the others from it.

    Says `NAME: done` for each. Raises the last CliError when there was one; those before it are told.
    """
    problems: list[CliError] = []
    answers: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        try:
            answers.append((name, ask(name)))
        except CliError as error:
            problems.append(error)
            if error.code == NO_ANSWER:
                break
    for name, answer in answers:
        try:
            if finish(api, answer, wait=wait) is not None:
                say(f"{name}: {done}")
        except CliError as error:
            problems.append(error)
    for each in problems[:-1]:
        tell(each)
    if problems:
        raise problems[-1]
