"""The only place that starts Ansible: one attempt of a job, in a private folder, under its supervisor.

What a person typed must stay text. ansible-core renders extra variables and inventory values as templates, so both are
files written by one dumper here that tags every string `!unsafe`; ansible-runner's own arguments for them lose that tag
and are never used. Of ansible-runner we take its callback, its configuration and its reader of events; the process
itself is run here, because a run must end at once when it is told to, with all that it started.
"""

import codecs
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from ansible_runner import Runner
from ansible_runner.config.runner import RunnerConfig
from ansible_runner.utils import OutputEventFilter
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.jobs import kinds, secret_files, supervisor, survivors
from virtfleet.jobs.events import Event, one_line
from virtfleet.jobs.kinds import Outcome
from virtfleet.jobs.listener import Listener
from virtfleet.jobs.secret_files import RedactedFile, Redaction, write_private
from virtfleet.models import Host, Job

GRACE_SECONDS = 3.0
"""What a run gets between SIGTERM and SIGKILL."""
MOST_FORKS = 50
PROGRESS_FILE = "progress"
"""In the folder of an attempt: a line that tells how far the module at work is, if it says so."""
PROGRESS_SECONDS = 1.0
LONGEST_PROGRESS_BYTES = 500
DIR = "{dir}"
"""Stands for the folder of the files in what `replay_files` returns."""
VARIABLES_FOR_HOSTS = frozenset({"ansible_host", "ansible_port", "ansible_user"})
"""Connection variables that a registered host may set; others could make Ansible run a program of their choice."""
SECRET_ID = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

log = logging.getLogger(__name__)

StopReason = Literal["cancel", "lost", "shutdown"]


class CannotRun(Exception):
    """An attempt cannot begin; `code`, the message and `hint` become the job's error."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Target:
    """A host as the inventory gets it."""

    name: str
    zone: str | None
    uri: str | None
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """All that one attempt of a job needs; made from the rows, so that no session is open while it runs."""

    job_id: str
    number: int
    attempt_id: str
    playbook: Path
    timeout: float
    variables: Mapping[str, Any]
    targets: tuple[Target, ...]
    secrets: Mapping[str, bytes]

    @property
    def folder(self) -> Path:
        """Return the private folder of the attempt."""
        return settings.load().runs / self.job_id / self.attempt_id


@dataclass(frozen=True)
class RunEnd:
    """How a run ended; `stopped` is set when it was told to end before it was done."""

    outcome: Outcome
    stopped: StopReason | None = None


class Stop:
    """Tells a run, from another thread, to end. The first reason counts."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._event: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.reason: StopReason | None = None

    def __call__(self, reason: StopReason) -> None:
        """End the run, for this reason."""
        with self._guard:
            if self.reason is None:
                self.reason = reason
                if self._event is not None:
                    os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """Return what becomes readable when the run is to end."""
        return -1 if self._event is None else self._event

    def close(self) -> None:
        """Forget about the run."""
        with self._guard:
            if self._event is not None:
                os.close(self._event)
                self._event = None


class _UnsafeDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every string, keys too, as `!unsafe` text, and nothing but plain data."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    # Half a surrogate pair is not text and cannot be written as UTF-8.
    whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    # ansible-core asks anew what an `!unsafe` scalar may mean, even quoted: `yes` would come out as true, and some MACs
    # as numbers of base 60. Text that can mean something else cannot hold a template, and goes untagged.
    tag = _MEANINGS.resolve(yaml.ScalarNode, whole, (True, False))
    if tag != _TEXT and "{" not in whole:
        return dumper.represent_scalar(_TEXT, whole, style='"')
    return dumper.represent_scalar("!unsafe", whole, style='"')


_MEANINGS = yaml.SafeLoader("")
_TEXT = "tag:yaml.org,2002:str"
_UnsafeDumper.add_representer(str, _represent_text)
_UnsafeDumper.add_multi_representer(str, _represent_text)


def dump(data: Any) -> str:
    """Write plain data as YAML in which no string can be a template. Raises yaml.YAMLError for anything not plain."""
    return yaml.dump(data, Dumper=_UnsafeDumper, width=1 << 30, sort_keys=False, default_flow_style=False)


