"""The goals of the table that do not depend on how busy the machine is; `table.py` prints the times as well."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("placement_table", Path(__file__).with_name("table.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = _table()
DATASETS = TABLE.datasets()
TIMED = ("CPU s", "how many fit", "place plain", "place numpy")


@pytest.mark.parametrize("name", [name for name, _needs, _work in TABLE.WORK])
def test_goals(name: str) -> None:
    needs, work = next((needs, work) for each, needs, work in TABLE.WORK if each == name)
    if needs and not (DATASETS / needs).is_dir():
        pytest.skip(f"there is no {DATASETS / needs}: VIRTFLEET_DATASETS says where the data sets are")
    missed = [result for result in work(DATASETS) if result.ok is False and not result.name.endswith(TIMED)]
    assert [result for result in missed if result.name not in TABLE.SHORT] == []
