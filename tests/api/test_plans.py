"""Plans over REST and by the command, on a fleet of rows: what they say, what they refuse, and that nothing changes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result
from virtfleet import database, settings
from virtfleet.app import PREFIX
from virtfleet.cli.main import app as command
from virtfleet.models import Host, Project, User, Vm
from virtfleet.services import auth
from werkzeug.serving import make_server

from tests.api.application import application
from tests.api.fleet_rows import GIB, add_host, add_vm, furnish


@pytest.fixture
def fleet(fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """An API over three hosts of 8 GiB, the first of which has six machines of 1 GiB."""
    settings.load.cache_clear()
    auth.first_start()
    furnish(tmp_path / "tiny.img")
    for number in (1, 2, 3):
        add_host(number)
    for number in range(6):
        add_vm(f"web{number}", "host1")
    server = make_server("127.0.0.1", 0, application(), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("VIRTFLEET_URL", url)
    monkeypatch.setenv("VIRTFLEET_TOKEN", auth.token_file().read_text().strip())
    before = where()
    try:
        headers = {"Authorization": f"Bearer {auth.token_file().read_text().strip()}"}
        with httpx.Client(base_url=url + PREFIX, headers=headers, timeout=60, trust_env=False) as http:
            yield http
        assert before.items() <= where().items(), "a plan moved something"
    finally:
        server.shutdown()
        thread.join()


def where() -> dict[str, str]:
    with database.read() as session:
        return {vm.name: vm.host.name for vm in session.scalars(select(Vm))}


def plan(fleet: httpx.Client, kind: str, **options: Any) -> dict[str, Any]:
    answer = fleet.post("/plans", json={"kind": kind, **options})
    assert answer.status_code == 200, answer.text
    drawn: dict[str, Any] = answer.json()
    assert drawn["kind"] == kind
    assert drawn["explanation"][0] == drawn["summary"]
    return drawn


def refused(fleet: httpx.Client, body: Any, status: int, code: str) -> dict[str, Any]:
    answer = fleet.post("/plans", json=body)
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert told["detail"]
    assert told["hint"]
    return told


def said(*words: str, code: int = 0) -> Result:
    shown = CliRunner().invoke(command, ["plan", *words])
    assert shown.exit_code == code, shown.output
    return shown


def test_a_balance_says_what_each_move_does_and_moves_nothing(fleet: httpx.Client) -> None:
    drawn = plan(fleet, "balance")
    assert drawn["score_after"] < 0.1 < drawn["score_before"]
    assert (drawn["hosts_used_before"], drawn["hosts_used_after"], drawn["hosts_total"]) == (1, 3, 3)
    assert len(drawn["moves"]) == 4
    move = drawn["moves"][0]
    assert move["text"].startswith(f"move {move['vm']} host1 → {move['to']}: score ")
    assert move["memory_percent"]["from"][0] > move["memory_percent"]["from"][1]
    assert move["machine"]["project"] == "default"
    assert fleet.get(f"/vms/{move['machine']['id']}").json()["name"] == move["vm"]
    assert drawn["observed_at"]
    assert drawn["generation"] > 0
    assert len(plan(fleet, "balance", max_moves=1)["moves"]) == 1
    assert "balanced" in plan(fleet, "balance", enough=100, min_gain=100)["summary"]


def test_a_consolidation_shows_the_choice(fleet: httpx.Client) -> None:
    add_vm("alone", "host2")
    drawn = plan(fleet, "consolidate", keep_n_plus_one=False)
    assert [(move["vm"], move["from"], move["to"]) for move in drawn["moves"]] == [("alone", "host2", "host1")]
    assert drawn["freed"] == ["host2"]
    assert drawn["choices"][0]["hosts_freed"] == 1
    assert plan(fleet, "consolidate", least_hosts=2)["moves"] == []
    assert plan(fleet, "consolidate", rule="volume_ratio")["rule"] == "volume_ratio"


def test_a_drain_names_what_must_stay_and_why(fleet: httpx.Client) -> None:
    add_vm("new", "host1", state="building")
    add_vm("gone", "host1", state="missing")
    assert fleet.post("/vms/web0/actions", json={"action": "stop"}).status_code == 202
    drawn = plan(fleet, "drain", hosts=["host1"])
    assert {each["vm"]: each["text"].partition(": ")[2] for each in drawn["left"]} == {
        "new": "it is being created",
        "gone": "its host no longer has it",
        "web0": "a job is at work on it",
    }
    assert {move["vm"] for move in drawn["moves"]} == {f"web{number}" for number in range(1, 6)}
    assert drawn["policy"] == settings.load().policy
    spread = plan(fleet, "drain", hosts=["1"], policy="spread")
    assert {move["to"] for move in spread["moves"]} == {"host2", "host3"}


def test_machines_of_a_host_that_is_down_cannot_be_moved_and_it_is_no_target(fleet: httpx.Client) -> None:
    add_vm("far", "host3")
    with database.write() as session:
        row = session.scalars(select(Host).where(Host.name == "host3")).one()
        row.state, row.error = "down", "no route"
    assert {move["to"] for move in plan(fleet, "balance")["moves"]} == {"host2"}
    assert "host3 is not live" in plan(fleet, "drain", hosts=["host3"])["left"][0]["text"]


def test_machines_that_are_not_ours_take_room_and_are_told_of(fleet: httpx.Client) -> None:
    with database.write() as session:
        row = session.scalars(select(Host).where(Host.name == "host2")).one()
        row.unmanaged = {"vcpus": 4, "memory_bytes": 8 * GIB, "pools": {}}
    drawn = plan(fleet, "drain", hosts=["host1"], policy="spread")
    assert {move["to"] for move in drawn["moves"]} == {"host3"}
    assert drawn["notes"] == ["host2 has machines that are not ours: they take room, and no plan moves them"]


def test_what_if_a_host_were_lost_or_more_came(fleet: httpx.Client) -> None:
    lost = plan(fleet, "what-if", lose_hosts=["host1"])
    assert lost["fits"]
    assert {each["vm"] for each in lost["restarted"]} == {f"web{number}" for number in range(6)}
    assert lost["restarted"][0]["machine"]["name"] == "web0"
    both = plan(fleet, "what-if", lose_hosts=["host2", "host3"], remove_vms=["web0"], add_vms=[{"memory": "4GiB"}])
    assert not both["fits"]
    assert "memory short by" in both["unplaced"][0]["explanation"]["text"]
    more = plan(
        fleet, "what-if", add_vms=[{"flavor": "small", "count": 30}], add_hosts=[{"vcpus": 8, "memory": "16GiB"}]
    )
    assert more["fits"]
    assert "new-host-1" in {each["host"] for each in more["placements"]}
    tight = plan(
        fleet,
        "what-if",
        add_vms=[{"vcpus": 1, "memory": "12GiB", "disk": "20GiB"}],
        add_hosts=[{"vcpus": 8, "memory": "16GiB", "disk": "10GiB"}],
    )
    assert "memory short on 3, pool short on 1" in tight["unplaced"][0]["explanation"]["text"]


def test_machines_stay_in_their_zone(fleet: httpx.Client) -> None:
    add_host(4, zone_name="east")
    drawn = plan(fleet, "balance")
    assert (drawn["zone"], drawn["hosts_total"]) == ("default", 3)
    assert plan(fleet, "balance", zone="east")["moves"] == []
    assert plan(fleet, "drain", hosts=["host4"])["zone"] == "east"
    told = refused(fleet, {"kind": "drain", "hosts": ["host1", "host4"]}, 422, "invalid")
    assert told["errors"][0]["field"] == "zone"
    refused(fleet, {"kind": "what-if", "zone": "east", "remove_vms": ["web0"]}, 422, "invalid")


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({}, 422, "invalid", "kind"),
        ({"kind": "luck"}, 422, "invalid", "kind"),
        ({"kind": "balance", "colour": 1}, 422, "invalid", "colour"),
        ({"kind": "balance", "hosts": ["host1"]}, 422, "invalid", "hosts"),
        ({"kind": "drain"}, 422, "invalid", "hosts"),
        ({"kind": "drain", "hosts": []}, 422, "invalid", "hosts"),
        ({"kind": "drain", "hosts": ["host1"], "rule": "fewest_hosts"}, 422, "invalid", "rule"),
        ({"kind": "drain", "hosts": ["host1"], "policy": "luck"}, 422, "invalid", "policy"),
        ({"kind": "drain", "hosts": ["host1"], "policy": {"name": "x", "scorers": {"y": 1}}}, 422, "invalid", "policy"),
        ({"kind": "consolidate", "rule": "luck"}, 422, "invalid", "rule"),
        ({"kind": "balance", "max_moves": -1}, 422, "invalid", "max_moves"),
        ({"kind": "balance", "max_moves": "3"}, 422, "invalid", "max_moves"),
        ({"kind": "balance", "enough": "x"}, 422, "invalid", "enough"),
        ({"kind": "what-if", "add_hosts": [{"vcpus": 1}]}, 422, "invalid", "add_hosts"),
        ({"kind": "what-if", "add_vms": [{"memory": "2"}]}, 422, "invalid", "add_vms"),
        ({"kind": "what-if", "add_vms": [{"count": 900}, {"count": 900}]}, 422, "invalid", "add_vms"),
        ({"kind": "what-if", "add_vms": [{"flavor": "none"}]}, 404, "not_found", None),
        ({"kind": "what-if", "lose_hosts": ["none"]}, 404, "not_found", None),
        ({"kind": "what-if", "remove_vms": ["none"]}, 404, "not_found", None),
        ({"kind": "balance", "zone": "none"}, 404, "not_found", None),
        ({"kind": "drain", "hosts": ["{{ 1 }}\u202e"]}, 422, "invalid", "hosts"),
        ([], 422, "invalid", None),
    ],
)
def test_what_cannot_be_planned_is_a_problem_naming_the_field(
    fleet: httpx.Client, body: Any, status: int, code: str, field: str | None
) -> None:
    told = refused(fleet, body, status, code)
    if field is not None:
        assert told["errors"][0]["field"].startswith(field), told


def test_a_plan_shows_every_projects_machines_and_so_needs_its_own_scope(fleet: httpx.Client) -> None:
    with database.write() as session:
        who = auth.system(session)
        user, project = session.get_one(User, who.user_id), session.get_one(Project, who.project_id)
        tokens = {scope: auth.issue(session, user, project, scope, [scope]) for scope in ("vms:read", "plans:read")}
    for scope, status in (("vms:read", 403), ("plans:read", 200)):
        headers = {"Authorization": f"Bearer {tokens[scope]}"}
        assert fleet.post("/plans", json={"kind": "balance"}, headers=headers).status_code == status


def test_a_fleet_without_hosts_says_so(fleet_home: Path) -> None:
    auth.first_start()
    headers = {"Authorization": f"Bearer {auth.token_file().read_text().strip()}"}
    answer = application().test_client().post(f"{PREFIX}/plans", json={"kind": "balance"}, headers=headers)
    assert (answer.status_code, json.loads(answer.data)["code"]) == (409, "not_ready")


def test_the_specification_has_the_kinds_and_their_options(fleet: httpx.Client) -> None:
    spec = fleet.get("/openapi.json").json()
    operation = spec["paths"]["/api/v1/plans"]["post"]
    assert operation["x-scope"] == "plans:read"
    schema = spec["components"]["schemas"]["PlanIn"]
    assert schema["properties"]["kind"]["enum"] == ["balance", "consolidate", "drain", "what-if"]
    assert schema["properties"]["rule"]["description"].startswith("consolidate:")


def test_the_command_writes_a_table_for_people_and_all_of_it_for_programs(fleet: httpx.Client) -> None:
    shown = said("balance").stdout
    assert "STEP  VM" in shown
    assert "host1 75 → 62 %, host2 0 → 12 %" in shown
    assert "SUMMARY" in shown
    told = json.loads(said("balance", "-o", "json").stdout)
    assert told == plan(fleet, "balance")
    assert said("balance", "-o", "name").stdout.split() == [move["vm"] for move in told["moves"]]
    assert len(json.loads(said("balance", "--max-moves", "1", "-o", "json").stdout)["moves"]) == 1


def test_the_command_drains_consolidates_and_asks_what_if(fleet: httpx.Client) -> None:
    assert "LOSS OF A HOST" in said("drain", "host1").stdout
    add_vm("new", "host1", state="building")
    left = said("drain", "host1", code=4)
    assert "MUST STAY BECAUSE" in left.stdout
    assert "it is being created" in left.stdout
    assert said("consolidate", "--rule", "volume_ratio").stdout
    lost = said("what-if", "--lose-host", "host1", "--policy", "spread").stdout
    assert "STARTS ON" in lost
    full = said("what-if", "--add-vm", "1x9GiB", "--add-vm", "small", "--count", "2", code=4).stdout
    assert "HAS NO PLACE BECAUSE" in full
    assert "ALL FIT         yes" in said("what-if", "--add-host", "8x64GiB", "--add-vm", "1x9GiBx2GiB").stdout
    assert "such as 16x64GiB" in said("what-if", "--add-host", "big", code=2).stderr
    assert "no flavor 'big'" in said("what-if", "--add-vm", "big", code=3).stderr
    assert "rule" in said("consolidate", "--rule", "luck", code=2).stderr


def test_a_placement_is_a_real_packing_explained_and_reserves_nothing(fleet: httpx.Client) -> None:
    """12 GiB and more are free in sum, but only in pieces: all or nothing says which machine has no place, and why."""
    decision = fleet.post("/placements", json={"count": 4, "memory": "5GiB", "name": "big"}).json()
    assert not decision["fits"]
    assert decision["placements"] == []
    assert decision["generation"] > 0
    texts = [each["explanation"]["text"] for each in decision["unplaced"]]
    assert sum("all or nothing" in text for text in texts) == 2
    assert "memory short by" in next(text for text in texts if "all or nothing" not in text)
    told = fleet.post("/vms", json={"count": 4, "memory": "5GiB", "name": "big"}).json()
    assert "fits on none of 3 hosts" in told["detail"]
    assert [each["host"] for each in told["hosts"]] == ["host1", "host2", "host3"]
    shown = CliRunner().invoke(command, ["placement", "explain", "--memory", "5GiB", "--policy", "spread"])
    assert "refused" in shown.stdout
    assert "chosen" in shown.stdout
    named = CliRunner().invoke(command, ["placement", "explain", "--memory", "5GiB", "-o", "name"])
    assert named.stdout in ("host2\n", "host3\n")
    full = CliRunner().invoke(command, ["placement", "explain", "--memory", "9GiB", "-o", "json"])
    assert (full.exit_code, json.loads(full.stdout)["fits"]) == (4, False)
    data = CliRunner().invoke(command, ["placement", "explain", "--memory", "5GiB", "-o", "json"])
    assert json.loads(data.stdout)["placements"][0]["explanation"]["ranked"]
