"""An instance with a kernel of its own, User Mode Linux, for what needs modules of the kernel, such as NFS."""

from virtfleet.lab import processes
from virtfleet.lab.programs import run

from tests.instances.instance import Instance
from tests.instances.machine_disk import FIRST_PROGRAM_AT, Start

MEMORY_MIB = 2048  # one of them may run the control plane; taken when used
SSH_SECONDS = 60.0


def boot(instance: Instance, start: Start) -> None:
    """Start the instance, whose own files lie prepared in `upper` of its folder. Raises LabError."""
    wanted = f"boot the instance {instance.name}"
    layout, folder = instance.layout, instance.folder
    cables = []
    for interface, letter, bridge in (("eth0", "m", layout.management_bridge), ("eth1", "g", layout.guest_bridge)):
        tap = f"{layout.prefix}{letter}{instance.number}"
        run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], wanted)
        run(["ip", "link", "set", tap, "master", bridge, "up"], wanted)
        cables.append(f"{interface}=tuntap,{tap},{instance.mac(interface)}")
    argv = [
        # In a PID namespace, so that the processes of the instance's processes end with it.
        *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "tini", "--"),
        *(str(start.kernel), f"mem={MEMORY_MIB}M", f"umid={instance.name}", f"uml_dir={folder}"),
        *(
            f"ubd0={folder / 'disk.cow'},{start.disk}",
            "root=/dev/ubda",
            "rootfstype=ext4",
            "rootflags=barrier=0",
            "rw",
            *cables,
        ),
        *("con=null", "con0=null,fd:1", "ssl=null", "quiet", "systemd.mask=getty@tty1.service"),
        *(f"init=/{FIRST_PROGRAM_AT}", f"instance={folder / 'upper'}"),
    ]
    processes.start(layout.id, instance.name, argv, folder / "boot.log")


def run_inside(instance: Instance, argv: list[str], wanted: str) -> str:
    """Run a program inside the instance, by SSH, and return its output. Raises LabError."""
    layout = instance.layout
    options = ["-i", str(layout.key), "-o", f"UserKnownHostsFile={layout.known_hosts}", "-o", "BatchMode=yes"]
    remote = ["ssh", *options, "-o", "ConnectTimeout=5", f"root@{instance.address}", "--"]
    return run([*remote, *(f"'{word}'" for word in argv)], wanted, timeout=SSH_SECONDS)
