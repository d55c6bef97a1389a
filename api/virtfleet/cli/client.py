"""The REST API as the CLI uses it, and what goes wrong on the way as sentences and exit codes."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

from virtfleet import settings
from virtfleet.cli import contexts

if TYPE_CHECKING:
    import httpx

FAILED, USAGE, NOT_FOUND, REFUSED, NO_ANSWER = 1, 2, 3, 4, 5
"""Exit codes: see docs/cli.md."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 180.0
LISTEN_FILE = "listen"
"""Where `serve` writes the address that the API of this home listens on."""


class CliError(Exception):
    """Something that ends the command: a sentence for people, and the exit code."""

    def __init__(self, message: str, code: int = FAILED, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.lines = lines


def local_url() -> str:
    """Return where the API of this machine's fleet listens."""
    written = settings.home() / LISTEN_FILE
    listen = written.read_text().strip() if written.is_file() else settings.load().listen
    host, _, port = listen.rpartition(":")
    return f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


def where() -> tuple[str, str]:
    """Return URL and token: the environment's, the chosen context's, or those of the fleet on this machine."""
    context = contexts.chosen()
    url = os.environ.get("VIRTFLEET_URL") or (context or {}).get("url") or local_url()
    token = os.environ.get("VIRTFLEET_TOKEN") or (context or {}).get("token")
    if not token:
        file = settings.home() / "admin.token"
        try:
            token = file.read_text().strip()
        except OSError:
            token = ""
    return url.rstrip("/"), token


class Api:
    """A connection to one API."""

    def __init__(self, url: str, token: str) -> None:
        import httpx  # noqa: PLC0415 - takes longer to load than all else

        self._errors = httpx
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        # Proxies are for the outside: a fleet is inside.
        self._http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=timeout, trust_env=False)

    def get(self, path: str, **params: Any) -> Any:
        """Return what is at a path."""
        return self._ask("GET", path, params={key: value for key, value in params.items() if value is not None})

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for something to be done."""
        given = {key: value for key, value in (body or {}).items() if value is not None}
        return self._ask("POST", path, json=given)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """Change something."""
        return self._ask("PATCH", path, json={key: value for key, value in body.items() if value is not None})

    def delete(self, path: str) -> Any:
        """Remove something."""
        return self._ask("DELETE", path)

    def items(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Return a whole list, page after page."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, limit=1000, **params)
            found += page["items"]
            cursor = page.get("next")
            if not cursor:
                return found

    def events(self, job_id: str, after: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield (kind, number, data) of a job's events as they come, until its end or until the stream breaks."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"/jobs/{job_id}/events"
        with self._told(), self._http.stream("GET", path, headers=headers, timeout=60.0) as response:
            if response.status_code != 200:
                response.read()
                raise problem(response)
            kind, number, data = "", after, ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("data: "):
                    data = line[6:]
                elif not line and data:
                    yield kind, number, json.loads(data)
                    data = ""

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        with self._told():
            response = self._http.request(method, path, **more)
        if response.is_success:
            return response.json() if response.content else None
        raise problem(response)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors.TransportError as error:
            hint = "Start it (virtfleet serve), or say where it is: VIRTFLEET_URL, or virtfleet context add."
            raise CliError(f"Failed to reach the API at {self.url}: {error}. {hint}", NO_ANSWER) from error


def problem(response: "httpx.Response") -> CliError:
    """Return what an answer that is no success says."""
    try:
        told = response.json()
        detail, hint = str(told["detail"]), str(told.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        return CliError(f"The server answered {response.status_code}, which is not what this API says.", FAILED)
    lines = [f"  {each['field']}: {each['message']}" for each in told.get("errors") or []]
    lines += [f"  {each['host']}: {'; '.join(each['reasons'])}" for each in told.get("hosts") or []]
    codes = {401: NO_ANSWER, 403: NO_ANSWER, 404: NOT_FOUND, 409: REFUSED, 412: REFUSED}
    code = codes.get(response.status_code, USAGE if response.status_code in (400, 422) else FAILED)
    return CliError(f"{detail} {hint}".strip(), code, tuple(lines))


def connect() -> Api:
    """Return the API that this command talks to."""
    return Api(*where())


def ref(text: str) -> str:
    """Return a name, id or number as a part of a path."""
    return quote(text, safe="")


@contextmanager
def reported() -> Iterator[None]:
    """End the command with a sentence and its exit code when something goes wrong."""
    try:
        yield
    except CliError as error:
        for line in (str(error), *error.lines):
            print(line, file=sys.stderr)
        raise typer.Exit(error.code) from error
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(USAGE) from error


def read_text(path: Path, what: str) -> str:
    """Return the content of a file that the user named."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CliError(f"Failed to read {what} {str(path)!r}: {reason}.", USAGE) from error
