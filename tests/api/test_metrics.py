"""What the fleet measures, for Prometheus and as JSON: names as in role `monitoring`; of machines only the own."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select
from virtfleet import clock, database
from virtfleet.ids import new_id
from virtfleet.models import Host, Project, Snapshot, Token
from virtfleet.services import metrics

from tests.api import fleet_rows
from tests.api.test_migrations import client
from tests.unit.roles.programs import load

__all__ = ["client"]
GIB = 2**30
Values = dict[tuple[str, ...], float]


def told(client: FlaskClient) -> dict[str, Values]:
    answer = client.get("/api/v1/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    found: dict[str, Values] = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = metrics.METRICS[sample.name].labels
        found.setdefault(sample.name, {})[tuple(sample.labels[label] for label in labels)] = sample.value
    return found


def change_host(name: str, **values: Any) -> None:
    with database.write() as session:
        row = session.scalars(select(Host).where(Host.name == name)).one()
        for key, value in values.items():
            setattr(row, key, value)


def snapshot(vm_id: str) -> float:
    """Write down a snapshot of a machine; return when it was made."""
    with database.write() as session:
        made_at = clock.now()
        session.add(
            Snapshot(
                id=new_id("snp"),
                vm_id=vm_id,
                name="s1",
                mode="internal",
                memory=False,
                state="running",
                description="",
                parent=None,
                current=True,
                disks=[],
                made_at=made_at,
                observed_at=made_at,
            )
        )
        return made_at.timestamp()


def become_a_reader_of_another_project() -> None:
    with database.write() as session:
        project = Project(id=new_id("prj"), name="others")
        session.add(project)
        session.flush()
        token = session.scalars(select(Token)).one()
        token.project_id, token.scopes = project.id, ["hosts:read"]


def test_prometheus_is_told_of_hosts_pools_machines_and_jobs(client: FlaskClient) -> None:
    vm_id = fleet_rows.add_vm("web1", "host1", memory_bytes=GIB, vcpus=2)
    fleet_rows.add_vm("web2", "host1", state="stopped")
    made_at = snapshot(vm_id)
    found = told(client)
    assert found["virtfleet_host_up"]["host1",] == 1
    assert found["virtfleet_host_vcpus_allocated"]["host1",] == 3
    assert found["virtfleet_host_memory_bytes"]["host1",] == 8 * GIB
    assert found["virtfleet_host_memory_allocated_bytes"]["host1",] == 2 * GIB
    assert found["virtfleet_pool_available_bytes"]["host1", "default"] == 100 * GIB
    assert found["virtfleet_machines"] == {("host1", "running"): 1, ("host1", "stopped"): 1}
    assert found["virtfleet_snapshot_newest_timestamp_seconds"]["host1", "web1"] == pytest.approx(made_at)


def test_of_a_host_that_is_down_no_old_measure_is_told_as_new(client: FlaskClient) -> None:
    change_host("host1", state="down")
    found = told(client)
    assert found["virtfleet_host_up"]["host1",] == 0
    assert found["virtfleet_host_memory_bytes"]["host1",] == 8 * GIB
    for name in ("virtfleet_host_memory_free_bytes", "virtfleet_pool_available_bytes"):
        assert "host1" not in {labels[0] for labels in found.get(name, {})}


def test_a_host_that_nobody_has_seen_is_told_as_not_up(client: FlaskClient) -> None:
    change_host("host1", state="unknown", info={}, observed_at=None)
    assert told(client)["virtfleet_host_up"]["host1",] == 0
    names = {each["name"] for each in client.get("/api/v1/hosts/host1/metrics").get_json()["items"]}
    assert names == {"virtfleet_host_up", "virtfleet_host_maintenance"}


def test_machines_and_jobs_of_other_projects_are_not_told(client: FlaskClient) -> None:
    snapshot(fleet_rows.add_vm("web1", "host1"))
    assert "virtfleet_machines" in told(client)
    become_a_reader_of_another_project()
    found = told(client)
    assert found["virtfleet_host_up"]["host1",] == 1
    assert not {"virtfleet_machines", "virtfleet_snapshot_newest_timestamp_seconds", "virtfleet_jobs"} & set(found)


def test_one_host_as_json_has_units_and_meanings(client: FlaskClient) -> None:
    fleet_rows.add_vm("web1", "host2")
    items = client.get("/api/v1/hosts/host1/metrics").get_json()["items"]
    assert {each["labels"]["host"] for each in items} == {"host1"}
    assert {
        "name": "virtfleet_pool_capacity_bytes",
        "labels": {"host": "host1", "pool": "default"},
        "value": 100.0 * GIB,
        "unit": "bytes",
        "meaning": "Size of an active pool.",
    } in items
    assert client.get("/api/v1/hosts/nobody/metrics").get_json()["code"] == "not_found"


def test_metrics_need_a_token(client: FlaskClient) -> None:
    for path in ("/api/v1/metrics", "/api/v1/hosts/host1/metrics"):
        assert client.get(path, headers={"Authorization": ""}).status_code == 401


def test_what_role_monitoring_measures_too_has_the_same_name_unit_label_and_meaning() -> None:
    of_role = load("monitoring/files/virtfleet_host_metrics.py").METRICS
    common = set(of_role) & set(metrics.METRICS)
    assert {name for name in metrics.METRICS if name.startswith(("virtfleet_pool_", "virtfleet_snapshot_"))} == common
    for name in common:
        ours, theirs = metrics.METRICS[name], of_role[name]
        assert (ours.unit, ours.labels, ours.meaning) == (theirs.unit, ("host", theirs.label), theirs.meaning)
