"""Locked files that may be removed by whoever holds the lock."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the exclusive lock on the file `path` (made when absent) and give its descriptor. Waits for other holders.

    The holder may unlink the file: who waited for it meanwhile notices that its own file is gone and starts anew.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # the folder was removed between the two calls
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = path.stat()
            except FileNotFoundError:
                continue
            mine = os.fstat(descriptor)
            if (mine.st_dev, mine.st_ino) != (current.st_dev, current.st_ino):
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)
