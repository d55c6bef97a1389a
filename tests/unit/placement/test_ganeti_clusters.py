"""The 50 cluster files of Ganeti's own tests load, balancing worsens none of them, and once is enough.

The files lie in `ganeti/` as they came, under their own licence (BSD-2, `ganeti/COPYING`).
"""

from pathlib import Path

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import (
    consolidate,
    export_htools,
    import_htools,
    rebalance,
    score,
)
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.states import after

FILES = sorted((Path(__file__).parent / "ganeti").glob("*.data"))


def test_there_are_fifty() -> None:
    assert len(FILES) == 50


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_cluster_of_ganeti_loads_and_balancing_never_worsens_it(file: Path) -> None:
    state, _notes = import_htools(file.read_text(encoding="utf-8"))
    plan = rebalance(state)
    assert plan["score_after"] <= plan["score_before"] + 1e-9
    assert plan["n_plus_one"]["after"] or not plan["n_plus_one"]["before"]
    balanced = after(state, plan)
    assert rebalance(balanced)["moves"] == []
    assert score(balanced)["score"] == pytest.approx(plan["score_after"], abs=1e-9)
    fewer = consolidate(state)
    assert fewer["hosts_after"] <= fewer["hosts_before"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_cluster_of_ganeti_is_written_and_read_again_the_same(file: Path) -> None:
    state, _notes = import_htools(file.read_text(encoding="utf-8"))
    again, notes = import_htools(export_htools(state))
    assert [vm["id"] for vm in again["vms"]] == [vm["id"] for vm in state["vms"]]
    assert [note for note in notes if "left out" in note] == []
    assert export_htools(again) == export_htools(import_htools(export_htools(again))[0])
