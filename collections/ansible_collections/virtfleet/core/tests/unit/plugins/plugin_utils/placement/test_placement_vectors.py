# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""numpy and plain lists decide the same; the library does without numpy."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement import NAMED, place, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 2**30
LIBRARY = Path(vectors.__file__).parent


def large_fleet(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    chance = random.Random(seed)
    hosts = [
        {
            "name": f"h{n}",
            "zone": chance.choice(["a", "b"]),
            "maintenance": chance.random() < 0.05,
            "vcpus": {"total": chance.choice([32, 64]), "ratio": 4.0, "allocated": chance.randrange(0, 60)},
            "memory": {"total_bytes": 256 * GIB, "allocated_bytes": chance.randrange(0, 250) * GIB},
            "pools": {"p": {"total_bytes": 4000 * GIB, "ratio": chance.choice([1.0, 1.0, 0.5]) if seed % 2 else 0.7}},
        }
        for n in range(120)
    ]
    requests = [
        {
            "id": f"v{n}",
            "vcpus": chance.randrange(1, 17),
            "memory_bytes": chance.randrange(1, 64 * 1024) * 2**20,
            "zone": chance.choice([None, None, "a"]),
            "disks": [{"pool": chance.choice(["p", "p", "q"]), "size_bytes": chance.randrange(1, 99) * GIB}]
            if n % 3
            else [],
        }
        for n in range(150)
    ]
    return {"schema_version": 1, "hosts": hosts}, requests


@pytest.mark.parametrize("policy", ["first_fit", "bin_packing", "spread", "balanced"])
@pytest.mark.parametrize("seed", range(4))
def test_numpy_and_plain_lists_decide_the_same(policy: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state, requests = large_fleet(seed)
    fast = place(state, requests, policy)
    monkeypatch.setattr(vectors, "numpy", None)
    assert place(state, requests, policy) == fast


@settings(max_examples=settings.default.max_examples // 2, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(sorted(NAMED)), explain=st.booleans())
def test_numpy_and_plain_lists_decide_the_same_for_every_fleet_and_policy(
    seed: int, policy: str, explain: bool
) -> None:
    assert vectors.numpy is not None, "the tests' environment has numpy: without it this would prove nothing"
    state, requests = large_fleet(seed)
    fast = place(state, requests[:60], policy, explain=explain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "numpy", None)
        assert place(state, requests[:60], policy, explain=explain) == fast


def test_the_library_imports_nothing_but_the_standard_library() -> None:
    """Tried in an interpreter without site packages, whose only path is the collection's."""
    root = LIBRARY.parents[5]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from ansible_collections.virtfleet.core.plugins.plugin_utils import placement; "
        "import ansible_collections.virtfleet.core.plugins.plugin_utils.placement.live_hosts; "
        "foreign = [m for m in sys.modules if m.split('.')[0] in ('ansible', 'libvirt', 'numpy', 'yaml')]; "
        "assert not foreign, foreign; print(placement.SCHEMA_VERSION)"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (answer.stdout, answer.stderr) == ("1\n", "")
