"""The small guest image, booted by plain QEMU under emulation: what a machine of the fleet may count on."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtfleet.lab.guest_image.build import ensure_image

BOOT_SECONDS = 180.0  # five when the machine is idle
MAC = "52:54:00:0a:0b:0c"
# QEMU's user network: the guest may take any address of it, the gateway is .2, and DHCP gives .15.
STATIC = "10.0.2.77"

USER_DATA = """#cloud-config
hostname: web-1
ssh_authorized_keys: ["{key}"]
write_files:
  - path: /etc/motd
    content: |
      it's "me": \\n
    permissions: '0600'
runcmd:
  - echo one two > /root/line
  - [sh, -c, "echo 'three  four' > /root/list"]
"""
NETWORK_V2 = {
    "version": 2,
    "ethernets": {
        "net0": {
            "match": {"macaddress": MAC.upper()},
            "addresses": [f"{STATIC}/24"],
            "gateway4": "10.0.2.2",
            "nameservers": {"addresses": ["10.0.2.3"]},
        }
    },
}
NETWORK_V1 = f"""version: 1
config:
  - type: physical
    name: eth0
    mac_address: "{MAC}"
    subnets:
      - type: static
        address: {STATIC}
        netmask: 255.255.255.0
        gateway: 10.0.2.2
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, check: Callable[[], Any], seconds: float = BOOT_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s")


class Guest:
    """A booted guest. `control` speaks QEMU's own protocol, `agent` the guest agent's."""

    def __init__(self, folder: Path, *options: str, disk_bytes: int = 0, address: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.ssh_port, self.http_port = folder, free_port(), free_port()
        disk = folder / "disk.qcow2"
        if not disk.exists():
            size = [str(disk_bytes)] if disk_bytes else []
            backing = ("-f", "qcow2", "-F", "qcow2", "-b", str(ensure_image()))
            subprocess.run(["qemu-img", "create", "-q", *backing, str(disk), *size], check=True)
        forward = (
            f"hostfwd=tcp:127.0.0.1:{self.ssh_port}-{address}:22,hostfwd=tcp:127.0.0.1:{self.http_port}-{address}:80"
        )
        # A small cache of translated code (MiB): with the default a second boot in a process takes thrice as long. With
        # 32 it is full after a boot, and QEMU 7.2 aborts when a CPU is plugged then.
        self.process = subprocess.Popen(
            [
                *(
                    "qemu-system-x86_64",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-accel",
                    "tcg,tb-size=64",
                    "-cpu",
                    "qemu64",
                    "-m",
                    "128",
                ),
                *("-smp", "1,maxcpus=2,sockets=2,cores=1,threads=1"),
                *("-netdev", f"user,id=net0,restrict=on,{forward}"),
                *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
                *("-drive", f"file={disk},if=none,id=disk0,format=qcow2", "-device", "virtio-blk-pci,drive=disk0"),
                *(
                    "-device",
                    "virtio-serial-pci",
                    "-chardev",
                    f"socket,id=agent,path={folder}/agent,server=on,wait=off",
                ),
                *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
                *("-serial", f"file:{folder}/serial", "-qmp", f"unix:{folder}/control,server=on,wait=off"),
                *options,
            ],
            stdin=subprocess.DEVNULL,
        )

    def serial(self) -> str:
        file = self.folder / "serial"
        return file.read_text(errors="replace") if file.exists() else ""

    def booted(self, times: int = 1) -> None:
        """Wait for the boot script's end: a connection tried before it makes QEMU's network hold back the next one."""
        eventually("the end of the boot script", lambda: self.serial().count(" ready") == times)

    def _talk(self, name: str, command: dict[str, Any], greeting: bool) -> Any:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(1)
            line.connect(str(self.folder / name))
            with line.makefile("rw") as stream:
                if greeting:
                    stream.readline()
                    self._ask(stream, {"execute": "qmp_capabilities"})
                return self._ask(stream, command)

    @staticmethod
    def _ask(stream: Any, command: dict[str, Any]) -> Any:
        stream.write(json.dumps(command) + "\n")
        stream.flush()
        while True:
            answer = json.loads(stream.readline() or "{}")
            if "event" not in answer:
                return answer

    def control(self, command: str, **arguments: Any) -> None:
        answer = self._talk("control", {"execute": command, "arguments": arguments}, greeting=True)
        assert "return" in answer, answer

    def agent(self, command: str) -> Any:
        try:
            return self._talk("agent", {"execute": command}, greeting=False)
        except (OSError, ValueError):
            return None

    def ssh(self, command: str, *options: str, key: Path) -> subprocess.CompletedProcess[str]:
        fixed = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "ConnectTimeout=10",
        ]
        words = [word for option in (*fixed, *options) for word in ("-o", option)]
        identity = ["-i", str(key), "-o", "IdentitiesOnly=yes"]
        line = ["ssh", *words, *identity, "-p", str(self.ssh_port), "root@127.0.0.1", command]
        return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def http(self, path: str = "/") -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def _start(*options: str, **more: Any) -> Guest:
        guests.append(Guest(tmp_path / "guest", *options, **more))
        return guests[-1]

    yield _start
    for guest in guests:
        guest.end()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def make_seed(tmp_path: Path, key: Path, network: str, *names: str) -> Path:
    folder = tmp_path / "seed"
    folder.mkdir()
    (folder / "meta-data").write_text('{"instance-id": "i-1", "local-hostname": "other"}')
    (folder / "user-data").write_text(USER_DATA.replace("{key}", key.with_suffix(".pub").read_text().strip()))
    (folder / "network-config").write_text(network)
    seed = tmp_path / "seed.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", *names, "-V", "cidata", "-o", str(seed), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return seed


