"""What a name may look like. One rule for what people type, so that no name can be anything but a name."""

import re
from urllib.parse import urlsplit

from virtfleet.errors import Problem

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_SUFFIX = re.compile(r"(\.(qcow2|img|raw|iso|vmdk))?(\.(gz|xz|zst))?$", re.IGNORECASE)


def check(name: str, what: str) -> str:
    """Return `name` when it can name a `what`. Raises Problem `invalid`."""
    if not NAME.fullmatch(name) or ".." in name:
        shown = name if len(name) <= 40 and name.isprintable() else f"of {len(name)} characters"
        raise Problem(
            "invalid",
            f"A {what} cannot have the name {shown!r}.",
            "Use 1 to 63 letters, digits, '-', '_' and '.'; begin and end with a letter or a digit.",
            errors=[{"field": "name", "message": "not a usable name"}],
        )
    return name


def is_url(source: str) -> bool:
    """Tell whether the source of an image is fetched over the network."""
    return source.lower().startswith(("http://", "https://"))


def of_image(source: str) -> str:
    """Return the name of an image that was given none: its file's, without a known suffix (S1.11)."""
    last = (urlsplit(source).path if is_url(source) else source).rstrip("/").rpartition("/")[2]
    return _SUFFIX.sub("", last) or last
