"""The REST API over a real database: rights, errors, idempotency, pages, and what is decided without any worker."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from virtfleet import database, settings
from virtfleet.app import PREFIX
from virtfleet.models import Address, Job, Project, Secret, User, Vm
from virtfleet.services import auth
from werkzeug.test import TestResponse

from tests.api.application import application
from tests.api.fleet_rows import GIB, add_host, furnish

OPEN = {"/api/v1/healthz", "/api/v1/readyz", "/api/v1/openapi.json", "/api/v1/docs"}


class Caller:
    """The API as one token's holder sees it."""

    def __init__(self, client: FlaskClient, token: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        more = {} if body is None else {"json": body}
        return self._client.open(PREFIX + path, method=method, headers={**self._headers, **named}, **more)


@pytest.fixture
def client(fleet_home: Path, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setenv("VIRTFLEET_S1_ENABLED", "1")
    settings.load.cache_clear()
    auth.first_start()
    return application().test_client()


@pytest.fixture
def api(client: FlaskClient) -> Caller:
    return Caller(client, auth.token_file().read_text().strip())


@pytest.fixture
def fleet(api: Caller, tmp_path: Path) -> Iterator[Caller]:
    add_host(1)
    add_host(2)
    furnish(tmp_path / "tiny.img")
    yield api
    assert promised_twice() == {}


def promised_twice() -> dict[str, int]:
    """Return the hosts whose machines were promised more memory than there is."""
    with database.read() as session:
        taken: Counter[str] = Counter()
        room = {}
        for vm in session.query(Vm):
            taken[vm.host.name] += vm.memory_bytes
            room[vm.host.name] = vm.host.info["memory"]["total_bytes"]
        return {host: size for host, size in taken.items() if size > room[host]}


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(response.data)
    assert (response.status_code, told["code"]) == (status, code), told
    assert response.mimetype == "application/problem+json"
    assert told["detail"]
    return told


def count(table: Any) -> int:
    with database.read() as session:
        return session.query(table).count()


def test_every_route_says_who_may_use_it_and_is_closed_without_a_token(client: FlaskClient) -> None:
    app = client.application
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        assert hasattr(app.view_functions[rule.endpoint], "required_scope"), rule
        if rule.rule in OPEN or not rule.rule.startswith(PREFIX):
            continue
        path = rule.rule.replace("<ref>", "x")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            problem(client.open(path, method=method), 401, "unauthorized")
            wrong = client.open(path, method=method, headers={"Authorization": "Bearer vf_wrong"})
            problem(wrong, 401, "unauthorized")


def test_a_token_allows_what_its_scopes_say(client: FlaskClient, api: Caller) -> None:
    with database.write() as session:
        who = auth.system(session)
        user = session.get_one(User, who.user_id)
        project = session.get_one(Project, who.project_id)
        token = auth.issue(session, user, project, "reader", ["hosts:read"])
    reader = Caller(client, token)
    assert reader("GET", "/hosts").status_code == 200
    problem(reader("POST", "/hosts", {"uri": "10.0.0.1"}), 403, "forbidden")
    problem(reader("GET", "/vms"), 403, "forbidden")


def test_health_is_open_and_readiness_names_what_is_missing(client: FlaskClient) -> None:
    assert client.get(f"{PREFIX}/healthz").json == {"status": "ok"}
    waiting = client.get(f"{PREFIX}/readyz")
    assert waiting.status_code == 503
    assert waiting.json is not None
    assert waiting.json["missing"] == ["worker", "observer", "controller"]


def test_the_specification_describes_every_route_and_the_page_shows_it(client: FlaskClient) -> None:
    spec = client.get(f"{PREFIX}/openapi.json").json
    assert spec is not None
    described = {(path, method.upper()) for path, methods in spec["paths"].items() for method in methods}
    for rule in client.application.url_map.iter_rules():
        path = rule.rule.replace("<", "{").replace(">", "}")
        if not path.startswith(PREFIX) or path.endswith(("/openapi.json", "/docs")):
            continue
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert (path, method) in described
            operation = spec["paths"][path][method.lower()]
            assert operation["responses"]["default"]["content"]["application/problem+json"]
            assert ("security" in operation) == (path not in OPEN), path
    assert spec["paths"]["/api/v1/vms"]["post"]["requestBody"]
    page = client.get(f"{PREFIX}/docs").text
    assert "/api/v1/vms" in page
    assert "Idempotency-Key" in page


def test_a_create_reserves_everything_at_once(fleet: Caller) -> None:
    answer = fleet("POST", "/vms", {"name": "web1"})
    assert answer.status_code == 202
    body = answer.json
    assert body is not None
    assert answer.headers["Location"] == f"/api/v1/jobs/{body['job']['id']}"
    vm = body["vms"][0]
    assert (vm["state"], vm["flavor"], vm["image"], vm["host"]) == ("building", "small", "tiny", "host1")
    assert vm["address"] == "10.9.0.2"
    assert vm["explanation"]["chosen"] == "host1"
    job = fleet("GET", answer.headers["Location"].removeprefix(PREFIX)).json
    assert job is not None
    assert (job["kind"], job["vms"], job["hosts"]) == ("vm.create", ["web1"], ["host1"])
    capacity = fleet("GET", "/capacity").json
    assert capacity is not None
    assert capacity["memory"]["allocated_bytes"] == GIB


def test_what_fits_on_no_host_is_a_conflict_with_every_hosts_reasons(fleet: Caller) -> None:
    told = problem(fleet("POST", "/vms", {"name": "big", "memory": "9GiB"}), 409, "no_capacity")
    assert {each["host"]: bool(each["reasons"]) for each in told["hosts"]} == {"host1": True, "host2": True}
    assert (count(Vm), count(Job), count(Address)) == (0, 0, 0)


def test_several_machines_are_reserved_together_or_not_at_all(fleet: Caller) -> None:
    problem(fleet("POST", "/vms", {"name": "n", "count": 17}), 409, "no_capacity")
    assert count(Vm) == 0
    answer = fleet("POST", "/vms", {"name": "n", "count": 3, "policy": "round_robin"})
    assert answer.json is not None
    assert [(vm["name"], vm["host"]) for vm in answer.json["vms"]] == [
        ("n-1", "host1"),
        ("n-2", "host2"),
        ("n-3", "host1"),
    ]
    again = fleet("POST", "/vms", {"name": "m", "policy": "round_robin"}).json
    assert again is not None
    assert again["vms"][0]["host"] == "host2"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid"),
        ({"name": "a", "nam": 1}, 422, "invalid"),
        ({"name": 5}, 422, "invalid"),
        ({"name": "a", "memory": 512}, 422, "invalid"),
        ({"name": "a", "memory": "512"}, 422, "invalid"),
        ({"name": "a", "vcpus": 0}, 422, "invalid"),
        ({"name": "a", "count": 0}, 422, "invalid"),
        ({"name": "a", "disk": "256B"}, 422, "invalid"),
        ({"name": "a", "flavor": "none"}, 404, "not_found"),
        ({"name": "a", "image": "none"}, 404, "not_found"),
        ({"name": "a", "zone": "none"}, 404, "not_found"),
        ({"name": "a", "host": "none"}, 404, "not_found"),
        ({"name": "a", "network": "other"}, 404, "not_found"),
        ({"name": "a", "policy": "none"}, 422, "invalid"),
        ({"name": "a", "policy": {"name": "x", "$secret": "sec_1"}}, 422, "invalid"),
        ({"name": "a", "address": "10.9.1.1"}, 422, "invalid"),
        ({"name": "a", "address": "x"}, 422, "invalid"),
        ({"name": "a", "count": 2, "address": "10.9.0.9"}, 422, "invalid"),
        ({"name": "a", "ssh_keys": ["not a key"]}, 422, "invalid"),
        ({"name": "a", "wait_for": "godot"}, 422, "invalid"),
        ({"name": "a", "paused": True, "start": False}, 422, "invalid"),
        ({"name": "a", "paused": True, "wait_for": "agent"}, 422, "invalid"),
    ],
)
def test_wrong_input_is_a_problem_and_leaves_nothing(fleet: Caller, body: Any, status: int, code: str) -> None:
    problem(fleet("POST", "/vms", body), status, code)
    assert (count(Vm), count(Job), count(Address)) == (0, 0, 0)


