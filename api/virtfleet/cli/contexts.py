"""Contexts: URL and token of fleets, by name, in a file that only its owner reads."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

NAME = "VIRTFLEET_CONTEXT"


def file() -> Path:
    """Return where the contexts are kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "virtfleet" / "contexts.json"


class ContextError(Exception):
    """The contexts, or the one that was asked for, cannot be used; the message says why."""


def load() -> dict[str, Any]:
    """Return `{current, contexts: {name: {url, token}}}`. Raises ContextError for a file that does not hold this."""
    try:
        kept = json.loads(file().read_text())
        named = kept["contexts"]
        if not all(isinstance(each["url"], str) and isinstance(each["token"], str) for each in named.values()):
            raise TypeError
        return {"current": kept["current"], "contexts": named}
    except FileNotFoundError:
        return {"current": None, "contexts": {}}
    except OSError as error:
        raise ContextError(f"Failed to read the contexts in {file()}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContextError(
            f"{file()} does not hold contexts as virtfleet writes them. Mend it, or remove it."
        ) from error


def save(kept: dict[str, Any]) -> None:
    """Write the contexts, whole or not at all, with mode 0600."""
    where = file()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=where.parent)
    with os.fdopen(descriptor, "w") as opened:
        json.dump(kept, opened, indent=2)
    Path(draft).replace(where)


def chosen() -> dict[str, str] | None:
    """Return the context in use, if any. Raises ContextError when it is not there: no other fleet is taken for it."""
    kept = load()
    name = os.environ.get(NAME) or kept["current"]
    if not name:
        return None
    if name not in kept["contexts"]:
        raise ContextError(f"There is no context {name!r}. See: virtfleet context list.")
    found: dict[str, str] = kept["contexts"][name]
    return found
