# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters over the placement library: that each is documented as it is, and what its errors read like."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.virtfleet.core.plugins.filter.placement import FilterModule
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts import place_machines

FILTERS = FilterModule().filters()
FOLDER = Path(inspect.getfile(FilterModule)).parent
MIB = 2**20

HOST = {
    "name": "h1",
    "live": True,
    "vcpus": {"total": 2, "allocated": 0},
    "memory": {"total_bytes": 2048 * MIB, "allocated_bytes": 0},
    "pools": [{"name": "default", "active": True, "capacity_bytes": 10240 * MIB, "allocation_bytes": 0}],
    "machines": [],
}
MACHINE = {
    "name": "a",
    "vcpus": 1,
    "memory": "512 MiB",
    "disks": [{"pool": "default", "size": "1GiB", "image": "base"}],
}


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_is_documented_in_the_file_of_its_name(name: str) -> None:
    documents = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    documentation = documents["DOCUMENTATION"]
    assert documentation["name"] == name
    assert set(documents) == {"DOCUMENTATION", "EXAMPLES", "RETURN"}
    assert isinstance(yaml.safe_load(documents["EXAMPLES"]), list)


def test_the_options_of_place_are_those_documented() -> None:
    options = yaml.safe_load((FOLDER / "place.yml").read_text(encoding="utf-8"))["DOCUMENTATION"]["options"]
    parameters = inspect.signature(place_machines).parameters
    taken = {name for name in parameters if name not in {"machines", "host_infos", "parse_size"}}
    assert set(options) == taken | {"_input", "hosts"}
    for name in taken:
        default = parameters[name].default
        assert options[name].get("default") == default, name


def test_place_decides_where_machines_go() -> None:
    decision = FILTERS["place"]([MACHINE], [HOST], policy="first_fit")
    assert decision["by_host"] == {"h1": ["a"]}


@pytest.mark.parametrize(
    ("machines", "hosts", "options", "text"),
    [
        ([{**MACHINE, "memory": "512"}], [HOST], {}, "machines[0].memory: Failed to read '512'"),
        ([MACHINE], [{**HOST, "vcpus": {}}], {}, "hosts[0].vcpus.total"),
        ([MACHINE], [HOST], {"policy": "luck"}, "policy: there is no policy 'luck'"),
        ([MACHINE], [HOST], {"polcy": "luck"}, "polcy"),
        ([MACHINE], None, {}, "hosts: a list is wanted"),
    ],
)
def test_place_says_which_field_is_wrong(machines: object, hosts: object, options: dict[str, str], text: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        FILTERS["place"](machines, hosts, **options)
    assert text in str(caught.value)


STATE = {
    "schema_version": 1,
    "hosts": [
        {"name": name, "vcpus": {"total": 8}, "memory": {"total_bytes": 16 * 1024 * MIB}} for name in ("h1", "h2")
    ],
    "vms": [{"id": f"v{n}", "host": "h1", "vcpus": 1, "memory_bytes": 2048 * MIB} for n in range(4)],
}
HISTORY = {"now": 0, "subject": "v1", "samples": [{"time": 0, "values": {"cpu": 99.0}}]}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rebalance", (STATE, {"max_moves": 1})),
        ("consolidate", (STATE,)),
        ("drain", (STATE, ["h1"])),
        ("capacity", (STATE, [{"name": "small", "vcpus": 1, "memory_bytes": 1024 * MIB}])),
        ("what_if", (STATE, {"lose_hosts": ["h1"]})),
        ("score", (STATE,)),
        ("scale", (HISTORY, {"kind": "resize"})),
    ],
)
def test_every_answer_can_be_read_as_lines(name: str, values: tuple[object, ...]) -> None:
    lines = FILTERS["explain"](FILTERS[name](*values))
    assert lines
    assert all(isinstance(line, str) and line for line in lines)
    with pytest.raises(AnsibleFilterError, match=f"virtfleet.core.{name}: "):
        FILTERS[name]({}, *values[1:])