def test_a_seed_on_a_virtio_disk_with_joliet_names_gives_name_key_address_files_and_commands(
    start: Callable[..., Guest], tmp_path: Path, key: Path
) -> None:
    seed = make_seed(tmp_path, key, json.dumps(NETWORK_V2), "-J")
    started = time.monotonic()
    guest = start(
        *("-drive", f"file={seed},if=none,id=seed,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=seed"),
        disk_bytes=1024**3,
        address=STATIC,
    )
    guest.booted()
    page = eventually("HTTP on the static address", guest.http)
    print(f"HTTP after {time.monotonic() - started:.1f} s")
    assert page.strip() == "web-1"
    assert "node_memory_MemTotal_bytes" in guest.http("/cgi-bin/metrics")
    assert guest.http("/cgi-bin/burn?3").splitlines() == ["5", "web-1"]
    eventually("the guest agent", lambda: guest.agent("guest-ping"))

    # The user's commands and the file system's growth are done behind the services' backs.
    eventually("runcmd's second command", lambda: guest.ssh("test -s /root/list", key=key).returncode == 0)
    told = guest.ssh(
        "hostname; cat /etc/motd /root/line /root/list; stat -c %a /etc/motd; cat /proc/mounts; df -m /", key=key
    ).stdout
    assert told.splitlines()[:5] == ["web-1", 'it\'s "me": \\n', "one two", "three  four", "600"]
    assert 900 < int(told.splitlines()[-1].split()[1]) < 1024, "the root file system fills the disk"

    # Passwords: refused by the server, and none would be right.
    refused = guest.ssh("true", "PreferredAuthentications=none,password,keyboard-interactive", key=key)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr
    assert guest.ssh("grep ^root: /etc/shadow", key=key).stdout.startswith("root:*:")

    guest.control("device_add", driver="qemu64-x86_64-cpu", id="cpu1", **{"socket-id": 1, "core-id": 0, "thread-id": 0})
    eventually(
        "the second CPU at work",
        lambda: guest.ssh("grep -c ^processor /proc/cpuinfo", key=key).stdout.strip() == "2",
        10,
    )

    guest.ssh("echo kept > /root/kept; shutdown -r now", key=key)
    guest.booted(times=2)
    eventually("SSH after a reboot", lambda: guest.ssh("cat /root/kept", key=key).stdout.strip() == "kept")

    guest.control("system_powerdown")
    assert guest.process.wait(timeout=BOOT_SECONDS) == 0, "the power button switches it off"


@pytest.mark.parametrize(
    "drive",
    [
        pytest.param(("-drive", "file={seed},if=ide,media=cdrom,format=raw"), id="ide-cdrom"),
        pytest.param(
            (
                *("-device", "virtio-scsi-pci", "-drive", "file={seed},if=none,id=seed,format=raw,readonly=on"),
                *("-device", "scsi-cd,drive=seed"),
            ),
            id="scsi-cdrom",
        ),
    ],
)
def test_a_seed_on_a_cdrom_with_rock_ridge_names_and_the_old_network_format_is_taken_too(
    start: Callable[..., Guest], tmp_path: Path, key: Path, drive: tuple[str, ...]
) -> None:
    seed = make_seed(tmp_path, key, NETWORK_V1, "-R")
    guest = start(*(word.format(seed=seed) for word in drive), address=STATIC)
    guest.booted()
    assert eventually("HTTP on the static address", guest.http).strip() == "web-1"
    assert eventually("SSH", lambda: guest.ssh("hostname", key=key).stdout).strip() == "web-1"


def test_a_guest_without_a_seed_comes_up_by_dhcp_and_lets_nobody_in(start: Callable[..., Guest], key: Path) -> None:
    guest = start()
    guest.booted()
    assert eventually("HTTP on the address from DHCP", guest.http).strip() == "tiny"
    eventually("a refusal", lambda: "Permission denied (publickey)." in guest.ssh("true", key=key).stderr)
    eventually("the guest agent", lambda: guest.agent("guest-ping"))
    guest.agent("guest-shutdown")
    assert guest.process.wait(timeout=BOOT_SECONDS) == 0, "the guest agent's shutdown works"


def test_the_image_is_built_once() -> None:
    started = time.monotonic()
    assert ensure_image() == ensure_image()
    assert time.monotonic() - started < 1
    told = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", str(ensure_image())], capture_output=True, check=True
        ).stdout
    )
    assert told["virtual-size"] == 64 * 1024 * 1024
    assert "backing-filename" not in told
