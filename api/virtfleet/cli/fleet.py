"""`virtfleet serve`, `demo` and `down`: a fleet on this machine."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from virtfleet import settings
from virtfleet.cli.client import FAILED, NOT_FOUND, REFUSED, USAGE, Api, CliError, connect, ref, reported
from virtfleet.cli.output import say
from virtfleet.cli.progress import finish

Listen = Annotated[str | None, typer.Option(help="HOST:PORT of the API; 127.0.0.1:8080 unless told otherwise.")]
MIB = 2**20
DEMO_VM = "demo"
DEMO_MARK = "demo.made"
"""Says in the fleet's home what the demo made."""
ANSWER_SECONDS = 120.0


def serve(
    pm_file: Annotated[Path | None, typer.Argument(help="S1: a host per line.")] = None,
    image_file: Annotated[Path | None, typer.Argument(help="S1: the full path of an image per line.")] = None,
    types_file: Annotated[Path | None, typer.Argument(help="S1: the instance types as JSON.")] = None,
    listen: Listen = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until Ctrl-C.")] = False,
) -> None:
    """Start the API, a worker, the observer and the controller; return when they answer.

    With S1's three files its routes are on (/vm/create, …), and what the files name is registered.
    """
    with reported():
        files = _s1_files(pm_file, image_file, types_file)
        here, fresh = _start(listen, s1=files is not None)
        say(f"The API {'answers' if fresh else 'answered already'} on http://{here}")
        if files is not None:
            _register(connect(), files)
        if foreground:
            _stay()


def _s1_files(pm_file: Path | None, image_file: Path | None, types_file: Path | None) -> Any:
    given = [pm_file, image_file, types_file]
    if given == [None, None, None]:
        return None
    if pm_file is None or image_file is None or types_file is None:
        raise CliError("Give all three files, PM_FILE IMAGE_FILE TYPES_FILE, or none.", USAGE)
    from virtfleet import s1_files  # noqa: PLC0415 - only for S1

    try:
        return s1_files.read(pm_file, image_file, types_file)
    except s1_files.S1FileError as error:
        raise CliError(f"{str(error).rstrip('.')}. Nothing was started.", USAGE) from error


def _start(listen: str | None, *, s1: bool) -> tuple[str, bool]:
    from virtfleet import processes  # noqa: PLC0415 - other commands need no processes

    try:
        started, fresh = processes.start(listen, {"VIRTFLEET_S1_ENABLED": "1"} if s1 else None)
    except processes.ProcessError as error:
        raise CliError(str(error), FAILED) from error
    if s1 and not started.s1:
        problem = f"The fleet on {started.listen} runs already, without the routes of S1."
        raise CliError(f"{problem} End it first: virtfleet down.", FAILED)
    return started.listen, fresh


def _stay() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        say("Ctrl-C ends it.")
        while _is_running():
            time.sleep(0.5)
        raise CliError("The processes have ended; their logs are in the fleet's home.", FAILED)
    except KeyboardInterrupt:
        say("")
    finally:
        _stop()


def _is_running() -> bool:
    from virtfleet import processes  # noqa: PLC0415 - see _start

    return processes.running() is not None


def _stop() -> bool:
    from virtfleet import processes  # noqa: PLC0415 - see _start

    try:
        return processes.stop()
    except processes.ProcessError as error:
        raise CliError(str(error), FAILED) from error


def _register(api: Api, files: Any) -> None:
    """Register what S1's files name, as far as it is not there yet."""
    known = {host["uri"] for host in api.items("/hosts")} | {host["name"] for host in api.items("/hosts")}
    new = [host for host in files.hosts if host.rpartition("@")[2] not in known and host not in known]
    answers = [api.post("/hosts", {"uri": host}) for host in new]
    numbers = {image["number"] for image in api.items("/images")}
    for image in files.images:
        if image.number not in numbers:
            api.post("/images", {"source": image.path, "number": image.number})
    tids = {flavor["number"] for flavor in api.items("/flavors")}
    for each in files.types:
        if each.tid not in tids:
            size = {"vcpus": each.cpu, "memory": f"{each.ram}MiB", "disk": f"{each.disk}GiB"}
            api.post("/flavors", {"name": f"type{each.tid}", "number": each.tid, **size})
    for answer in answers:
        try:
            finish(api, answer, wait=True)
        except CliError as error:
            # The others go on; this one is tried again by the observer.
            say(f"{answer['host']['name']}: {error}")
    say(f"{len(files.hosts)} hosts, {len(files.images)} images, {len(files.types)} types")


def demo(listen: Listen = None, hosts: Annotated[int, typer.Option(help="How many hosts the lab has.")] = 3) -> None:
    """Bring up a lab of libvirt hosts, the fleet on it, and a first machine that answers. Needs root."""
    from virtfleet.lab import Lab, LabError  # noqa: PLC0415 - loads libvirt

    began = time.monotonic()
    with reported():
        _remember_demo()
        try:
            lab = Lab("lab", say=say)
            lab.up(hosts)
            status = lab.status()
        except LabError as error:
            raise CliError(str(error), FAILED) from error
        here, _fresh = _start(listen, s1=False)
        say(f"The API answers on http://{here}")
        api = connect()
        _furnish(api, status)
        key = _key()
        vm = _demo_vm(api, key)
        say(f"{vm['name']} runs on {vm['host']} and has the address {vm['address']}; waiting for its answer")
        _wait_for_answers(vm["address"], key)
        seconds = time.monotonic() - began
        print(f"\n{vm['name']} answers on {vm['address']} (HTTP and SSH), {seconds:.0f} s after the start.")
        program = "./fleet" if settings.checkout() else "virtfleet"
        print("\nWhat to try next:")
        for command, what in (
            (f"ssh -i {key} root@{vm['address']}", "log in"),
            (f"{program} vm create web --count 3 --policy round_robin", "three more, one on each host"),
            (f"{program} vm list", "what runs where"),
            (f"{program} placement explain --memory 1TiB", "why something does not fit"),
            (f"{program} job replay 1", "the playbook run behind a job"),
            (f"{program} down", "undo all of it"),
        ):
            print(f"  {command:<64} {what}")
        print(f"\nThe API is described at http://{here}/api/v1/docs")


