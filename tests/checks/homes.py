"""A home folder of our own for tools that keep caches and settings in `~`: a check depends on nothing of the user's."""

import os
from pathlib import Path


def cache() -> Path:
    """Return the folder of virtfleet's caches (`VIRTFLEET_CACHE`, else `~/.cache/virtfleet`)."""
    chosen = os.environ.get("VIRTFLEET_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "virtfleet"


def own_home(name: str) -> Path:
    """Make and return a home folder for one tool. Where pip looks for packages stays the user's choice."""
    home = cache() / name
    settings = home / ".config"
    settings.mkdir(parents=True, exist_ok=True)
    users = Path.home() / ".config" / "pip"
    if users.is_dir() and not (settings / "pip").exists():
        (settings / "pip").symlink_to(users)
    return home
