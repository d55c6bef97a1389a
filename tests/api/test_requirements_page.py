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
PAGE = ROOT / "docs" / "requirements.md"
MUST = (
    *("S1.2", "S2.7", "S2.13", "S2.16", "S2.19", "S2.33", "S2.34", "S2.35", "S2.36", "S3.7 (7)", "S3.7 (8)"),
    *("S3.7 (11, 12)", "S3.7 (14)", "S3.9", "S3.11", "S5.14"),
)
PARAMETER = re.compile(r"<[^>]*>|\{[^}]*\}")


def rows() -> list[list[str]]:
    """Return the cells of the table, without its head."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(cell: str) -> list[str]:
    """Return what stands in a cell as code."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]}")
def test_a_row_names_a_test_routes_and_commands_that_exist(row: list[str], fleet_home: Path) -> None:
    _number, _what, tests, routes, words = row
    for test in named(tests):
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / "tests" / "lab" / file).read_text())
        assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}, test
    known = {
        (method, PARAMETER.sub("*", rule.rule))
        for rule in create_app().url_map.iter_rules()
        for method in rule.methods or ()
    }
    for route in named(routes):
        method, path = route.replace("…", "/vms/{ref}").split()
        assert (method, PARAMETER.sub("*", f"{PREFIX}{path}")) in known, route
    for command in named(words):
        found: Any = typer.main.get_command(commands)
        for word in command.split():
            assert word in found.commands, command
            found = found.commands[word]
    assert named(tests)
    assert named(routes)
    assert named(words)


def test_no_row_is_missing() -> None:
    shown = {number for row in rows() for number in re.split(r", (?=S)", row[0])}
    assert set(MUST) <= shown
