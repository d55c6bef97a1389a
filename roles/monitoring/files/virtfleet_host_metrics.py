#!/usr/bin/python3
"""Writes what node_exporter and libvirt's exporter do not measure, in Prometheus' text format, to the file it is given.

Pools, the newest snapshot of each machine, the start of each machine, the end of each certificate. Looks only, over
libvirt's read-only socket.
"""

import datetime
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

CERTIFICATES = ("/etc/pki/libvirt/servercert.pem", "/etc/pki/qemu/server-cert.pem", "/etc/pki/CA/cacert.pem")
RUNNING = Path("/run/libvirt/qemu")
PATIENCE_SECONDS = 30


def output(*argv: str) -> str:
    """Run a program and return what it prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS).stdout


def virsh(*argv: str) -> str:
    """Ask libvirt, over the socket that lets everybody look."""
    return output("virsh", "--readonly", "--connect", "qemu:///system", *argv)


def names(text: str) -> list[str]:
    """Return the lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def sample(name: str, labels: dict[str, str], value: float) -> str:
    """Return one line of the text format."""
    escaped = {key: text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, text in labels.items()}
    inside = ",".join(f'{key}="{text}"' for key, text in escaped.items())
    return f"{name}{{{inside}}} {value:.17g}\n"


def pools() -> list[str]:
    """Return the sizes of the active pools, in bytes."""
    found = []
    for pool in names(virsh("pool-list", "--name")):
        capacity, available = sizes(pool)
        found.append(sample("virtfleet_pool_capacity_bytes", {"pool": pool}, capacity))
        found.append(sample("virtfleet_pool_available_bytes", {"pool": pool}, available))
    return found


def sizes(pool: str) -> tuple[float, float]:
    """Return capacity and free space of a pool; a folder's from the kernel, as libvirt's are of its last look."""
    xml = ET.fromstring(virsh("pool-dumpxml", pool))  # noqa: S314 - libvirt writes no DTD
    path = xml.findtext("target/path")
    if xml.get("type") in ("dir", "fs", "netfs") and path:
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    facts = dict(line.split(":", 1) for line in virsh("pool-info", "--bytes", pool).splitlines() if ":" in line)
    return float(facts["Capacity"]), float(facts["Available"])


def snapshots() -> list[str]:
    """Return when the newest snapshot of each machine that has any was taken."""
    found = []
    for machine in names(virsh("list", "--all", "--name")):
        times = []
        for snapshot in names(virsh("snapshot-list", machine, "--name")):
            xml = virsh("snapshot-dumpxml", machine, snapshot)
            created = ET.fromstring(xml).findtext("creationTime")  # noqa: S314 - libvirt writes no DTD
            times += [float(created)] if created else []
        if times:
            found.append(sample("virtfleet_snapshot_newest_timestamp_seconds", {"domain": machine}, max(times)))
    return found


def starts() -> list[str]:
    """Return when each machine that runs was started: QEMU writes its pid then."""
    found = []
    for machine in names(virsh("list", "--name")):
        file = RUNNING / f"{machine}.pid"
        if file.exists():
            labels = {"domain": machine}
            found.append(sample("virtfleet_machine_start_timestamp_seconds", labels, file.stat().st_mtime))
    return found


def certificates() -> list[str]:
    """Return when each certificate ends."""
    found = []
    for file in CERTIFICATES:
        if Path(file).exists():
            text = output("openssl", "x509", "-in", file, "-noout", "-enddate", "-dateopt", "iso_8601")
            end = datetime.datetime.fromisoformat(text.strip().partition("=")[2].replace("Z", "+00:00"))
            found.append(sample("virtfleet_certificate_end_timestamp_seconds", {"file": file}, end.timestamp()))
    return found


def main(target: Path) -> int:
    """Measure and replace the file at once; return 1 when a part could not be measured."""
    lines, status = [], 0
    for part in (pools, snapshots, starts, certificates):
        worked = 1
        try:
            lines += part()
        except (OSError, ValueError, KeyError, subprocess.SubprocessError, ET.ParseError) as error:
            said = getattr(error, "stderr", None) or error
            print(f"{part.__name__}: {said}".strip(), file=sys.stderr)
            worked, status = 0, 1
        lines.append(sample("virtfleet_metrics_success", {"part": part.__name__}, worked))
    lines.append(f"virtfleet_metrics_timestamp_seconds {time.time():.3f}\n")
    fresh = target.with_suffix(".new")
    fresh.write_text("".join(lines))
    fresh.chmod(0o644)
    fresh.rename(target)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
