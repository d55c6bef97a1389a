"""What a host's child works out by itself."""

import subprocess
import sys

import pytest
from virtfleet.observer.child import busy_percent


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, (10.0, 100.0), None),
        ((10.0, 100.0), (15.0, 110.0), 50.0),
        ((10.0, 100.0), (10.0, 110.0), 0.0),
        ((10.0, 100.0), (21.0, 110.0), 100.0),  # counters that are not read at the same instant
        ((10.0, 100.0), (9.0, 110.0), 0.0),
        ((10.0, 100.0), (1.0, 5.0), None),  # the host has started anew
        ((10.0, 100.0), (10.0, 100.0), None),
        ((10.0, 100.0), (None, None), None),
        ((None, None), (15.0, 110.0), None),
    ],
)
def test_the_load_is_what_was_busy_of_what_has_passed(before: object, after: object, expected: float | None) -> None:
    assert busy_percent(before, after) == expected  # type: ignore[arg-type]


def test_a_child_whose_parent_is_already_gone_ends_at_once() -> None:
    arguments = ["test:///default", "5", "1", "1"]
    command = [sys.executable, "-m", "virtfleet.observer.child", *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_a_child_is_small() -> None:
    code = "import sys, virtfleet.observer.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"sqlalchemy", "alembic", "pydantic", "flask", "ansible", "httpx", "asyncio"}
    assert not heavy & set(loaded)
