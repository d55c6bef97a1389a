"""What the collection costs beside bare libvirt-python: side by side, in one run, on one lab of ten hosts.

    .venv/bin/python -m tests.bench.collection [--rounds N] [--only NAME]

Needs root and some 6 GiB of memory. Machines are started paused, so that they cost no processor time. Each number is
the median of the rounds; the rows and what they are to be are those of docs/benchmarks-collection.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import libvirt
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

from tests.bench.bare import Machines, mac_of, seconds
from tests.lab.test_storage_modules import ROOT, call

MEMORY = 32 * 2**20
DISK = 2**30
TEN = 10
HUNDRED = 100
HOSTS = 10
HOSTS_OF_HUNDRED = 5
CROWD = 1000
BASE = "bench-base"
BARE = Machines(BASE, MEMORY, DISK)

RECORDER = """
import json, os, time
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorder"

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._note("start", task)

    def v2_runner_on_ok(self, result):
        self._note("end", result._task)

    def _note(self, what, task):
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps([what, task.get_name(), time.time()]) + chr(10))
"""


class Bench:
    """The lab, and a folder for playbooks."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        (folder / "callbacks").mkdir()
        (folder / "callbacks/recorder.py").write_text(RECORDER)

    def uris(self, count: int) -> list[str]:
        """Return the URIs of so many hosts."""
        return [host.uri for host in self.lab.hosts()[:count]]

    def environment(self, direct: bool = True) -> dict[str, str]:
        """Return what Ansible runs with."""
        return os.environ | {
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(self.folder / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_FORKS": str(HOSTS),
            "VIRTFLEET_DIRECT": str(int(direct)),
            "RECORD": str(self.folder / "record"),
        }

    def play(
        self, module: str, options: dict[str, Any], uris: Sequence[str], direct: bool = True
    ) -> tuple[float, float, float]:
        """Run one task on hosts; return seconds: the task's, all of `ansible-playbook`'s, its processor's."""
        record, playbook, inventory = (self.folder / name for name in ("record", "play.yml", "hosts.json"))
        record.write_text("")
        task = {"name": "bench", f"virtfleet.core.{module}": {"uri": "{{ uri }}", **options}}
        play = {"hosts": "all", "gather_facts": False, "connection": "local", "tasks": [task]}
        playbook.write_text(json.dumps([play]))
        hosts = {f"h{number}": {"uri": uri, "number": number} for number, uri in enumerate(uris)}
        variables = {"ansible_python_interpreter": sys.executable}
        inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(playbook)]
        began, used = time.monotonic(), processor_seconds()
        done = subprocess.run(
            command, env=self.environment(direct), cwd=self.folder, capture_output=True, text=True, check=False
        )
        whole = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        times = [json.loads(line) for line in record.read_text().splitlines()]
        task = max(when for what, _name, when in times if what == "end") - times[0][2]
        return task, whole, processor_seconds() - used


