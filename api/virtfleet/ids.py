"""Identifiers: a word that says what it names, and a ULID, which sorts by time."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """Return a fresh identifier such as `vm_01JD…`."""
    return f"{prefix}_{ULID()}"
