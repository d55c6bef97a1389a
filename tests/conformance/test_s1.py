"""The examination of S1's contract: every call, right and wrong, compared with what libvirt says."""

from typing import Any

import httpx
import pytest

from tests.lab.fleet import Fleet

pytestmark = pytest.mark.lab

UNKNOWN = {"vmid": 0, "name": "", "instance_type": 0, "pmid": 0}


def ask(fleet: Fleet, path: str, **params: Any) -> Any:
    """Call S1's way: no token, GET, HTTP 200 whatever happens, JSON."""
    answer = httpx.get(f"{fleet.url}{path}", params=params, timeout=180, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def machines(fleet: Fleet) -> dict[str, tuple[str, int]]:
    return {name: found for host in fleet.lab.hosts() for name, found in fleet.domains(host.name).items()}


def test_the_types_and_images_are_those_registered(fleet: Fleet) -> None:
    assert ask(fleet, "/vm/types") == {"types": [{"tid": 1, "cpu": 1, "ram": 128, "disk": 1}]}
    assert ask(fleet, "/image/list") == {"images": [{"id": 100, "name": "tiny"}]}


def test_a_machine_is_created_queried_and_destroyed_as_libvirt_says(fleet: Fleet) -> None:
    before = machines(fleet)
    created = ask(fleet, "/vm/create", name="test_vm", instance_type=1)
    assert set(created) == {"vmid"}
    assert created["vmid"] > 0
    told = ask(fleet, "/vm/query", vmid=created["vmid"])
    assert told == {"vmid": created["vmid"], "name": "test_vm", "instance_type": 1, "pmid": told["pmid"]}
    host = fleet.get(f"/hosts/{told['pmid']}")["name"]
    assert fleet.domains(host)["test_vm"][1] == 1
    assert ask(fleet, "/vm/destroy", vmid=created["vmid"]) == {"status": 1}
    assert machines(fleet) == before
    assert ask(fleet, "/vm/destroy", vmid=created["vmid"]) == {"status": 0}
    assert ask(fleet, "/vm/query", vmid=created["vmid"]) == UNKNOWN


def test_equal_names_are_two_machines_told_apart_by_vmid(fleet: Fleet) -> None:
    first = ask(fleet, "/vm/create", name="same", instance_type=1, image_id=100)["vmid"]
    second = ask(fleet, "/vm/create", name="same", instance_type=1)["vmid"]
    assert 0 < first < second
    assert {ask(fleet, "/vm/query", vmid=vmid)["name"] for vmid in (first, second)} == {"same"}
    assert ask(fleet, "/vm/destroy", vmid=first) == {"status": 1}
    assert ask(fleet, "/vm/query", vmid=second)["vmid"] == second
    assert len(machines(fleet)) == 1


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": "x"},
        {"instance_type": 1},
        {"name": "", "instance_type": 1},
        {"name": "x", "instance_type": 9},
        {"name": "x", "instance_type": -1},
        {"name": "x", "instance_type": "one"},
        {"name": "x", "instance_type": "1" * 400},
        {"name": "x", "instance_type": 1, "image_id": 7},
        {"name": "x", "instance_type": 1, "image_id": "x"},
        {"name": "{{ 7*7 }}", "instance_type": 1},
        {"name": "../x", "instance_type": 1},
        {"name": "<x/>", "instance_type": 1},
        {"name": "$(id)", "instance_type": 1},
        {"name": "x" * 3000, "instance_type": 1},
        {"name": "a\0b", "instance_type": 1},
        {"name": "😀", "instance_type": 1},
    ],
)
def test_a_wrong_create_is_0_and_makes_nothing(fleet: Fleet, params: dict[str, Any]) -> None:
    assert ask(fleet, "/vm/create", **params) == {"vmid": 0}
    assert machines(fleet) == {}


@pytest.mark.parametrize("vmid", ["", "0", "-1", "x", "99999999", "1" * 300, "1;2", "😀"])
def test_an_unknown_machine_is_0(fleet: Fleet, vmid: str) -> None:
    assert ask(fleet, "/vm/query", vmid=vmid) == UNKNOWN
    assert ask(fleet, "/vm/destroy", vmid=vmid) == {"status": 0}


def test_what_fits_nowhere_is_0(fleet: Fleet) -> None:
    fleet.post("/flavors", {"name": "huge", "vcpus": 1, "memory": "900GiB", "disk": "1GiB", "number": 77})
    try:
        assert ask(fleet, "/vm/create", name="x", instance_type=77) == {"vmid": 0}
    finally:
        fleet.http.delete("/flavors/huge")
    assert machines(fleet) == {}
