"""What kinds of jobs there are: which playbook does the work, for how long, how often, and what happens at the end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.models import Job

FinalState = Literal["succeeded", "failed", "cancelled"]

ATTEMPT = {"$attempt": True}
"""Stands in a job's variables for the number of the attempt, which is known when it begins."""
PROGRESS = {"$progress": True}
"""Stands in a job's variables for the path of a file in which a module keeps a line that tells how far it is."""


UNTIL_DONE = 1_000_000
"""Attempts of a job that only ends when its work is done, or when somebody cancels it."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    `result` has, per host name, what the playbook published under `virtfleet`; it is filled as far as the run came,
    also when it failed. `error` is the job's `{code, message, hint}`; `errors` has the same for each host that failed.
    """

    state: FinalState
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    """Names of the hosts on which a task failed and was not rescued."""
    unreachable: tuple[str, ...] = ()
    """Names of the hosts that Ansible could not reach."""


def failure(code: str, message: str, hint: str = "") -> Outcome:
    """Return the outcome of a job that failed as a whole."""
    return Outcome("failed", error={"code": code, "message": message, "hint": hint})


@dataclass(frozen=True)
class Kind:
    """A kind of job. All playbooks are idempotent, so that a job whose worker died simply runs again."""

    name: str
    playbook: str
    """Path below the folder of playbooks."""
    timeout: float | None = None
    """Seconds that one attempt may take; None = the setting `job_timeout`."""
    max_attempts: int | None = None
    """How often a job may be begun when workers die in it; None = the setting `job_attempts`."""

    @property
    def path(self) -> Path:
        """Return the playbook's file."""
        return settings.share() / "playbooks" / self.playbook


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("vm.create", "vm/create.yml"),
        Kind("vm.clone", "vm/clone.yml"),
        Kind("vm.delete", "vm/delete.yml"),
        Kind("vm.start", "vm/start.yml"),
        Kind("vm.stop", "vm/stop.yml"),
        Kind("vm.reboot", "vm/reboot.yml"),
        Kind("vm.pause", "vm/pause.yml"),
        Kind("vm.resume", "vm/resume.yml"),
        Kind("vm.save", "vm/save.yml"),
        # A program that may have run is not run again.
        Kind("vm.exec", "vm/exec.yml", max_attempts=1),
        Kind("vm.guest", "vm/guest.yml", timeout=180.0),
        Kind("vm.guest_info", "vm/guest_info.yml", timeout=120.0),
        Kind("vm.resize", "vm/resize.yml"),
        Kind("vm.disk", "vm/disk.yml"),
        Kind("vm.nic", "vm/nic.yml"),
        Kind("vm.migrate", "vm/migrate.yml"),
        # Tried until it is done: what is broken stays so until then.
        Kind("vm.mend", "vm/mend.yml", timeout=180.0, max_attempts=UNTIL_DONE),
        Kind("host.evacuate", "host/evacuate.yml"),
        Kind("vm.preflight", "vm/preflight.yml"),
        Kind("vm.snapshot", "vm/snapshot.yml"),
        Kind("vm.revert", "vm/revert.yml"),
        Kind("vm.export", "vm/export.yml"),
        Kind("vm.checkpoint", "vm/checkpoint.yml", timeout=120.0),
        Kind("vm.backup", "vm/backup.yml"),
        Kind("vm.restore", "vm/restore.yml"),
        Kind("volume.create", "volume/create.yml"),
        Kind("volume.clone", "volume/clone.yml"),
        Kind("volume.resize", "volume/resize.yml"),
        Kind("volume.wipe", "volume/wipe.yml"),
        Kind("volume.delete", "volume/delete.yml"),
        # Reading a host that is slow to answer may take a minute alone.
        Kind("host.discover", "host/discover.yml", timeout=180.0),
        Kind("network.define", "network/define.yml", timeout=120.0),
        Kind("network.remove", "network/remove.yml", timeout=120.0),
        Kind("nwfilter.define", "nwfilter/define.yml", timeout=120.0),
        Kind("nwfilter.remove", "nwfilter/remove.yml", timeout=120.0),
        Kind("secret.define", "secret/define.yml", timeout=120.0),
        Kind("secret.remove", "secret/remove.yml", timeout=120.0),
        # Its module alone may copy for half an hour.
        Kind("image.import", "image/import.yml", timeout=2100.0),
        Kind("image.remove", "image/remove.yml"),
    )
}


@dataclass(frozen=True)
class Revision:
    """How a job that failed is to be tried once more: its hosts, variables and locks are these from now on."""

    reason: str
    host_ids: tuple[str, ...]
    variables: dict[str, Any]
    exclusive: tuple[str, ...] = ()
    shared: tuple[tuple[str, int], ...] = ()
    needs: tuple[str, ...] = ()
    not_before: datetime | None = None


Finisher = Callable[[Session, Job, Outcome], None]
Reviser = Callable[[Session, Job, Outcome], Revision | None]
SecretReader = Callable[[Session, str], bytes]
_F = TypeVar("_F", bound=Finisher)
_R = TypeVar("_R", bound=SecretReader)

_V = TypeVar("_V", bound=Reviser)

_finishers: dict[str, Finisher] = {}
_revisers: dict[str, Reviser] = {}
_secret_readers: list[SecretReader] = []


def finisher(kind: str) -> Callable[[_F], _F]:
    """Register what a service does when a job of this kind ends.

    It runs inside the closing transaction, exactly once per job; so it does no I/O. `job` already has its final state.
    """
    if kind not in KINDS:
        raise KeyError(f"There is no kind of job {kind!r}; kinds are {', '.join(KINDS)}.")

    def register(function: _F) -> _F:
        _finishers[kind] = function
        return function

    return register


def reviser(kind: str) -> Callable[[_V], _V]:
    """Register what a service can do about a failed attempt, while attempts are left.

    It returns None when nothing can be done; then the job ends, and its finisher runs.
    """

    def register(function: _V) -> _V:
        _revisers[kind] = function
        return function

    return register


def reviser_of(kind: str) -> Reviser | None:
    """Return what was registered for this kind."""
    return _revisers.get(kind)


def finisher_of(kind: str) -> Finisher | None:
    """Return what was registered for this kind."""
    return _finishers.get(kind)


def secret_reader(function: _R) -> _R:
    """Register the function that gives the content of a secret; it raises LookupError for one that is gone."""
    _secret_readers[:] = [function]
    return function


def read_secret(session: Session, secret_id: str) -> bytes:
    """Return the content of a secret. Raises LookupError when there is none such."""
    if not _secret_readers:
        raise LookupError(f"secret {secret_id} cannot be read: no reader of secrets is registered")
    return _secret_readers[0](session, secret_id)
