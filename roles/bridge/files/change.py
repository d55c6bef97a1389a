#!/usr/bin/python3
"""Changes the network of this machine so that a mistake takes itself back.

change apply BRIDGE SECONDS   puts what is wanted in place; takes it back after SECONDS, or at the next boot
change confirm BRIDGE         keeps the change, if it is in place and the gateway answers
change rollback BRIDGE        takes the change back, unless it was confirmed
change boot                   takes back all that was not confirmed before a reboot

A bridge's record is a folder of states of the network: wanted.json, kept.json (what was confirmed last) and, as long
as a change is not confirmed, pending.json with those before and after it. A state names the backend, the files by path,
the links that those make, lower ones first, and the cards that have to be set up with them.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RECORDS = Path("/var/lib/virtfleet-bridge")
LOCK = Path("/run/virtfleet-bridge.lock")
COMMAND_SECONDS = 60.0
NEW_FILE_MODE = {"networkd": 0o644, "netplan": 0o600, "ifupdown": 0o644}
NOT_IN_PLACE = "the change is not in place"
NOTHING: dict[str, Any] = {"files": {}, "makes": [], "cards": []}


class Refused(Exception):
    """What stands in the way, for people."""


def run(*argv: str) -> str:
    """Run a program and return what went wrong, or nothing."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(argv)} took longer than {COMMAND_SECONDS:.0f} s"
    return f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}" if done.returncode else ""


def write(path: Path, text: str, mode: int) -> None:
    """Write a file in one step, as it is seen after a crash, too. One that exists keeps its mode."""
    if path.exists():
        mode = path.stat().st_mode & 0o7777
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.touch(mode)
    new.chmod(mode)
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def read_state(path: Path) -> dict[str, Any]:
    """Return a state from its file, or an empty one."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else NOTHING
    return found


def put(old: dict[str, Any], new: dict[str, Any], booting: bool = False) -> None:
    """Put the files of one state into place instead of another's, and have the network read them.

    Does all it can, and raises what went wrong of it: OSError for a file, Refused for the rest.
    """
    backend = new["backend"]
    unwritten: list[OSError] = []
    if backend == "ifupdown" and not booting:
        for link in reversed(old["cards"] + old["makes"]):
            run("ifdown", "--force", link)
    for name in old["files"].keys() | new["files"].keys():
        try:
            lay(Path(name), new["files"].get(name), NEW_FILE_MODE[backend])
        except OSError as obstacle:
            unwritten.append(obstacle)
    os.sync()
    for link in reversed(old["makes"]):
        if link not in new["makes"]:
            run("ip", "link", "delete", link)
    wrong = [run("netplan", "generate")] if backend == "netplan" else []
    if not booting:  # else the backend starts soon, and reads all of it
        wrong += up_by_ifupdown(new) if backend == "ifupdown" else up_by_networkd(new)
    if unwritten:
        raise unwritten[0]
    if any(wrong):
        raise Refused(next(filter(None, wrong)))


def lay(path: Path, text: str | None, mode: int) -> None:
    """Write a file of a state, or take it away where it has none."""
    if text is not None:
        write(path, text, mode)
        return
    path.unlink(missing_ok=True)
    if path.parent.name.endswith(".network.d") and path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def up_by_ifupdown(state: dict[str, Any]) -> list[str]:
    """Set up the links and return what went wrong."""
    for card in state["cards"]:
        run("ifup", card)  # not all cards are ifupdown's
    return [run("ifup", link) for link in state["makes"]]


def up_by_networkd(state: dict[str, Any]) -> list[str]:
    """Have all files read again and the links set up; return what went wrong."""
    wrong = run("networkctl", "reload")
    for link in state["cards"] + state["makes"]:
        if Path("/sys/class/net", link).exists():
            run("networkctl", "reconfigure", link)
    return [wrong]


def apply(record: Path, seconds: str) -> None:
    """Arm the taking back and change the network. Raises Refused."""
    for other in RECORDS.glob("*/pending.json"):
        if run("systemctl", "is-active", timer_of(other.parent)):  # it has run, and a full disk was in its way
            rollback(other.parent)
    if busy := [other.parent.name for other in RECORDS.glob("*/pending.json")]:
        raise Refused(f"a change of {', '.join(busy)} is under way")
    kept, wanted = read_state(record / "kept.json"), read_state(record / "wanted.json")
    paths = {name: Path(name) for name in kept["files"].keys() | wanted["files"].keys()}
    before = {
        "backend": wanted["backend"],
        "files": {name: path.read_text() if path.exists() else None for name, path in paths.items()},
        "makes": kept["makes"],
        "cards": sorted({*kept["cards"], *wanted["cards"]}),
    }
    write(record / "pending.json", json.dumps({"before": before, "after": wanted}), 0o600)
    os.sync()
    timer = [
        f"--unit={timer_of(record)}",
        f"--on-active={seconds}",
        "--timer-property=AccuracySec=1s",
    ]
    try:
        if wrong := run("systemd-run", "--quiet", "--collect", *timer, sys.argv[0], "rollback", record.name):
            raise Refused(wrong)
        put(before, {**wanted, "cards": before["cards"]})
    except (Refused, OSError):
        rollback(record)
        raise


def timer_of(record: Path) -> str:
    """Return the unit that takes a bridge's change back."""
    return f"virtfleet-bridge-timer-{record.name}.timer"


