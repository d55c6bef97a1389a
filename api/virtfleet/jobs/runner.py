"""The only place that starts Ansible: one attempt of a job, in a private folder, under its supervisor.

Of ansible-runner we take its callback, its configuration and its reader of events; the process itself is run here,
because a run must end at once when it is told to, with all that it started. What it is given is made by `attempts`.
"""

import codecs
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ansible_runner import Runner
from ansible_runner.config.runner import RunnerConfig
from ansible_runner.utils import OutputEventFilter

from virtfleet import settings
from virtfleet.jobs import attempts, kinds, secret_files, supervisor, survivors
from virtfleet.jobs.attempts import PROGRESS_FILE, Attempt
from virtfleet.jobs.events import Event, one_line
from virtfleet.jobs.kinds import Outcome
from virtfleet.jobs.listener import Listener
from virtfleet.jobs.secret_files import RedactedFile, Redaction, write_private

GRACE_SECONDS = 3.0
"""What a run gets between SIGTERM and SIGKILL."""
PROGRESS_SECONDS = 1.0
LONGEST_PROGRESS_BYTES = 500

log = logging.getLogger(__name__)

StopReason = Literal["cancel", "lost", "shutdown"]


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
    texts = attempts.files(
        str(folder), attempt.targets, attempt.variables, attempt.number, lambda secret_id: f"{secrets}/{secret_id}"
    )
    for name, text in texts.items():
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
        **attempts.environment(str(folder), len(attempt.targets)),
        **ours,
        "AWX_ISOLATED_DATA_DIR": config.artifact_dir,
        "MAX_EVENT_RES": str(1 << 26),
        survivors.VARIABLE: attempt.attempt_id,
    }
    config.command = [
        *(sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(GRACE_SECONDS)),
        *attempts.command(str(folder), attempt.playbook),
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