def _furnish(api: Api, status: dict[str, Any]) -> None:
    """Register the lab's network, hosts and image and a flavor, as far as they are not there yet."""
    guests = status["networks"]["guests"]
    if "guests" not in {network["name"] for network in api.items("/networks")}:
        addresses = {"first": guests["range"]["first"], "last": guests["range"]["last"], "gateway": guests["gateway"]}
        api.post("/networks", {"name": "guests", "source": guests["bridge"], "cidr": guests["cidr"], **addresses})
    known = {host["name"] for host in api.items("/hosts")}
    variables = {"virtfleet_shared_pools": ["shared"]}
    answers = [
        api.post("/hosts", {"uri": host["uri"], "name": host["name"], "variables": variables})
        for host in status["hosts"]
        if host["name"] not in known
    ]
    for answer in answers:
        finish(api, answer, wait=True)
    if "tiny" not in {image["name"] for image in api.items("/images")}:
        api.post("/images", {"source": status["image"], "name": "tiny"})
    if "small" not in {flavor["name"] for flavor in api.items("/flavors")}:
        api.post("/flavors", {"name": "small", "vcpus": 1, "memory": "128MiB", "disk": "1GiB"})


def _key() -> Path:
    """Return the private key that the demo's machine lets in; made once."""
    key = settings.home() / "demo_key"
    if not key.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "virtfleet demo", "-f", str(key)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return key


def _demo_vm(api: Api, key: Path) -> dict[str, Any]:
    try:
        vm = api.get(f"/vms/{ref(DEMO_VM)}")
    except CliError as error:
        if error.code != NOT_FOUND:
            raise
        body = {"name": DEMO_VM, "flavor": "small", "image": "tiny"}
        body["ssh_keys"] = [key.with_suffix(".pub").read_text().strip()]  # type: ignore[assignment]
        finish(api, api.post("/vms", body), wait=True)
        vm = api.get(f"/vms/{ref(DEMO_VM)}")
    if vm["state"] == "building":
        finish(api, {"job": api.get(f"/jobs/{vm['job']}")}, wait=True)
    elif vm["state"] in ("stopped", "paused", "crashed"):
        finish(api, api.post(f"/vms/{vm['id']}/actions", {"action": "start"}), wait=True)
    elif vm["state"] != "running":
        message = f"The machine {DEMO_VM} is {vm['state']}. Delete it (vm delete {DEMO_VM}), then run this again."
        raise CliError(message, REFUSED)
    return dict(api.get(f"/vms/{ref(DEMO_VM)}"))


def _wait_for_answers(address: str, key: Path) -> None:
    import urllib.request  # noqa: PLC0415 - loads for long, and other commands never need it

    deadline = time.monotonic() + ANSWER_SECONDS
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    ssh = ["ssh", "-i", str(key), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", *options, f"root@{address}", "true"]
    web = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            web.open(f"http://{address}/", timeout=3).close()
            if subprocess.run(ssh, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            hint = f"Look at its console: virsh -c URI console {DEMO_VM} (URI: virtfleet host list -o json)."
            raise CliError(f"{address} did not answer in {ANSWER_SECONDS:g} s. {hint}", FAILED)
        time.sleep(0.3)


def _remember_demo() -> None:
    """Note that the lab, and the fleet if there was none before, are the demo's: `down` removes what the demo made."""
    home = settings.home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / DEMO_MARK).exists():
        (home / DEMO_MARK).write_text("lab\n" if (home / "virtfleet.db").exists() else "lab fleet\n")


def down() -> None:
    """End the fleet's processes, and remove what `demo` made: its lab with all that runs there, its fleet."""
    from virtfleet.lab import Lab, LabError  # noqa: PLC0415 - loads libvirt

    with reported():
        stopped = _stop()
        mark = settings.home() / DEMO_MARK
        of_demo = mark.read_text().split() if mark.exists() else []
        if of_demo:
            try:
                Lab("lab", say=say).down()
            except LabError as error:
                raise CliError(str(error), FAILED) from error
            if "fleet" in of_demo:
                _forget_fleet(settings.home())
            mark.unlink()
        if stopped:
            say("The fleet's processes have ended.")
        elif not of_demo:
            say("Nothing was up.")


def _forget_fleet(home: Path) -> None:
    """Remove the state of a fleet whose hosts are gone with the lab, so that the next demo begins anew."""
    for name in ("virtfleet.db", "queue.db"):
        for suffix in ("", "-wal", "-shm"):
            (home / f"{name}{suffix}").unlink(missing_ok=True)
    for name in ("admin.token", "secret.key", "listen", "demo_key", "demo_key.pub"):
        (home / name).unlink(missing_ok=True)
    for name in ("runs", "images", "logs"):
        shutil.rmtree(home / name, ignore_errors=True)