def prepare(session: Session, job: Job) -> Attempt:
    """Read what the job's present attempt needs. Raises CannotRun when something of it is gone."""
    kind = kinds.KINDS.get(job.kind)
    if kind is None:
        message = f"This worker does not know jobs of kind {job.kind!r}."
        raise CannotRun("unknown_kind", message, "It is older than the API: restart the workers, then ask again.")
    hosts = {host.id: host for host in (session.get(Host, host_id) for host_id in job.host_ids) if host}
    missing = [host_id for host_id in job.host_ids if host_id not in hosts]
    if missing:
        raise CannotRun("not_found", f"The host {', '.join(missing)} is not registered any more.", "Ask again.")
    secrets: dict[str, bytes] = {}
    for secret_id in secret_ids(job.variables):
        try:
            secrets[secret_id] = kinds.read_secret(session, secret_id)
        except LookupError as error:
            message = f"A secret that the job needs cannot be read: {error.args[0] if error.args else error}."
            raise CannotRun("secret_missing", message, "Submit the request again, with its secrets.") from error
    return Attempt(
        job_id=job.id,
        number=job.attempt,
        attempt_id=job.attempt_id or "",
        playbook=kind.path,
        timeout=job.timeout,
        variables=job.variables,
        targets=_targets([hosts[host_id] for host_id in job.host_ids]),
        secrets=secrets,
    )


def secret_ids(variables: Any) -> list[str]:
    """Return the references to secrets in a job's variables."""
    found: dict[str, None] = {}

    def note(secret_id: str) -> str:
        found[secret_id] = None
        return secret_id

    _resolve(variables, note)
    return list(found)


def _resolve(value: Any, path_of: Callable[[str], str], attempt: int = 0, progress: str = "") -> Any:
    """Return a copy of `value`: every `{"$secret": id}` is the path of its file now, ATTEMPT and PROGRESS are those."""
    if value == kinds.ATTEMPT:
        return attempt
    if value == kinds.PROGRESS:
        return progress
    if isinstance(value, Mapping):
        if set(value) == {"$secret"}:
            secret_id = value["$secret"]
            if not isinstance(secret_id, str) or not SECRET_ID.fullmatch(secret_id):
                raise CannotRun("invalid", "A reference to a secret is not an id.", "Submit the request again.")
            return path_of(secret_id)
        return {key: _resolve(each, path_of, attempt, progress) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(each, path_of, attempt, progress) for each in value]
    return value


def _targets(hosts: Iterable[Host]) -> tuple[Target, ...]:
    return tuple(Target(host.name, host.zone.name, host.uri, host.variables) for host in hosts)


def inventory(targets: Sequence[Target]) -> dict[str, Any]:
    """Return the inventory of just these hosts, grouped by zone; without hosts it is this machine."""
    hosts: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for target in targets or [Target("localhost", None, None)]:
        values = {
            name: value
            for name, value in target.variables.items()
            if name.isidentifier() and (not name.startswith("ansible_") or name in VARIABLES_FOR_HOSTS)
        }
        if target.uri is not None:
            values["virtfleet_uri"] = target.uri
        if target.zone is not None:
            values["virtfleet_zone"] = target.zone
            if target.zone not in {"all", "ungrouped"}:
                groups.setdefault(target.zone, {"hosts": {}})["hosts"][target.name] = {}
        # Last, so that nothing a host brings along can change where and by what its modules run.
        values["ansible_connection"] = "local"
        values["ansible_python_interpreter"] = sys.executable
        hosts[target.name] = values
    return {"all": {"hosts": hosts, "children": groups} if groups else {"hosts": hosts}}


def command(folder: str, playbook: Path) -> list[str]:
    """Return the `ansible-playbook` command for the files in `folder`."""
    program = Path(sys.executable).with_name("ansible-playbook")
    return [
        *([str(program)] if program.exists() else [sys.executable, "-m", "ansible", "playbook"]),
        "-i",
        f"{folder}/inventory/hosts.yml",
        "-e",
        f"@{folder}/variables.yml",
        str(playbook),
    ]


def environment(folder: str, hosts: int) -> dict[str, str]:
    """Return every setting of Ansible that a run depends on, so that nobody's own configuration leaks into it."""
    share = settings.share()
    # An installed package lies beside `ansible_collections`, a checkout has it in `collections`.
    checkout = settings.checkout()
    collections = checkout / "collections" if checkout else Path(settings.__file__).resolve().parents[1]
    return {
        "ANSIBLE_CONFIG": f"{folder}/ansible.cfg",
        "ANSIBLE_HOME": f"{folder}/ansible",
        "ANSIBLE_LOCAL_TEMP": f"{folder}/ansible/tmp",
        "ANSIBLE_REMOTE_TEMP": f"{folder}/ansible/tmp",
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_ROLES_PATH": str(share / "roles"),
        "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml",
        "ANSIBLE_TRANSFORM_INVALID_GROUP_CHARS": "ignore",
        "ANSIBLE_FORKS": str(max(5, min(hosts, MOST_FORKS))),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "LC_ALL": "C.UTF-8",
    }


