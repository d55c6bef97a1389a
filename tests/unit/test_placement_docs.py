"""The policy and the algorithm in docs/placement.md work as they are written there, and are as short as promised."""

import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.virtfleet.core.plugins.filter.placement import FilterModule
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import NAMED, place
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import read_state
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.scorers import SCORERS
from jinja2 import Environment

PAGE = (Path(__file__).resolve().parents[2] / "docs/placement.md").read_text(encoding="utf-8")
GIB = 2**30


def block(language: str, begins: str) -> str:
    """Return the one block of the page in a language that begins so."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.M | re.S)
    [text] = [each for each in found if each.startswith(begins)]
    return str(text)


def host(name: str, used: int = 0, **more: Any) -> dict[str, Any]:
    memory = {"total_bytes": 32 * GIB, "allocated_bytes": used * GIB}
    return {"name": name, "vcpus": {"total": 16}, "memory": memory, **more}


def where(hosts: list[dict[str, Any]], policy: object) -> dict[str, str]:
    requests = [{"id": f"vm{n}", "vcpus": 1, "memory_bytes": GIB} for n in range(3)]
    decision = place({"schema_version": 1, "hosts": hosts}, requests, policy)
    return {each["request"]: each["host"] for each in decision["placements"]}


def test_the_state_is_one_that_is_read() -> None:
    state = read_state(yaml.safe_load(block("yaml", "schema_version")))
    assert {vm.id: (vm.groups, vm.stays) for vm in state.vms} == {
        "gpu-1": ((), "it has a card of this host"),
        "web-1": (("web",), None),
    }


def test_the_task_over_fresh_values_of_the_hosts_says_what_the_filters_take() -> None:
    [task] = yaml.safe_load(block("yaml", "- name: Say what would empty host h3"))
    filters = {f"virtfleet.core.{name}": each for name, each in FilterModule().filters().items()}
    own = Environment(autoescape=False)
    own.filters |= {**filters, "extract": lambda key, of, inside: of[key][inside]}
    infos = {
        name: {"name": name, "live": True, "vcpus": {"total": 8, "allocated": 0}, "machines": machines}
        | {"memory": {"total_bytes": 32 * GIB, "allocated_bytes": 0}}
        for name, machines in {
            "h1": [],
            "h3": [{"name": each, "vcpus": 1, "memory_bytes": GIB} for each in ("gpu1", "web1")],
        }.items()
    }
    hostvars = {name: {"found": {"host": info}} for name, info in infos.items()}
    lines = own.from_string(task["ansible.builtin.debug"]["msg"]).render(ansible_play_hosts=infos, hostvars=hostvars)
    assert "move web1 h3 → h1" in lines
    assert "gpu1 must stay: it has a card of this host" in lines


def test_the_policy_in_yaml_works_and_has_ten_lines() -> None:
    text = block("yaml", "# policy")
    assert len(text.splitlines()) <= 10
    hosts = [host("h1"), host("h2", 8, tags=["ssd"]), host("h3", 4, tags=["ssd"])]
    assert set(where(hosts, yaml.safe_load(text)).values()) == {"h2"}


def test_the_algorithm_in_python_works_and_has_twenty_lines() -> None:
    text = block("python", "from ansible_collections")
    assert len(text.splitlines()) <= 20
    exec(compile(text, "docs/placement.md", "exec"), {})
    placed = where([host(f"h{n}", n) for n in range(8)], {"name": "two_choices", "algorithm": "two_choices"})
    assert len(placed) == 3
    assert where([host("h1", 32)], {"name": "two_choices", "algorithm": "two_choices"}) == {}


def test_every_policy_and_scorer_is_on_the_page() -> None:
    for name in (*NAMED, *SCORERS):
        assert f"`{name}`" in PAGE, name
