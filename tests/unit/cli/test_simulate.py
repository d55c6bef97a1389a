"""`virtfleet simulate`: what it reads, what it reports, and that it needs nothing but the file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import export_htools
from typer.testing import CliRunner
from virtfleet.cli.main import app

GIB = 2**30
HOSTS = "CPU1,RAM1,CPU2,RAM2\n8,16,8,16\n8,16,8,16\n"
RACKS = "host_id,rack_id\nhost-0,0\nhost-1,1\n"
REQUESTS = (
    "flavor_vcpus,flavor_ram,numa,strategy,group,domain\n8,16,2,,,\n4,8,1,fault_domain,0,1\n4,8,1,fault_domain,0,2\n"
    "64,8,1,,,\n"
)
MACHINES = "name,cpu_milli,memory_mib,num_gpu,creation_time,deletion_time\n" + "".join(
    f"m{number},2000,4096,{int(number == 5)},{number},{number + 3}\n" for number in range(8)
)
LOADS = "vm0,vm1\n" + "10,80\n" * 4 + "10,90\n" * 4


def skewed() -> dict[str, Any]:
    """Four hosts, the machines on two of them."""
    hosts = [
        {"name": f"h{n}", "zone": "z", "vcpus": {"total": 8, "ratio": 4.0}, "memory": {"total_bytes": 32 * GIB}}
        for n in range(4)
    ]
    vms = [{"id": f"v{n}", "host": f"h{n % 2}", "vcpus": 2, "memory_bytes": 4 * GIB} for n in range(12)]
    return {"schema_version": 1, "hosts": hosts, "vms": vms}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIRTFLEET_HOME", str(tmp_path / "no-fleet"))
    file = tmp_path / "cluster.data"
    file.write_text(export_htools(skewed()), encoding="utf-8")
    return file


def run(*words: object) -> str:
    shown = CliRunner().invoke(app, ["simulate", *map(str, words)])
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def data(*words: object) -> dict[str, Any]:
    answer = json.loads(run(*words, "-o", "json"))
    assert isinstance(answer, dict)
    assert answer["cpu_seconds"] >= 0
    return answer


def refused(*words: object) -> str:
    shown = CliRunner().invoke(app, ["simulate", *map(str, words)])
    assert shown.exit_code == 2, shown.output
    assert "Traceback" not in shown.output
    return shown.stderr


def test_balance_reports_scores_moves_and_what_they_cost(cluster: Path) -> None:
    report = data("balance", cluster)
    assert report["score_after"] < 0.1 < report["score_before"]
    assert report["moves"]
    assert report["moves"][0]["from"] in ("h0", "h1")
    assert report["moved_gib"] == sum(move["bytes"] for move in report["moves"]) / GIB
    assert (report["hosts_used_before"], report["hosts_used_after"], report["rejected"]) == (2, 4, 0)
    assert (report["file_kind"], report["hosts_used"], report["wall_seconds"] >= 0) == ("htools", 4, True)
    assert not (cluster.parent / "no-fleet").exists()


def test_people_get_a_summary_and_a_table_of_the_moves(cluster: Path) -> None:
    shown = run("balance", cluster)
    assert "4, in use 2 → 4" in shown
    assert "STEP  VM" in shown
    assert len(run("balance", cluster, "-o", "name").splitlines()) == len(data("balance", cluster)["moves"])


def test_what_was_balanced_and_saved_has_nothing_left_to_do(cluster: Path, tmp_path: Path) -> None:
    saved = tmp_path / "after.data"
    before = data("balance", cluster, "--save", saved)
    after = data("balance", saved)
    assert after["moves"] == []
    assert after["score_before"] == pytest.approx(before["score_after"])
    assert "Failed to write" in refused("balance", cluster, "--save", tmp_path / "no" / "folder")


def test_options_of_a_balance_bind_it(cluster: Path) -> None:
    assert len(data("balance", cluster, "--max-moves", 2)["moves"]) == 2
    assert data("balance", cluster, "--enough", 100, "--min-gain", 100)["moves"] == []


def test_consolidate_frees_hosts(cluster: Path) -> None:
    spread = cluster.parent / "spread.data"
    data("balance", cluster, "--save", spread)
    report = data("consolidate", spread)
    assert report["hosts_used_after"] < report["hosts_used_before"] == 4
    assert report["freed"]
    assert data("consolidate", spread, "--least-hosts", 3)["hosts_used_after"] == 3


def test_capacity_counts_each_flavor_alone(cluster: Path) -> None:
    report = data("capacity", cluster, "--flavor", "1x4GiB", "--flavor", "1x8GiB")
    assert [(each["flavor"], each["fits"]) for each in report["flavors"]] == [("1x4GiB", 20), ("1x8GiB", 10)]
    assert "1x2GiB" in run("capacity", cluster)
    for wrong in ("2", "x4GiB", "2x4", "2x4GiBx1GiBx1GiB", "-1x4GiB", "²x4GiB"):
        assert "Failed to read" in refused("capacity", cluster, "--flavor", wrong)


def test_a_cluster_is_replayed_on_its_empty_hosts(cluster: Path) -> None:
    report = data("replay", cluster, "--policy", "bin_packing")
    assert (report["machines"], report["hosts_used_before"], report["hosts_used"]) == (12, 2, 2)
    assert data("replay", cluster, "--policy", "spread")["score_after"] < report["score_before"]


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_state_is_read_as_json_and_as_yaml(cluster: Path, write: Any) -> None:
    file = cluster.parent / "state"
    file.write_text(write(skewed()), encoding="utf-8")
    assert data("balance", file)["score_before"] == pytest.approx(data("balance", cluster)["score_before"])


def test_a_trace_of_requests_brings_hosts_racks_and_groups(tmp_path: Path) -> None:
    trace = tmp_path / "requests.csv"
    trace.write_text(REQUESTS, encoding="utf-8")
    assert "hosts.csv" in refused("replay", trace)
    (tmp_path / "hosts.csv").write_text(HOSTS, encoding="utf-8")
    (tmp_path / "topology.csv").write_text(RACKS, encoding="utf-8")
    report = data("replay", trace)
    assert (report["machines_at_once"], report["rejected"]) == (3, 1)
    assert report["rejections"][0]["request"] == "r3"
    assert run("replay", trace, "-o", "name") == "r3\n"
    assert data("balance", trace)["score_before"] >= 0


def test_machines_of_a_trace_come_and_go(tmp_path: Path) -> None:
    trace = tmp_path / "machines.csv"
    trace.write_text(MACHINES, encoding="utf-8")
    options = ("--policy", "bin_packing", "--host-vcpus", 2, "--host-memory", "8GiB")
    report = data("replay", trace, *options)
    assert (report["machines"], report["machines_at_once"], report["hosts_used"]) == (7, 3, 3)
    assert report["notes"] == ["1 machine left out: a GPU is wanted"]
    together = data("replay", trace, *options, "--at-once")
    assert (together["machines_at_once"], together["hosts_used"], together["rejected"]) == (7, 7, 0)
    assert data("replay", trace, *options, "--at-once", "--hosts", 3)["rejected"] == 4
    assert data("replay", trace, *options, "--hosts", 2)["rejected"] > 0
    assert data("capacity", trace, "--flavor", "2x4GiB", *options[2:], "--hosts", 4)["flavors"][0]["fits"] == 1
    assert "host" in refused("replay", trace, "--host-memory", "8")


def test_loads_are_judged_sample_by_sample(tmp_path: Path) -> None:
    trace = tmp_path / "loads.csv"
    trace.write_text(LOADS, encoding="utf-8")
    report = data("replay", trace)
    assert (report["machines"], report["actions"], report["flaps"]) == (2, 1, 0)
    assert "1, of them 0 within an hour" in run("replay", trace)
    assert data("replay", trace, "--up", 95)["actions"] == 0
    assert "virtfleet simulate replay" in refused("balance", trace)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no htools file, no state and no trace"),
        ("hello", "no htools file, no state and no trace"),
        ("group|uuid|preferred||\n\n\n", "no hosts"),
        ("group|uuid|preferred||\n\nn1|many|1|1|1|1|1|N|uuid\n", "line 3: memory in MiB is wanted, not 'many'"),
        ('{"schema_version": 1, "hosts": [', "neither JSON nor YAML"),
        ('{"schema_version": 2, "hosts": []}', "schema version 1"),
        ("[" * 5_000 + "schema_version", "JSON nor YAML"),
        ("schema_version: [", "neither JSON nor YAML"),
        ("- schema_version", "a mapping is wanted"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_a_sentence(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "file"
    file.write_text(content, encoding="utf-8")
    assert says in refused("balance", file)


def test_a_file_or_a_policy_that_is_not_there_is_named(cluster: Path) -> None:
    assert "Failed to read the file" in refused("balance", cluster.parent / "none")
    assert "there is no policy 'best'" in refused("replay", cluster, "--policy", "best")
    assert "one of fewest_hosts, volume_ratio is wanted" in refused("consolidate", cluster, "--rule", "all")


def test_the_command_loads_the_library_only_when_it_runs() -> None:
    program = "import sys\nfrom virtfleet.cli import simulate\nprint([n for n in sys.modules if 'ansible' in n])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
