"""The secrets of an attempt: files that live no longer than it, and nothing of them in what is kept."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from virtfleet import settings

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder made in it is ours alone; it must not exist before
SHORTEST_REDACTED = 8
"""What is shorter, a line or a whole secret, is a common word, not a secret: it would be found in every UUID."""


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only this user can read. Raises FileExistsError when there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _folders(job_id: str, attempt_id: str) -> tuple[Path, Path]:
    """Return where the secrets of an attempt may lie: in memory, or else in the attempt's folder."""
    return SHARED_MEMORY / f"virtfleet-{attempt_id}", settings.load().runs / job_id / attempt_id / "secrets"


def write(job_id: str, attempt_id: str, secrets: Mapping[str, bytes]) -> Path:
    """Write each secret to a file named by its id, of mode 0600, in a new folder of mode 0700; return the folder."""
    in_memory, on_disk = _folders(job_id, attempt_id)
    folder = in_memory if SHARED_MEMORY.is_mount() and os.access(SHARED_MEMORY, os.W_OK) else on_disk
    folder.mkdir(mode=0o700)
    for secret_id, content in secrets.items():
        write_private(folder / secret_id, content)
    return folder


def remove(job_id: str, attempt_id: str) -> None:
    """Remove the secrets of an attempt from this machine. Removing what is not there is no error."""
    for folder in _folders(job_id, attempt_id):
        shutil.rmtree(folder, ignore_errors=True)


class Redaction:
    """Takes an attempt's secrets out of whatever is kept. Modules should not repeat them; some might."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        texts = [secret.decode("utf-8", "replace").strip() for secret in secrets]
        self._whole = [text for text in texts if len(text) >= SHORTEST_REDACTED]
        lines = {line.strip() for text in texts for line in text.splitlines()}
        # As they stand, with their spaces made one each, and as JSON writes them.
        shapes = {shape for line in lines for shape in (line, " ".join(line.split()), json.dumps(line)[1:-1])}
        self._lines = sorted((line for line in shapes if len(line) >= SHORTEST_REDACTED), key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return text for people without any line of a secret."""
        for line in self._lines:
            text = text.replace(line, "***")
        return text

    def data(self, value: Any) -> Any:
        """Return plain data without any whole secret. (A single line of one may well be a machine's name.)"""
        if not self._whole:
            return value
        if isinstance(value, str):
            for whole in self._whole:
                value = value.replace(whole, "***")
            return value
        if isinstance(value, dict):
            return {self.data(key): self.data(each) for key, each in value.items()}
        return [self.data(each) for each in value] if isinstance(value, list) else value


class RedactedFile:
    """The file that keeps the text of a run."""

    def __init__(self, file: TextIO, redaction: Redaction) -> None:
        self._file = file
        self._redaction = redaction

    def write(self, text: str) -> None:
        """Write text without the secrets in it."""
        self._file.write(self._redaction.text(text))

    def flush(self) -> None:
        """Hand over to the system what was written."""
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()
