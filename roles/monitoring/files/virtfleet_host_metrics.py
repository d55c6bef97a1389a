#!/usr/bin/python3
"""Writes what node_exporter and libvirt's exporter do not measure, in Prometheus' text format, to the file it is given.

Pools, the newest snapshot of each machine, the start of each machine, the end of each certificate. Looks only, over
libvirt's read-only socket. With `--gmond FILE` it tells the same to Ganglia, whose gmond has these settings.
"""

import argparse
import datetime
import hashlib
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple


class Metric(NamedTuple):
    """What a metric is: its unit, the label that tells one of its values from another (or none), and what it means."""

    unit: str
    label: str
    meaning: str


# Every metric of virtfleet's own, under the names that Prometheus, Ganglia, alert rules and dashboards use.
METRICS = {
    "virtfleet_pool_capacity_bytes": Metric("bytes", "pool", "Size of an active pool."),
    "virtfleet_pool_available_bytes": Metric("bytes", "pool", "What is free in an active pool."),
    "virtfleet_snapshot_newest_timestamp_seconds": Metric(
        "seconds", "domain", "When the newest snapshot of a machine was taken."
    ),
    "virtfleet_machine_start_timestamp_seconds": Metric("seconds", "domain", "When a machine that runs was started."),
    "virtfleet_certificate_end_timestamp_seconds": Metric("seconds", "file", "When a certificate ends."),
    "virtfleet_metrics_success": Metric("", "part", "Whether this part could be measured: 1, or 0."),
    "virtfleet_metrics_timestamp_seconds": Metric("seconds", "", "When all this was measured."),
}
CERTIFICATES = ("/etc/pki/libvirt/servercert.pem", "/etc/pki/qemu/server-cert.pem", "/etc/pki/CA/cacert.pem")
RUNNING = Path("/run/libvirt/qemu")
PATIENCE_SECONDS = 30
# Measured once a minute. Ganglia forgets what it has not been told of for so long, such as a pool that is gone.
INTERVAL_SECONDS = 60
FORGOTTEN_AFTER_SECONDS = 600
# Ganglia makes a file's name of a metric's, and writes it into its XML as it is.
HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Sample(NamedTuple):
    """One value of a metric, in the metric's unit."""

    name: str
    which: str
    value: float

    def for_prometheus(self) -> str:
        """Return one line of the text format."""
        escaped = self.which.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        label = METRICS[self.name].label
        inside = f'{{{label}="{escaped}"}}' if label else ""
        return f"{self.name}{inside} {self.value:.17g}\n"

    def for_ganglia(self) -> str:
        """Return the name that Ganglia has for it, which knows no labels: `name.which`.

        What a user named has its harmful characters replaced; then a hash keeps it apart from its likes.
        """
        which = self.which
        if which and not HARMLESS.fullmatch(which):
            replaced = re.sub("[^A-Za-z0-9_.-]", "_", which)[:64]
            which = f"{replaced}-{hashlib.sha256(which.encode()).hexdigest()[:8]}"
        return f"{self.name}.{which}" if which else self.name


def output(*argv: str) -> str:
    """Run a program and return what it prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS).stdout


def virsh(*argv: str) -> str:
    """Ask libvirt, over the socket that lets everybody look."""
    return output("virsh", "--readonly", "--connect", "qemu:///system", *argv)


def names(text: str) -> list[str]:
    """Return the lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def pools() -> list[Sample]:
    """Return the sizes of the active pools, in bytes."""
    found = []
    for pool in names(virsh("pool-list", "--name")):
        capacity, available = sizes(pool)
        found.append(Sample("virtfleet_pool_capacity_bytes", pool, capacity))
        found.append(Sample("virtfleet_pool_available_bytes", pool, available))
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


def snapshots() -> list[Sample]:
    """Return when the newest snapshot of each machine that has any was taken."""
    found = []
    for machine in names(virsh("list", "--all", "--name")):
        times = []
        for snapshot in names(virsh("snapshot-list", machine, "--name")):
            xml = virsh("snapshot-dumpxml", machine, snapshot)
            created = ET.fromstring(xml).findtext("creationTime")  # noqa: S314 - libvirt writes no DTD
            times += [float(created)] if created else []
        if times:
            found.append(Sample("virtfleet_snapshot_newest_timestamp_seconds", machine, max(times)))
    return found


def starts() -> list[Sample]:
    """Return when each machine that runs was started: QEMU writes its pid then."""
    found = []
    for machine in names(virsh("list", "--name")):
        file = RUNNING / f"{machine}.pid"
        if file.exists():
            found.append(Sample("virtfleet_machine_start_timestamp_seconds", machine, file.stat().st_mtime))
    return found


def certificates() -> list[Sample]:
    """Return when each certificate ends."""
    found = []
    for file in CERTIFICATES:
        if Path(file).exists():
            text = output("openssl", "x509", "-in", file, "-noout", "-enddate", "-dateopt", "iso_8601")
            end = datetime.datetime.fromisoformat(text.strip().partition("=")[2].replace("Z", "+00:00"))
            found.append(Sample("virtfleet_certificate_end_timestamp_seconds", file, end.timestamp()))
    return found


def text_format(samples: list[Sample]) -> str:
    """Return all of it in Prometheus' text format; values of one metric stand together."""
    lines = []
    for name, metric in METRICS.items():
        of_it = [sample.for_prometheus() for sample in samples if sample.name == name]
        lines += [f"# HELP {name} {metric.meaning}\n", f"# TYPE {name} gauge\n", *of_it] if of_it else []
    return "".join(lines)


def tell_ganglia(gmond_settings: str, samples: list[Sample]) -> None:
    """Send all of it where this machine's gmond sends what it measures."""
    for sample in samples:
        metric = METRICS[sample.name]
        output(
            *("gmetric", f"--conf={gmond_settings}", "--group=virtfleet", f"--desc={metric.meaning}"),
            *(f"--name={sample.for_ganglia()}", f"--value={sample.value:.17g}", "--type=double"),
            *([f"--units={metric.unit}"] if metric.unit else []),
            *(f"--tmax={INTERVAL_SECONDS}", f"--dmax={FORGOTTEN_AFTER_SECONDS}"),
        )


def main(arguments: list[str]) -> int:
    """Measure, replace the file at once, tell Ganglia; return 1 when a part could not be measured or told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the file to write")
    parser.add_argument("--gmond", metavar="FILE", help="the settings of gmond, if Ganglia is to be told")
    options = parser.parse_args(arguments)
    samples: list[Sample] = []
    status = 0
    for part in (pools, snapshots, starts, certificates):
        worked = 1
        try:
            samples += part()
        except (OSError, ValueError, KeyError, subprocess.SubprocessError, ET.ParseError) as error:
            complain(part.__name__, error)
            worked, status = 0, 1
        samples.append(Sample("virtfleet_metrics_success", part.__name__, worked))
    samples.append(Sample("virtfleet_metrics_timestamp_seconds", "", round(time.time(), 3)))
    fresh = options.target.with_suffix(".new")
    fresh.write_text(text_format(samples))
    fresh.chmod(0o644)
    fresh.rename(options.target)
    if options.gmond:
        try:
            tell_ganglia(options.gmond, samples)
        except (OSError, subprocess.SubprocessError) as error:
            complain("ganglia", error)
            status = 1
    return status


def complain(part: str, error: Exception) -> None:
    """Say in the journal what did not work: the program's own words, if it had any."""
    print(f"{part}: {getattr(error, 'stderr', None) or error}".strip(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
