"""What hosts measure of virtfleet's own: one list of names, the same for Prometheus and for Ganglia."""

import re

import pytest

from tests.checks.runner import ROOT
from tests.unit.roles.programs import load

ROLE = ROOT / "roles/monitoring"
OURS = re.compile(r"\bvirtfleet_[a-z_]+")


metrics = load("monitoring/files/virtfleet_host_metrics.py")


@pytest.mark.parametrize("file", ["templates/rules.yml.j2", "files/virtfleet.dashboard.json"])
def test_rules_and_dashboard_ask_for_metrics_that_there_are(file: str) -> None:
    asked = set(OURS.findall((ROLE / file).read_text()))
    assert asked
    assert asked <= set(metrics.METRICS)


def test_what_is_measured_is_in_the_list() -> None:
    program = (ROLE / "files/virtfleet_host_metrics.py").read_text()
    told = set(re.findall(r'Sample\("(\w+)"', program))
    assert told == set(metrics.METRICS)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_a_name_ends_with_its_unit(name: str) -> None:
    unit = metrics.METRICS[name].unit
    assert not unit or name.endswith(f"_{unit}")


def test_the_text_says_what_a_metric_means_once_and_has_its_values_together() -> None:
    samples = [
        metrics.Sample("virtfleet_pool_capacity_bytes", "a", 2.0**40),
        metrics.Sample("virtfleet_pool_available_bytes", "a", 5),
        metrics.Sample("virtfleet_pool_capacity_bytes", 'b"\\\n', 7),
    ]
    assert metrics.text_format(samples).splitlines() == [
        "# HELP virtfleet_pool_capacity_bytes Size of an active pool.",
        "# TYPE virtfleet_pool_capacity_bytes gauge",
        'virtfleet_pool_capacity_bytes{pool="a"} 1099511627776',
        'virtfleet_pool_capacity_bytes{pool="b\\"\\\\\\n"} 7',
        "# HELP virtfleet_pool_available_bytes What is free in an active pool.",
        "# TYPE virtfleet_pool_available_bytes gauge",
        'virtfleet_pool_available_bytes{pool="a"} 5',
    ]


def test_ganglia_has_the_same_name_and_what_the_label_says_behind_a_dot() -> None:
    assert metrics.Sample("virtfleet_pool_capacity_bytes", "fast-1.x", 1).for_ganglia() == (
        "virtfleet_pool_capacity_bytes.fast-1.x"
    )
    assert metrics.Sample("virtfleet_metrics_timestamp_seconds", "", 1).for_ganglia() == (
        "virtfleet_metrics_timestamp_seconds"
    )


HOSTILE = ["../../etc/passwd", 'a"/><HOST NAME="b', "a b", "a_b", "a\nb", "é", "x" * 300, "x" * 301]


def test_what_a_user_named_is_a_harmless_file_name_of_its_own_for_ganglia() -> None:
    names = [metrics.Sample("virtfleet_pool_capacity_bytes", which, 1).for_ganglia() for which in HOSTILE]
    assert len(set(names)) == len(HOSTILE)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", name) for name in names)


def test_gmetric_is_told_each_value_with_unit_and_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(metrics, "output", lambda *argv: told.append(argv))
    metrics.tell_ganglia("/etc/gmond.conf", [metrics.Sample("virtfleet_snapshot_newest_timestamp_seconds", "vm", 9.5)])
    assert told == [
        (
            "gmetric",
            "--conf=/etc/gmond.conf",
            "--group=virtfleet",
            "--desc=When the newest snapshot of a machine was taken.",
            "--name=virtfleet_snapshot_newest_timestamp_seconds.vm",
            "--value=9.5",
            "--type=double",
            "--units=seconds",
            "--tmax=60",
            "--dmax=600",
        )
    ]