def processor_seconds() -> float:
    """Return the processor time of the programs that were run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machines(each: int) -> list[dict[str, Any]]:
    """Return the same machines for module vm."""
    identifiers = [str(uuid.uuid4()) for _ in range(each)]
    return [
        {
            "name": f"bench-{number}",
            "uuid": identifier,
            "vcpus": 1,
            "memory": "32MiB",
            "accel": "tcg",
            "disks": [{"image": BASE, "size": "1GiB"}],
            "networks": [{"bridge": "vmbr0", "mac": mac_of(identifier)}],
            "cloud_init": {"hostname": f"bench-{number}"},
        }
        for number, identifier in enumerate(identifiers)
    ]


def remove(connections: Sequence[libvirt.virConnect]) -> None:
    """Remove all that was made."""
    for connection in connections:
        BARE.remove(connection, "bench-")


@contextmanager
def opened(uris: Sequence[str]) -> Iterator[list[libvirt.virConnect]]:
    """Open hosts for the length of a block."""
    with ExitStack() as stack:
        yield [stack.enter_context(opened_host(uri, Deadline(60))) for uri in uris]


Note = Callable[[str, float], None]


def many(bench: Bench, note: Note, hosts: int, count: int) -> None:
    """Make machines by libvirt-python and by one task; for one host, run the task once more on what is there."""
    uris = bench.uris(hosts)
    for uri in uris:
        call("image", uri, name=BASE, pool="default", src=bench.lab.status()["image"], timeout=120.0)
    options = {"vms": machines(count // hosts), "state": "paused", "timeout": 600}
    with opened(uris) as connections:
        note(f"{count} bare", seconds(lambda: BARE.make_many(connections, "bench-", count // hosts)))
        remove(connections)
        task, whole, used = bench.play("vm", options, uris)
        note(f"{count} task", task)
        note(f"{count} playbook", whole)
        note(f"{count} playbook cpu", used)
        if hosts == 1:
            task, whole, used = bench.play("vm", options, uris)
            note(f"{count} again task", task)
            note(f"{count} again", whole)
            note(f"{count} again cpu", used)
            _task, whole, used = bench.play("vm", options, uris, direct=False)
            note(f"{count} again normal", whole)
            note(f"{count} again normal cpu", used)
        remove(connections)


def crowd_xml(number: int) -> str:
    """Return a machine of the test driver as the fleet makes them, with what inventories group by."""
    values: dict[str, Any] = {
        "owner": f"owner{number % 20}",
        "project": f"project{number % 7}",
        "zone": "z1",
        "flavor": "small",
    }
    address = f"10.78.{number // 250}.{number % 250 + 1}"
    values |= {"id": f"vm_{number}", "tags": ["web"], "made_volumes": [], "fixed_addresses": [address]}
    metadata = json.dumps(values).replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<domain type='test'><name>crowd-{number}</name><uuid>{uuid.UUID(int=number + 1)}</uuid>"
        f"<metadata><virtfleet:vm xmlns:virtfleet='urn:virtfleet:vm:1'>{metadata}</virtfleet:vm></metadata>"
        "<memory unit='MiB'>512</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices>"
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/p/crowd-{number}-root'/>"
        f"<target dev='vda' bus='virtio'/><serial>root</serial></disk><interface type='bridge'>"
        f"<mac address='{mac_of(uuid.UUID(int=number + 2**120).hex)}'/><source bridge='vmbr0'/></interface>"
        "</devices></domain>"
    )


@contextmanager
def crowds(bench: Bench, hosts: int) -> Iterator[list[str]]:
    """Give libvirt's test driver, through each host's daemon, a thousand machines; yield the URIs."""
    uris = [uri.replace("qemu+tcp", "test+tcp").replace("/system", "/default") for uri in bench.uris(hosts)]
    with opened(uris) as connections:
        for connection in connections:
            known = {domain.name() for domain in connection.listAllDomains(0)}
            for number in range(CROWD):
                if f"crowd-{number}" not in known:
                    connection.defineXML(crowd_xml(number)).create()
        yield uris


def read_all(bench: Bench, note: Note) -> None:
    """Read a thousand machines of one host."""
    with crowds(bench, 1) as uris:
        task, whole, used = bench.play("vm_info", {}, uris)
        note("info task", task)
        note("info playbook", whole)
        note("info playbook cpu", used)
        note("info execute", seconds(lambda: call("vm_info", uris[0])))


def inventory(bench: Bench, note: Note) -> None:
    """Load the inventory of ten hosts with a thousand machines each, without a cache."""
    with crowds(bench, HOSTS) as uris:
        source = bench.folder / "bench.virtfleet.yml"
        hosts = {f"h{number}": uri for number, uri in enumerate(uris)}
        settings = {"plugin": "virtfleet.core.guests", "hosts": hosts, "connect_timeout": 60, "timeout": 120}
        program = (
            "import sys, time; began = time.monotonic()\n"
            "from ansible.plugins.loader import init_plugin_loader; init_plugin_loader()\n"
            "from ansible.inventory.manager import InventoryManager\n"
            "from ansible.parsing.dataloader import DataLoader\n"
            "manager = InventoryManager(DataLoader(), sources=[sys.argv[1]])\n"
            "assert len(manager.hosts) == int(sys.argv[2]), len(manager.hosts)\n"
            "print(time.monotonic() - began)"
        )
        command = [sys.executable, "-c", program, str(source), str(HOSTS * (CROWD + 1))]
        for key, more in (("inventory arp", {"address_from": ["arp"]}), ("inventory load", {})):
            source.write_text(json.dumps(settings | more))
            used = processor_seconds()
            done = subprocess.run(command, env=bench.environment(), check=True, capture_output=True, text=True)
            note(key, float(done.stdout.split()[-1]))
            note(f"{key} cpu", processor_seconds() - used)
        graph = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(source), "--list"]
        note(
            "inventory list",
            seconds(lambda: subprocess.run(graph, env=bench.environment(), check=True, capture_output=True)),
        )


PARTS: dict[str, Callable[[Bench, Note], None]] = {
    "ten": lambda bench, note: many(bench, note, 1, TEN),
    "hundred": lambda bench, note: many(bench, note, HOSTS_OF_HUNDRED, HUNDRED),
    "info": read_all,
    "inventory": inventory,
}


def table(found: dict[str, float]) -> str:
    """Return the measurements with what they are to be."""
    rows: list[tuple[str, ...]] = []

    def row(what: str, key: str, beside: str = "", goal: str = "") -> None:
        if key in found:
            used = f"{found[f'{key} cpu']:.2f} s" if f"{key} cpu" in found else ""
            rows.append((what, f"{found[key]:.2f} s", used, beside, goal))

    def times(key: str, base: str) -> str:
        return f"{found[key] / found[base]:.2f} x" if key in found and base in found else ""

    row("ten machines, libvirt-python in four threads", "10 bare")
    row("ten machines, the task", "10 task", times("10 task", "10 bare"), "<= 1.3 x")
    row("ten machines, the whole playbook", "10 playbook", "", f"<= {1.3 * found.get('10 bare', 0) + 0.6:.2f} s")
    row("the same again, unchanged: the whole playbook", "10 again", "", "<= 1 s")
    row("... of which the task", "10 again task")
    row("... in a process of its own instead", "10 again normal")
    row("a hundred machines over five hosts, libvirt-python in four threads each", "100 bare")
    row("a hundred machines over five hosts, the task", "100 task", times("100 task", "100 bare"), "<= 1.4 x")
    row("a hundred machines over five hosts, the whole playbook", "100 playbook")
    row("vm_info of 1,000 machines, the task", "info task", "", "<= 0.5 s")
    row("... the module's own part", "info execute")
    row("... the whole playbook", "info playbook")
    row("inventory of 10 x 1,000 machines, cold, from the start of Python to loaded", "inventory load", "", "<= 3 s")
    row("... each of them asked for in the host's ARP table, one by one", "inventory arp")
    row("... ansible-inventory --list, 10,000 hosts written out", "inventory list")
    lines = ["| what | time | processor time of Ansible's processes | beside | goal |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(each)} |" for each in rows)])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(PARTS), action="append")
    given = parser.parse_args()
    parts = given.only or list(PARTS)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"{name}: {value:.3f} s (load {os.getloadavg()[0]:.1f})", file=sys.stderr)

    hosts = {"ten": 1, "hundred": HOSTS_OF_HUNDRED, "info": 1, "inventory": HOSTS}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        lab = Lab(f"bench-{os.getpid()}", folder / "fleet")
        lab.up(max(hosts[part] for part in parts))
        try:
            bench = Bench(lab, folder)
            for _round in range(given.rounds):
                for part in parts:
                    PARTS[part](bench, note)
        finally:
            lab.down()
    print(table({name: statistics.median(values) for name, values in found.items()}))


if __name__ == "__main__":
    main()
