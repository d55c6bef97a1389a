"""What the fleet measures of itself, under the names that role `monitoring` gives to the same on a host."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from virtfleet.models import Host, Job, Snapshot, Vm
from virtfleet.services import capacity
from virtfleet.services.auth import Principal


@dataclass(frozen=True)
class About:
    """What a metric is: its unit ("" for a plain number), what tells its values apart, and what it means."""

    unit: str
    labels: tuple[str, ...]
    meaning: str
    counter: bool = False


METRICS = {
    "virtfleet_host_up": About("", ("host",), "Whether a host answers: 1, or 0."),
    "virtfleet_host_maintenance": About("", ("host",), "Whether a host is in maintenance: 1, or 0."),
    "virtfleet_host_observed_timestamp_seconds": About("seconds", ("host",), "When a host last answered."),
    "virtfleet_host_vcpus": About("", ("host",), "Logical processors of a host."),
    "virtfleet_host_vcpus_allocated": About("", ("host",), "vCPUs promised to machines."),
    "virtfleet_host_memory_bytes": About("bytes", ("host",), "Memory of a host."),
    "virtfleet_host_memory_allocated_bytes": About("bytes", ("host",), "Memory promised to machines."),
    "virtfleet_host_memory_free_bytes": About("bytes", ("host",), "Memory that a host could give away when last seen."),
    "virtfleet_host_cpu_busy_seconds_total": About(
        "seconds", ("host",), "Time that the processors of a host were busy, since it started.", counter=True
    ),
    "virtfleet_pool_capacity_bytes": About("bytes", ("host", "pool"), "Size of an active pool."),
    "virtfleet_pool_available_bytes": About("bytes", ("host", "pool"), "What is free in an active pool."),
    "virtfleet_snapshot_newest_timestamp_seconds": About(
        "seconds", ("host", "domain"), "When the newest snapshot of a machine was taken."
    ),
    "virtfleet_machines": About("", ("host", "state"), "Machines of virtfleet on a host."),
    "virtfleet_jobs": About("", ("state",), "Jobs that are kept."),
}


@dataclass(frozen=True)
class Sample:
    """One value of a metric, in the metric's unit, with the values of its labels in their order."""

    name: str
    labels: tuple[str, ...]
    value: float


def of_fleet(session: Session, who: Principal) -> list[Sample]:
    """Return all that is measured, as the observer saw it last. What belongs to projects: only of the caller's."""
    hosts = capacity.hosts_of(session, None)
    jobs = select(Job.state, func.count()).group_by(Job.state)
    if not who.admin:
        jobs = jobs.where(Job.project_id == who.project_id)
    counted = [Sample("virtfleet_jobs", (state,), count) for state, count in session.execute(jobs)]
    return [*of_hosts(session, who, hosts), *counted]


def of_hosts(session: Session, who: Principal, hosts: Sequence[Host]) -> list[Sample]:
    """Return what is measured of these hosts and of the machines on them that the caller may see."""
    promised = capacity.of_hosts(session, hosts)
    found: list[Sample] = []
    for host in hosts:
        for name, value in _of_host(host, promised[host.name]):
            if value is not None:
                found.append(Sample(name, (host.name,), float(value)))
        for pool in host.info.get("pools", []) if host.state == "up" else []:
            for name, key in (("capacity", "capacity_bytes"), ("available", "available_bytes")):
                if pool["active"]:
                    found.append(Sample(f"virtfleet_pool_{name}_bytes", (host.name, pool["name"]), float(pool[key])))
    return found + list(_of_machines(session, who, [host.id for host in hosts]))


def _of_host(host: Host, promised: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield "virtfleet_host_up", host.state == "up"
    yield "virtfleet_host_maintenance", host.maintenance
    yield "virtfleet_host_observed_timestamp_seconds", host.observed_at.timestamp() if host.observed_at else None
    if host.info:
        yield "virtfleet_host_vcpus", promised["vcpus"]["total"]
        yield "virtfleet_host_vcpus_allocated", promised["vcpus"]["allocated"]
        yield "virtfleet_host_memory_bytes", promised["memory"]["total_bytes"]
        yield "virtfleet_host_memory_allocated_bytes", promised["memory"]["allocated_bytes"]
    if host.state == "up":  # what a host measured before it went is no measure of now
        yield "virtfleet_host_memory_free_bytes", host.info.get("memory", {}).get("free_bytes")
        yield "virtfleet_host_cpu_busy_seconds_total", (host.info.get("load") or {}).get("cpu_busy_seconds")


def _of_machines(session: Session, who: Principal, host_ids: list[str]) -> Iterator[Sample]:
    counts = select(Host.name, Vm.state, func.count()).join(Host, Host.id == Vm.host_id).group_by(Host.name, Vm.state)
    newest = (
        select(Host.name, Vm.libvirt_name, func.max(Snapshot.made_at))
        .join(Vm, Vm.id == Snapshot.vm_id)
        .join(Host, Host.id == Vm.host_id)
        .group_by(Host.name, Vm.libvirt_name)
    )
    seen = [Vm.host_id.in_(host_ids), *([] if who.admin else [Vm.project_id == who.project_id])]
    for host, state, count in session.execute(counts.where(*seen)):
        yield Sample("virtfleet_machines", (host, state), count)
    for host, domain, made_at in session.execute(newest.where(*seen)):
        yield Sample("virtfleet_snapshot_newest_timestamp_seconds", (host, domain), made_at.timestamp())


class _Given(Collector):
    """Values that were read already, as Prometheus' library takes them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, about in METRICS.items():
            kind = CounterMetricFamily if about.counter else GaugeMetricFamily
            families[name] = kind(name, about.meaning, labels=about.labels)
        for sample in self.samples:
            families[sample.name].add_metric(sample.labels, sample.value)
        return [family for family in families.values() if family.samples]


def exposition(samples: Sequence[Sample], accepted: str) -> tuple[bytes, str]:
    """Return the samples as text for Prometheus, in the format that the header Accept asks for, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(samples))
    encoder, media_type = choose_encoder(accepted)
    return encoder(registry), media_type
