"""The REST API as the CLI uses it, and what goes wrong on the way as sentences and exit codes."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import typer

from virtfleet import settings
from virtfleet.cli import contexts
from virtfleet.cli.output import printable, say

if TYPE_CHECKING:
    import httpx

FAILED, USAGE, NOT_FOUND, REFUSED, NO_ANSWER = 1, 2, 3, 4, 5
"""Exit codes: see docs/cli.md."""
PAGE = 1000
"""The longest page of a list that the API gives."""
CODES = {400: USAGE, 401: NO_ANSWER, 403: NO_ANSWER, 404: NOT_FOUND, 409: REFUSED, 412: REFUSED, 422: USAGE}
"""Exit codes by HTTP status; others are FAILED."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 180.0
SILENCE_SECONDS = 30.0
"""A stream gives a sign of life every 10 seconds."""
LISTEN_FILE = "listen"
"""Where `serve` writes the address that the API of this home listens on."""


class CliError(Exception):
    """Something that ends the command: a sentence for people, and the exit code; the HTTP status if there was one."""

    def __init__(
        self, message: str, code: int = FAILED, lines: tuple[str, ...] = (), status: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.lines = lines
        self.status = status


def local_url() -> str:
    """Return where the API of this machine's fleet listens."""
    try:
        listen = (settings.home() / LISTEN_FILE).read_text().strip()
    except OSError:
        listen = settings.load().listen
    host, _, port = listen.rpartition(":")
    return f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


def local_token() -> str:
    """Return the token of this machine's fleet; nothing when there is none, or for others than its owner."""
    try:
        return (settings.home() / "admin.token").read_text().strip()
    except OSError:
        return ""


def where() -> tuple[str, str]:
    """Return URL and token: the environment's, the chosen context's, or those of the fleet on this machine.

    A token goes only where it belongs: VIRTFLEET_URL alone is asked without one, unless it names a fleet that is known.
    Raises CliError.
    """
    try:
        context = contexts.chosen()
    except contexts.ContextError as error:
        raise CliError(str(error), USAGE) from error
    local = {"url": local_url(), "token": local_token()}
    url = (os.environ.get("VIRTFLEET_URL") or (context or local)["url"]).rstrip("/")
    token = os.environ.get("VIRTFLEET_TOKEN")
    if not token:
        token = next((each["token"] for each in (context, local) if each and each["url"].rstrip("/") == url), "")
    return url, token


def check_url(url: str) -> None:
    """Raise CliError for what is no http or https URL with a host."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable():
            return
    raise CliError(f"{url!r} is not the URL of an API. It looks like http://127.0.0.1:8080.", USAGE)


def check_token(token: str) -> None:
    """Raise CliError for what cannot be a token; the message does not show it."""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise CliError("The token has blanks, or letters that no token has. Copy it once more.", USAGE)


class Api:
    """A connection to one API."""

    def __init__(self, url: str, token: str) -> None:
        import httpx  # noqa: PLC0415 - takes longer to load than all else

        self._errors = httpx
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        check_url(url)
        check_token(token)
        # Without TLS there is nothing to verify, and reading all certificates takes longer than most answers.
        verify = url.lower().startswith("https:")
        try:
            # Proxies are for the outside: a fleet is inside.
            self._http = httpx.Client(
                base_url=f"{url}/api/v1", headers=headers, timeout=timeout, trust_env=False, verify=verify
            )
        except httpx.InvalidURL as error:
            raise CliError(f"The URL {url!r} cannot be used: {error}.", USAGE) from error

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

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """Have something be as it is said, all of it."""
        return self._ask("PUT", path, json={key: value for key, value in body.items() if value is not None})

    def delete(self, path: str) -> Any:
        """Remove something."""
        return self._ask("DELETE", path)

    def items(self, path: str, most: int | None = None, **params: Any) -> list[dict[str, Any]]:
        """Return a list, page after page: all of it, or the first so many."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            wanted = PAGE if most is None else min(PAGE, most - len(found))
            page = self.get(path, cursor=cursor, limit=wanted, **params)
            found += page["items"]
            cursor = page.get("next")
            if not cursor or (most is not None and len(found) >= most):
                return found

    def events(self, job_id: str, after: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield (kind, number, data) of a job's events as they come, until its end or until the stream breaks."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"/jobs/{job_id}/events"
        timeout = self._errors.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        with self._told(), self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
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
            try:
                response = self._http.request(method, path, **more)
            except UnicodeEncodeError:
                raise
            except ValueError as error:
                raise CliError("A number among these cannot be sent: it has no end, or is none.", USAGE) from error
        if not response.is_success:
            raise problem(response)
        try:
            return response.json() if response.content else None
        except ValueError as error:
            message = (
                f"What answers at {self.url} is not virtfleet's API. See VIRTFLEET_URL, and virtfleet context list."
            )
            raise CliError(message, NO_ANSWER) from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (self._errors.TransportError, self._errors.InvalidURL) as error:
            hint = "Start it (virtfleet serve), or say where it is: VIRTFLEET_URL, or virtfleet context add."
            reason = str(error).rstrip(".") or type(error).__name__
            raise CliError(f"Failed to reach the API at {self.url}: {reason}. {hint}", NO_ANSWER) from error


def problem(response: "httpx.Response") -> CliError:
    """Return what an answer that is no success says."""
    try:
        told = response.json()
        detail, hint = str(told["detail"]), str(told.get("hint", ""))
        lines = [f"  {each['field']}: {each['message']}" for each in told.get("errors") or []]
        lines += [f"  {each['host']}: {'; '.join(each['reasons'])}" for each in told.get("hosts") or []]
    except (ValueError, KeyError, TypeError):
        where_from = f"{response.request.url.scheme}://{response.request.url.netloc.decode(errors='replace')}"
        message = f"The server at {where_from} answered {response.status_code}, but not as this API does."
        return CliError(f"{message} Is it a virtfleet API?", FAILED)
    # Some details end with their hint.
    message = detail if detail.endswith(hint) else f"{detail} {hint}"
    return CliError(message, CODES.get(response.status_code, FAILED), tuple(lines), response.status_code)


def connect() -> Api:
    """Return the API that this command talks to."""
    return Api(*where())


def ref(text: str) -> str:
    """Return a name, id or number as a part of a path. Raises CliError for what nothing can be called."""
    # Clients and proxies take . and .. away from paths, quoted or not, and an empty part would name the list.
    if text in ("", ".", "..") or "/" in text:
        raise CliError(f"Nothing can be called {text!r}.", NOT_FOUND)
    return quote(text, safe="")


@contextmanager
def reported() -> Iterator[None]:
    """End the command with a sentence and its exit code when something goes wrong."""
    try:
        yield
    except CliError as error:
        tell(error)
        raise typer.Exit(error.code) from error
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(USAGE) from error
    except UnicodeEncodeError as error:
        # Bytes of a command line that are no text stay as they are, and cannot be sent.
        print("A word of this command line is not UTF-8 text. Type it again.", file=sys.stderr)
        raise typer.Exit(USAGE) from error


def tell(error: CliError) -> None:
    """Write what went wrong; what a terminal would obey is left out."""
    for line in (str(error), *error.lines):
        say("\n".join(printable(part) for part in line.splitlines()))


def read_text(path: Path, what: str) -> str:
    """Return the content of a file that the user named."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CliError(f"Failed to read {what} {str(path)!r}: {reason}.", USAGE) from error