def answers(gateway: str) -> bool:
    """Say whether a gateway is there. Some answer no ping, but all tell their hardware address."""
    if not run("ping", "-c", "1", "-W", "3", gateway):
        return True
    known = subprocess.run(["ip", "neighbour", "show", gateway], capture_output=True, text=True, check=False)
    return "lladdr" in known.stdout


def confirm(record: Path) -> None:
    """Keep the change. Raises Refused."""
    pending, reason = record / "pending.json", record / "reason"
    if not pending.exists():
        raise Refused(reason.read_text() if reason.exists() else NOT_IN_PLACE)
    after = read_state(pending)["after"]
    for link in after["makes"]:
        if not Path("/sys/class/net", link).exists():
            raise Refused(f"there is no {link}")
    gateway = after["gateway"]
    if gateway and not answers(gateway):
        raise Refused(f"the gateway {gateway} does not answer")
    write(record / "kept.json", json.dumps(after), 0o600)
    pending.unlink()
    os.sync()
    run("systemctl", "stop", timer_of(record))


def rollback(record: Path, booting: bool = False) -> None:
    """Put back what stood before the change, if that was not confirmed.

    Raises Refused when the network does not take it. OSError: a file is not back; the next boot or change tries again.
    """
    pending = record / "pending.json"
    if not pending.exists():
        return
    change = read_state(pending)
    refused = None
    try:
        put(change["after"], change["before"], booting)
    except Refused as obstacle:
        refused = obstacle
    pending.unlink()
    os.sync()
    if refused:
        raise refused


def main(verb: str, name: str = "", seconds: str = "") -> int:
    """Do what the command line asks for; return the exit status."""
    record = RECORDS / name
    if verb == "rollback":  # a change that hangs must not keep it from being taken back
        run("systemctl", "stop", f"virtfleet-bridge-apply-{name}.service")
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            match verb:
                case "apply":
                    (record / "reason").unlink(missing_ok=True)
                    apply(record, seconds)
                case "confirm":
                    confirm(record)
                case "rollback":
                    rollback(record)
                case "boot":
                    for pending in RECORDS.glob("*/pending.json"):
                        rollback(pending.parent, booting=True)
        except (Refused, OSError) as obstacle:
            if verb in ("apply", "confirm") and str(obstacle) != NOT_IN_PLACE:
                write(record / "reason", str(obstacle), 0o644)
            print(obstacle)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
