"""Settings of one fleet: where its state lies and how it behaves.

Order of precedence: environment (`VIRTFLEET_*`), then `config.toml` in the fleet's home, then the defaults below.
"""

import os
import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NewType

DEFAULT_LISTEN = "127.0.0.1:8080"
Bytes = NewType("Bytes", int)
"""A size, which is configured as text with a unit, such as 10GiB."""


class SettingsError(ValueError):
    """A setting cannot be used; the message says which one and what it may be."""


def home() -> Path:
    """Return the folder that holds all state of this fleet (`VIRTFLEET_HOME`)."""
    chosen = os.environ.get("VIRTFLEET_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".local" / "share" / "virtfleet"


def checkout() -> Path | None:
    """Return the source checkout this package runs from, or None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "playbooks").is_dir() and (root / "collections").is_dir() else None


def share() -> Path:
    """Return the folder that holds `playbooks/` and `inventories/`: the checkout, or what the wheel carries."""
    return checkout() or Path(__file__).resolve().parent / "_share"


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be configured. Sizes are bytes, durations seconds, ratios plain numbers."""

    home: Path = field(default_factory=home)
    listen: str = DEFAULT_LISTEN
    database_url: str = ""
    policy: str = "bin_packing"
    pool: str = "default"
    default_flavor: str = "small"
    vcpu_ratio: float = 8.0
    memory_ratio: float = 1.0
    disk_ratio: float = 1.0
    disk_growth_limit: Bytes = Bytes(0)
    """By how much a disk may grow at once; 0 for no limit."""
    workers: int = 4
    api_threads: int = 16
    jobs_per_host: int = 3
    """Fewer than workers, so that jobs that hang on one host cannot hold up those of all others."""
    lease_seconds: float = 30.0
    sweep_seconds: float = 2.0
    observe_seconds: float = 5.0
    host_timeout: float = 10.0
    job_timeout: float = 300.0
    job_attempts: int = 3
    keep_jobs_days: float = 30.0
    keep_answers_days: float = 1.0
    """How long a request may be repeated under its Idempotency-Key."""
    s1_enabled: bool = False
    s1_wait_seconds: float = 120.0

    @property
    def database(self) -> str:
        """Return the SQLAlchemy URL of the fleet's database."""
        return self.database_url or f"sqlite:///{self.home / 'virtfleet.db'}"

    @property
    def queue_path(self) -> Path:
        """Return the SQLite file of the queue, apart from the database so that they never contend."""
        return self.home / "queue.db"

    @property
    def runs(self) -> Path:
        """Return the folder that holds one private folder per job attempt."""
        return self.home / "runs"

    @property
    def images(self) -> Path:
        """Return the folder where image files that were uploaded or downloaded are kept."""
        return self.home / "images"


def _bytes(text: str) -> int:
    # The command line reads settings too, and is quicker without the collection.
    from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError  # noqa: PLC0415
    from ansible_collections.virtfleet.core.plugins.module_utils.units import parse_size  # noqa: PLC0415

    try:
        return parse_size(text)
    except VirtfleetError as error:
        raise ValueError(error.obstacle) from error


def _convert(name: str, kind: Any, value: Any) -> Any:
    try:
        if kind is bool:
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
                raise ValueError("not one of true, false")
            return word in {"1", "true", "yes", "on"}
        if kind is Bytes:
            return _bytes(str(value))
        if kind in (int, float):
            number = kind(value)
            if number < 0:
                raise ValueError("must not be negative")
            return number
        return Path(str(value)).expanduser() if kind is Path else str(value)
    except ValueError as error:
        wanted = "size with a unit, such as 10GiB" if kind is Bytes else kind.__name__
        problem = f"The setting {name} = {value!r} cannot be used: {error}. Give a {wanted}."
        raise SettingsError(problem) from error


@cache
def load(_for_home: Path | None = None) -> Settings:
    """Read the settings once per process. Raises SettingsError for an unknown or unusable one."""
    values: dict[str, Any] = {}
    file = home() / "config.toml"
    if file.is_file():
        try:
            values.update(tomllib.loads(file.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{file} is not valid TOML: {error}") from error
    known = {f.name: f.type for f in fields(Settings) if f.name != "home"}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingsError(f"{file} has unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    for name in known:
        from_environment = os.environ.get(f"VIRTFLEET_{name.upper()}")
        if from_environment is not None:
            values[name] = from_environment
    return Settings(home=home(), **{name: _convert(name, known[name], value) for name, value in values.items()})
