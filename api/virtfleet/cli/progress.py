"""Waiting for a job, with a line that tells how far it is."""

import sys
import time
from typing import Any

import typer

from virtfleet.cli.client import FAILED, NO_ANSWER, Api, CliError
from virtfleet.cli.output import say

ENDED = ("succeeded", "failed", "cancelled")
TRIES = 30
TOLD = ("message", "retried", "failed", "unreachable")
"""Events that are worth a line of their own; the others only move the line of progress."""


class Line:
    """One line that is written over and over on a terminal; elsewhere every new text is a line."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ""

    def show(self, text: str) -> None:
        """Show how far it is."""
        text = "".join(c if c.isprintable() else "?" for c in text)
        if text == self._last:
            return
        self._last = text
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text[:160]}")
            sys.stderr.flush()
        else:
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._last:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._last = ""


def follow(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a job and return it. Ctrl-C leaves the job running."""
    began, line, after, tries = time.monotonic(), Line(), 0, 0
    try:
        while True:
            try:
                for kind, number, data in api.events(job["id"], after):
                    after, tries = number, 0
                    if kind == "end":
                        line.end()
                        return data
                    seconds = time.monotonic() - began
                    if kind in TOLD:
                        line.end()
                        say(f"  {data['host'] or job['kind']}: {data['text']}")
                    elif kind == "task":
                        line.show(f"{job['kind']} {', '.join(job['vms']) or ''}  {data['text']} ({seconds:.0f} s)")
            except CliError as error:
                if error.code != NO_ANSWER or tries >= TRIES:
                    raise
            tries += 1
            time.sleep(0.5)
    except KeyboardInterrupt:
        line.end()
        say(f"The job goes on. Follow it: virtfleet job events --follow {job['id']}")
        raise typer.Exit(130) from None


def finish(api: Api, answer: dict[str, Any], *, wait: bool) -> dict[str, Any] | None:
    """Wait for the job of an answer and return it, or print its id and return None. Raises CliError when it failed."""
    job = answer["job"]
    if not wait:
        print(job["id"])
        return None
    ended = job if job["state"] in ENDED else follow(api, job)
    if ended["state"] != "succeeded":
        error = ended.get("error") or {}
        text = f"The job {ended['id']} {'was' if ended['state'] == 'cancelled' else 'has'} {ended['state']}"
        message = f"{text}: {error.get('message', '')} {error.get('hint', '')}".strip()
        raise CliError(message, FAILED)
    return ended
