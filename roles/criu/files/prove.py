"""Checkpoints a process with an open file and a TCP listener, and restores it. The argument is the program criu.

Exits with 0 when the process went on counting where it was.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 60.0


def count(listener: socket.socket, log: Path) -> None:
    """Answer each who connects with the next number, and write it down."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    os.close(quiet)
    number = 0
    with log.open("a") as file:
        while True:
            with listener.accept()[0] as connection:
                number += 1
                print(number, file=file, flush=True)
                connection.sendall(str(number).encode())


def ask(port: int) -> str:
    """Return the number that it answers, once it does."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                return connection.recv(100).decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def criu(program: str, verb: str, *options: str) -> None:
    """Run CRIU, or end with what it said."""
    done = subprocess.run(
        [program, verb, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"criu {verb} ended with {done.returncode}: {done.stderr[-800:]}")


def main() -> None:
    """Do it, and leave nothing behind."""
    program = sys.argv[1]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        child = os.fork()
        if child == 0:
            count(listener, folder / "log")
        listener.close()
        alive = child
        try:
            before = ask(port), ask(port)
            criu(program, "dump", "--tree", str(child), "--images-dir", str(images))
            os.waitpid(child, 0)  # its number must be free again
            alive = 0
            criu(program, "restore", "--restore-detached", "--images-dir", str(images))
            alive = child
            after = ask(port)
            log = (folder / "log").read_text().split()
        finally:
            if alive:
                os.kill(alive, signal.SIGKILL)
        if (*before, after) != ("1", "2", "3") or log != ["1", "2", "3"]:
            sys.exit(f"it counted {before}, then {after}, and wrote {log}")
        print(f"counted on from {before[-1]} to {after}")


main()