def test_an_image_larger_than_the_disk_is_refused(fleet: Caller) -> None:
    with database.write() as session:
        image = session.query(Vm.metadata.tables["images"]).first()
        assert image is not None
        session.execute(Vm.metadata.tables["images"].update().values(virtual_size_bytes=2 * GIB))
    told = problem(fleet("POST", "/vms", {"name": "a"}), 422, "invalid")
    assert "2048 MiB" in told["detail"]


def test_text_that_is_no_json_is_a_problem(fleet: Caller, client: FlaskClient) -> None:
    token = auth.token_file().read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for data in (b"{", b"", b"[]", b'"x"', b"null", b'{"name": "\xff"}', b'{"name": "\\ud800"}'):
        answer = client.post(f"{PREFIX}/vms", data=data, headers=headers)
        assert answer.status_code in (400, 422), (data, answer.data)
        assert answer.mimetype == "application/problem+json"


def test_a_repeated_request_is_answered_as_before_and_done_once(fleet: Caller) -> None:
    def ask(_number: int) -> TestResponse:
        return fleet("POST", "/vms", {"name": "one"}, Idempotency_Key="k1")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.data for answer in answers}) == 1
    assert count(Vm) == 1
    problem(fleet("POST", "/vms", {"name": "two"}, Idempotency_Key="k1"), 422, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("wish", "state"), [({}, "running"), ({"start": False}, "present"), ({"paused": True}, "paused")]
)
def test_a_machine_is_made_running_stopped_or_paused(fleet: Caller, wish: dict[str, Any], state: str) -> None:
    assert fleet("POST", "/vms", {"name": "web1", **wish}).status_code == 202
    with database.read() as session:
        assert session.query(Vm).one().spec["state"] == state