def _files(
    folder: str, targets: Sequence[Target], variables: Mapping[str, Any], attempt: int, path_of: Callable[[str], str]
) -> dict[str, str]:
    return {
        "ansible.cfg": "",
        "inventory/hosts.yml": dump(inventory(targets)),
        "variables.yml": dump(_resolve(variables, path_of, attempt, f"{folder}/{PROGRESS_FILE}")),
    }


def replay_files(job: Job, hosts: Sequence[Host], secrets: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what makes the same run by hand (GET /jobs/{id}/replay).

    Paths begin with `{dir}`, the folder the files are put into; where a person's text holds `{dir}`, it is written
    `\\x7Bdir}`, so that replacing `{dir}` in the files is safe. `secrets` (id → content) is None for those who may not
    read them; then the files name the secrets without their content.
    """
    here = "@dir@" + os.urandom(16).hex()
    folder_of_secrets = f"{here}/secrets"
    files = _files(
        here, _targets(hosts), job.variables, max(job.attempt, 1), lambda secret_id: f"{folder_of_secrets}/{secret_id}"
    )
    return {
        "playbook": kinds.KINDS[job.kind].playbook,
        "argv": command(DIR, kinds.KINDS[job.kind].path),
        "environment": environment(DIR, len(hosts)),
        "files": {name: text.replace(DIR, r"\x7Bdir}").replace(here, DIR) for name, text in files.items()},
        "secrets": {} if secrets is None else {f"secrets/{name}": content for name, content in secrets.items()},
    }


def clean(job_id: str, attempt_id: str) -> None:
    """Remove what must not outlive an attempt: secrets, Ansible's temporary files, events as files (rows keep them)."""
    secret_files.remove(job_id, attempt_id)
    for name in ("artifacts", "ansible"):
        shutil.rmtree(settings.load().runs / job_id / attempt_id / name, ignore_errors=True)


def forget(job_id: str) -> None:
    """Remove the folders of all attempts of a job; for jobs whose rows go."""
    shutil.rmtree(settings.load().runs / job_id, ignore_errors=True)


def run(attempt: Attempt, report: Callable[[Event], None], stop: Stop) -> RunEnd:
    """Run one attempt to its end. Nothing of it is alive, and no secret of it on disk, when this returns.

    Raises OSError when the attempt's folder cannot be made.
    """
    if not attempt.playbook.is_file():
        message = f"The playbook {attempt.playbook} does not exist."
        return RunEnd(kinds.failure("playbook_missing", message, "Install virtfleet again; a file of it is gone."))
    folder = attempt.folder
    redaction = Redaction(attempt.secrets.values())
    listener = Listener(report, redaction)
    try:
        _furnish(attempt)
        config = _configure(attempt)
        descriptor = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            # The callback's reader: it takes events out of the text, and hands them to the listener.
            reader = Runner(config, event_handler=listener)
            stream = OutputEventFilter(RedactedFile(output, redaction), reader.event_callback, True)
            with _progress_told(folder / PROGRESS_FILE, report):
                status, late = _execute(attempt, config, stream, stop)
            stream.close()
    finally:
        clean(attempt.job_id, attempt.attempt_id)
    return _conclude(attempt, listener, status, late=late, stop=stop)


@contextmanager
def _progress_told(file: Path, report: Callable[[Event], None]) -> Iterator[None]:
    """Report each new line of the file while the block runs."""
    done = threading.Event()

    def tell() -> None:
        last = ""
        while not done.wait(PROGRESS_SECONDS):
            try:
                with file.open("rb") as opened:
                    line = one_line(opened.read(LONGEST_PROGRESS_BYTES).decode("utf-8", "replace"))
            except OSError:  # most modules say nothing
                continue
            if line and line != last:
                last = line
                report(Event("progress", line))

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _furnish(attempt: Attempt) -> None:
    folder = attempt.folder
    for each in (folder, folder / "inventory"):
        each.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    secrets = secret_files.write(attempt.job_id, attempt.attempt_id, attempt.secrets) if attempt.secrets else None
    files = _files(
        str(folder), attempt.targets, attempt.variables, attempt.number, lambda secret_id: f"{secrets}/{secret_id}"
    )
    for name, text in files.items():
        write_private(folder / name, text.encode())


def _configure(attempt: Attempt) -> Any:
    folder = attempt.folder
    config = RunnerConfig(
        private_data_dir=str(folder), playbook=str(attempt.playbook), ident="run", fact_cache_type="", quiet=True
    )
    config.prepare()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANSIBLE_", "AWX_", "RUNNER_", "PYTHON", "VIRTFLEET_"))
    }
    ours = {name: config.env[name] for name in ("ANSIBLE_CALLBACK_PLUGINS", "ANSIBLE_STDOUT_CALLBACK")}
    config.env = {
        **inherited,
        **environment(str(folder), len(attempt.targets)),
        **ours,
        "AWX_ISOLATED_DATA_DIR": config.artifact_dir,
        "MAX_EVENT_RES": str(1 << 26),
        survivors.VARIABLE: attempt.attempt_id,
    }
    config.command = [
        *(sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(GRACE_SECONDS)),
        *command(str(folder), attempt.playbook),
    ]
    config.cwd = str(folder)
    (Path(config.artifact_dir) / "job_events").mkdir(mode=0o700)
    return config


