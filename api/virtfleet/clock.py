"""The one place that asks what time it is."""

from datetime import UTC, datetime, timedelta


def now() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


def after(seconds: float) -> datetime:
    """Return the moment `seconds` from now."""
    return now() + timedelta(seconds=seconds)


def rfc3339(moment: datetime | None) -> str | None:
    """Write a moment as RFC 3339 with milliseconds and `Z`."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