def test_a_name_is_taken_once(fleet: Caller) -> None:
    assert fleet("POST", "/vms", {"name": "one"}).status_code == 202
    problem(fleet("POST", "/vms", {"name": "one"}), 409, "already_exists")


def test_parallel_creates_that_do_not_all_fit_promise_nothing_twice(fleet: Caller) -> None:
    def ask(number: int) -> TestResponse:
        return fleet("POST", "/vms", {"name": f"p{number}"})

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(ask, range(50)))
    states = Counter(answer.status_code for answer in answers)
    assert states == {202: 16, 409: 34}
    assert count(Vm) == 16
    with database.read() as session:
        given = [row.address for row in session.query(Address)]
    assert len(set(given)) == 16


def test_hosts_that_are_down_or_in_maintenance_get_nothing(fleet: Caller) -> None:
    assert fleet("PATCH", "/hosts/host1", {"maintenance": True}).status_code == 200
    vm = fleet("POST", "/vms", {"name": "a"}).json
    assert vm is not None
    assert vm["vms"][0]["host"] == "host2"
    with database.write() as session:
        session.execute(Vm.metadata.tables["hosts"].update().values(state="down", error="it is frozen"))
    told = problem(fleet("POST", "/vms", {"name": "b"}), 409, "no_capacity")
    assert any("frozen" in reason for host in told["hosts"] for reason in host["reasons"])


def test_a_queued_creation_that_is_deleted_is_gone_at_once(fleet: Caller) -> None:
    fleet("POST", "/vms", {"name": "a", "user_data": "secret text"})
    assert count(Secret) == 1
    answer = fleet("DELETE", "/vms/a")
    assert answer.status_code == 202
    assert answer.json is not None
    assert answer.json["job"]["state"] == "cancelled"
    problem(fleet("GET", "/vms/a"), 404, "not_found")
    assert (count(Vm), count(Address), count(Secret)) == (0, 0, 0)


def test_etags_guard_changes(fleet: Caller) -> None:
    shown = fleet("GET", "/hosts/host1")
    tag = shown.headers["ETag"]
    assert fleet("GET", "/hosts/host1", If_None_Match=tag).status_code == 304
    assert fleet("PATCH", "/hosts/host1", {"reserved_vcpus": 1}, If_Match=tag).status_code == 200
    problem(fleet("PATCH", "/hosts/host1", {"reserved_vcpus": 2}, If_Match=tag), 412, "changed_meanwhile")


