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


def load() -> dict[str, Any]:
    """Return `{current, contexts: {name: {url, token}}}`."""
    try:
        kept = json.loads(file().read_text())
    except (OSError, ValueError):
        kept = {}
    if not isinstance(kept, dict) or not isinstance(kept.get("contexts"), dict):
        kept = {}
    return {"current": kept.get("current"), "contexts": kept.get("contexts", {})}


def save(kept: dict[str, Any]) -> None:
    """Write the contexts, whole or not at all, with mode 0600."""
    where = file()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=where.parent)
    with os.fdopen(descriptor, "w") as opened:
        json.dump(kept, opened, indent=2)
    Path(draft).replace(where)


def chosen() -> dict[str, str] | None:
    """Return the context in use, if any."""
    kept = load()
    name = os.environ.get(NAME) or kept["current"]
    found = kept["contexts"].get(name) if name else None
    return found if isinstance(found, dict) else None
