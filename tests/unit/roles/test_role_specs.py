"""What a role says about itself is what it does."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checks import role_readmes
from tests.checks import roles as scenarios
from tests.checks.runner import ROOT

ROLES = role_readmes.roles()


def options(role: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    return found["argument_specs"]["main"]["options"]


def test_there_are_roles() -> None:
    assert ROLES


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    named = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert yaml.safe_load((role / "defaults/main.yml").read_text()) == named


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_an_option_carries_the_name_of_its_role(role: Path) -> None:
    assert not [name for name in options(role) if not name.startswith(f"{role.name}_")]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_option_is_used(role: Path) -> None:
    folders = ("tasks", "templates", "handlers", "vars", "defaults")
    text = "".join(path.read_text() for each in folders for path in (role / each).rglob("*") if path.is_file())
    unused = [name for name in options(role) if not re.search(rf"\b{name}\b(?!:)", text)]
    assert not unused


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_is_made_from_the_specs(role: Path) -> None:
    assert (role / "README.md").read_text() == role_readmes.readme(role)


def test_a_role_without_a_scenario_is_named(tmp_path: Path) -> None:
    (tmp_path / "tested/molecule/default").mkdir(parents=True)
    (tmp_path / "tested/molecule/default/molecule.yml").touch()
    for role in ("tested", "untested"):
        (tmp_path / role / "meta").mkdir(parents=True)
    assert scenarios.scenarios(tmp_path) == ["tested"]
    assert scenarios.without_scenario(tmp_path) == ["untested"]


def test_the_whole_run_has_all_scenarios_and_the_short_one_has_one(tmp_path: Path) -> None:
    for scenario in ("netplan", "default", "short"):
        (tmp_path / "molecule" / scenario).mkdir(parents=True)
        (tmp_path / "molecule" / scenario / "molecule.yml").touch()
    assert scenarios.scenarios_of(tmp_path, short=False) == ["default", "netplan"]
    assert scenarios.scenarios_of(tmp_path, short=True) == ["short"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_whole_scenario_ends_with_the_removal(role: Path) -> None:
    for name in scenarios.scenarios_of(role, short=False):
        assert (role / "molecule" / name / "remove.yml").is_file(), name


def test_a_role_that_does_not_exist_is_an_error() -> None:
    assert scenarios.main(["no_such_role"]) == 2


SAID = """INFO     [default > {step}] Executing
PLAY RECAP ***
{host}                     : ok=3    changed=0    unreachable=0    failed=0
INFO     [default > {step}] Executed: Successful
"""


def test_a_short_scenario_that_worked_on_nothing_is_no_success() -> None:
    said = {step: SAID.format(step=step, host="plain") for step in scenarios.SHORT_STEPS}
    assert scenarios.unmatched("".join(said.values()), ["plain"]) == []
    assert scenarios.unmatched("".join(said.values()), ["plain", "other"]) == ["other"]
    said["verify"] = SAID.format(step="verify", host="localhost")
    assert scenarios.unmatched("".join(said.values()), ["plain"]) == ["verify"]


def test_a_role_whose_short_run_is_part_of_anothers_is_in_it() -> None:
    there = scenarios.scenarios(ROOT / "roles")
    for role, other in scenarios.SHORT_WITHIN.items():
        assert {role, other} <= set(there)
        for step in ("converge", "verify"):
            said = (ROOT / "roles" / other / "molecule" / scenarios.SHORT / f"{step}.yml").read_text()
            assert f"../{role}/molecule/{scenarios.WHOLE}/{step}.yml" in said