def test_lists_come_in_pages(fleet: Caller) -> None:
    for number in range(5):
        fleet("POST", "/flavors", {"name": f"f{number}", "vcpus": 1, "memory": "1GiB", "disk": "1GiB"})
    names, cursor = [], ""
    while True:
        page = fleet("GET", f"/flavors?limit=2{cursor}").json
        assert page is not None
        names += [flavor["name"] for flavor in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert names == ["small", "f0", "f1", "f2", "f3", "f4"]
    problem(fleet("GET", "/flavors?cursor=nonsense"), 400, "bad_request")


def test_changes_tell_what_happened_in_order(fleet: Caller) -> None:
    before = fleet("GET", "/changes").json
    assert before is not None
    fleet("POST", "/vms", {"name": "a"})
    after = fleet("GET", f"/changes?since={before['next']}").json
    assert after is not None
    assert ("vm", "created") in [(change["type"], change["action"]) for change in after["items"]]
    numbers = [change["seq"] for change in after["items"]]
    assert numbers == sorted(numbers)


def test_a_placement_is_tried_without_reserving_anything(fleet: Caller) -> None:
    decision = fleet("POST", "/placements", {"count": 2}).json
    assert decision is not None
    assert decision["fits"]
    assert [each["request"] for each in decision["placements"]] == ["vm-1", "vm-2"]
    assert count(Vm) == 0


def test_things_in_use_are_not_removed(fleet: Caller) -> None:
    fleet("POST", "/vms", {"name": "a"})
    problem(fleet("DELETE", "/hosts/host1"), 409, "in_use")
    problem(fleet("DELETE", "/images/tiny"), 409, "in_use")
    problem(fleet("DELETE", "/networks/guests"), 409, "in_use")
    problem(fleet("DELETE", "/zones/default"), 409, "in_use")
    assert fleet("DELETE", "/flavors/small").status_code == 204


def test_the_fleets_own_files_are_no_images(fleet: Caller, fleet_home: Path) -> None:
    for name in ("virtfleet.db", "admin.token"):
        problem(fleet("POST", "/images", {"source": str(fleet_home / name), "name": "x"}), 422, "invalid")
    problem(fleet("POST", "/images", {"source": "/dev/zero"}), 422, "invalid")


def test_user_data_are_nowhere_in_the_database_or_the_answers(fleet: Caller, fleet_home: Path) -> None:
    marker = "MARKER-4711-MARKER"
    answer = fleet("POST", "/vms", {"name": "a", "user_data": f"#cloud-config\n# {marker}\n"})
    job = answer.json["job"]["id"] if answer.json else ""
    seen = [answer, fleet("GET", "/vms/a"), fleet("GET", f"/jobs/{job}"), fleet("GET", "/changes")]
    for each in seen:
        assert marker not in each.text
    database.dispose()
    for path in fleet_home.rglob("*"):
        if path.is_file():
            assert marker.encode() not in path.read_bytes(), path
    replay = fleet("GET", f"/jobs/{job}/replay").json
    assert replay is not None
    assert marker not in json.dumps(replay["files"])
    assert marker in json.dumps(replay["secrets"])


def test_an_image_by_url_needs_its_checksum_and_no_query(fleet: Caller) -> None:
    url, checksum = "http://127.0.0.1:9/tiny.qcow2", "sha256:" + "a" * 64
    problem(fleet("POST", "/images", {"source": url}), 422, "invalid")
    problem(fleet("POST", "/images", {"source": f"{url}?token=x", "checksum": checksum}), 422, "invalid")
    made = fleet("POST", "/images", {"source": url, "checksum": checksum, "name": "byurl"})
    assert made.status_code == 201
    job = fleet("POST", "/vms", {"name": "a", "image": "byurl"}).json
    assert job is not None
    imports = fleet("GET", "/jobs?kind=image.import").json
    assert imports is not None
    assert [each["state"] for each in imports["items"]] == ["queued"]