def _execute(attempt: Attempt, config: Any, stream: Any, stop: Stop) -> tuple[int, bool]:
    """Run the command to its end; return its exit status (128 + signal) and whether its time was over."""
    deadline = time.monotonic() + attempt.timeout
    late = False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # The thread that starts the process waits for it: the supervisor is tied to the life of this thread.
    process = subprocess.Popen(
        config.command,
        cwd=config.cwd,
        env=config.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    ended = os.pidfd_open(process.pid)
    try:
        assert process.stdout is not None
        output = process.stdout.fileno()
        os.set_blocking(output, False)
        with selectors.DefaultSelector() as selector:
            for watched in (output, ended, stop):
                selector.register(watched, selectors.EVENT_READ)
            ending = False
            while True:
                ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
                if output in ready and not _read(output, stream, decoder):
                    selector.unregister(output)
                if ended in ready:
                    break
                if ending and time.monotonic() >= deadline:
                    # The supervisor itself does not end: without it, its attempt is ended from outside.
                    process.kill()
                    survivors.end(attempt.attempt_id)
                    deadline = time.monotonic() + GRACE_SECONDS
                elif not ending and (stop.reason is not None or time.monotonic() >= deadline):
                    late = stop.reason is None
                    ending = True
                    selector.unregister(stop)
                    process.send_signal(signal.SIGTERM)
                    deadline = time.monotonic() + 2 * GRACE_SECONDS
        status = process.wait()
        if status < 0:
            # Somebody killed the supervisor; what it watched over is still there.
            survivors.end(attempt.attempt_id)
        _read(output, stream, decoder)
    finally:
        os.close(ended)
        if process.poll() is None:
            process.kill()
            process.wait()
            survivors.end(attempt.attempt_id)
        if process.stdout is not None:
            process.stdout.close()
    return (status if status >= 0 else 128 - status), late


def _read(descriptor: int, stream: Any, decoder: codecs.IncrementalDecoder) -> bool:
    """Hand over what can be read now; tell whether there may be more."""
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        stream.write(decoder.decode(data))


def _conclude(attempt: Attempt, listener: Listener, status: int, *, late: bool, stop: Stop) -> RunEnd:
    if status == 0 and listener.stats:
        return RunEnd(Outcome("succeeded", listener.result))
    code, message, hint = _reason(attempt, listener, status, late=late, stop=stop)
    outcome = Outcome(
        "failed",
        result=listener.result,
        error={"code": code, "message": message, "hint": hint},
        errors=listener.host_errors(),
        failed=listener.failed_hosts(),
        unreachable=listener.unreachable_hosts(),
    )
    return RunEnd(outcome, stop.reason if status != 0 else None)


def _reason(attempt: Attempt, listener: Listener, status: int, *, late: bool, stop: Stop) -> tuple[str, str, str]:
    """Return code, message and hint of a run that did not succeed."""
    in_task = f", in the task {listener.task!r}" if listener.task else ""
    errors = listener.host_errors()
    if status == 0:
        return "no_hosts", "The playbook found no host to work on.", "Look at its `hosts:` and report it."
    if stop.reason is not None:
        return "stopped", f"The run was told to end{in_task}.", ""
    if late:
        message = f"The job was not done after {attempt.timeout:g} s{in_task}; it was ended."
        return "timeout", message, "See in the job's events what it waited for, then try again."
    if errors:
        host, first = next(iter(errors.items()))
        # Of one host, too: whoever reads only this sentence must learn where to look.
        alone = not attempt.targets or (len(attempt.targets) == 1 and host in first["message"])
        where = "" if alone else f"{host}: "
        return first["code"], where + first["message"], first["hint"]
    if status > 128:
        number = status - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return "killed", f"The run was killed from outside ({name}){in_task}.", "Was memory short? Try again."
    said = listener.own_error() or f"it ended with status {status} and said nothing"
    message = f"Ansible could not run {attempt.playbook.name}: {said}"
    return "playbook_error", message, f"All that it said is in {attempt.folder / 'output.txt'}."
