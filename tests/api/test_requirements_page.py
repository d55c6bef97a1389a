"""The page of requirements names tests, routes and commands: all of them exist, and no row is missing."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from virtfleet.app import PREFIX, create_app
from virtfleet.cli.main import app as commands

ROOT = Path(__file__).parents[2]
LAB = ROOT / "tests" / "lab"
UNITS = ROOT / "collections/ansible_collections/virtfleet/core/tests/unit"
PAGE = ROOT / "docs" / "requirements.md"
MUST = (
    *("S1.2", "S2.7", "S2.13", "S2.16", "S2.19", "S2.33", "S2.34", "S2.35", "S2.36", "S3.7 (7)", "S3.7 (8)"),
    *("S3.7 (11, 12)", "S3.7 (14)", "S3.9", "S3.11", "S5.14"),
)
PARAMETER = re.compile(r"<[^>]*>|\{[^}]*\}")


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, without its head."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def has(file: Path, function: str) -> bool:
    """Tell whether a file of tests has this one."""
    tree = ast.parse(file.read_text())
    return function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def named(cell: str) -> list[str]:
    """Return what stands in a cell as code."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", rows("Functions"), ids=lambda row: f"{row[0]} {row[1]}")
def test_a_row_names_a_test_and_commands_that_exist(row: list[str]) -> None:
    _number, _what, tests, _routes, words = row
    for test in named(tests):
        file, _, function = test.partition("::")
        assert has(LAB / file, function), test
    for command in named(words):
        found: Any = typer.main.get_command(commands)
        for word in command.split():
            assert word in found.commands, command
            found = found.commands[word]
    assert named(tests)
    assert named(words)


def test_the_routes_of_all_rows_exist(fleet_home: Path) -> None:
    known = {
        (method, PARAMETER.sub("*", rule.rule))
        for rule in create_app().url_map.iter_rules()
        for method in rule.methods or ()
    }
    for row in rows("Functions"):
        assert named(row[3]), row
        for route in named(row[3]):
            method, path = route.replace("…", "/vms/{ref}").split()
            assert (method, PARAMETER.sub("*", f"{PREFIX}{path}")) in known, route


def test_no_row_is_missing() -> None:
    shown = {number for row in rows("Functions") for number in re.split(r", (?=S)", row[0])}
    assert set(MUST) <= shown


@pytest.mark.parametrize("row", rows("Defects that must not come back"), ids=lambda row: row[0])
def test_a_defect_has_a_test_of_its_own(row: list[str]) -> None:
    (test,) = named(row[1])
    file, _, function = test.partition("::")
    found = [*LAB.glob(file), *UNITS.rglob(file)]
    assert any(has(each, function) for each in found), test
