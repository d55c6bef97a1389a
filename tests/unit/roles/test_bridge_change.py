"""What takes a change of the network back, where a file cannot be written."""

import json
from pathlib import Path

import pytest

from tests.unit.roles.programs import load

change = load("bridge/files/change.py")


def test_a_change_that_could_not_be_taken_back_is_taken_back_at_the_next_boot(tmp_path: Path) -> None:
    record, in_the_way, other = tmp_path / "vmbr0", tmp_path / "network", tmp_path / "other.network"
    record.mkdir()
    in_the_way.write_text("a file where the folder belongs")
    file = in_the_way / "card.network"
    before = {"backend": "networkd", "files": {str(file): "former", str(other): "former"}, "makes": [], "cards": []}
    after = {**before, "files": {str(file): "later", str(other): "later"}}
    (record / "pending.json").write_text(json.dumps({"before": before, "after": after}))

    with pytest.raises(OSError, match=str(in_the_way)):
        change.rollback(record, booting=True)
    assert (record / "pending.json").exists()
    assert other.read_text() == "former"  # all that could be done is done

    in_the_way.unlink()
    change.rollback(record, booting=True)
    assert file.read_text() == "former"
    assert not (record / "pending.json").exists()
    change.rollback(record, booting=True)  # nothing is left to be taken back
