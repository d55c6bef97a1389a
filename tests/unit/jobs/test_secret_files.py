"""Secrets live as long as their attempt, for one user, and are not repeated."""

from pathlib import Path

import pytest
from virtfleet import settings
from virtfleet.jobs import secret_files
from virtfleet.jobs.secret_files import Redaction


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIRTFLEET_HOME", str(tmp_path))
    settings.load.cache_clear()
    if request.param == "disk":
        monkeypatch.setattr(secret_files, "SHARED_MEMORY", tmp_path / "no such folder")
    return str(request.param)


def test_a_secret_is_a_private_file_and_gone_at_the_end(place: str, tmp_path: Path) -> None:
    (tmp_path / "runs/job_1/att_test").mkdir(parents=True)
    folder = secret_files.write("job_1", "att_test", {"sec_1": b"\0binary"})
    try:
        assert (str(folder).startswith("/dev/shm/")) == (place == "memory" and Path("/dev/shm").is_mount())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "sec_1").stat().st_mode & 0o777 == 0o600
        assert (folder / "sec_1").read_bytes() == b"\0binary"
        with pytest.raises(FileExistsError):
            secret_files.write("job_1", "att_test", {})
    finally:
        secret_files.remove("job_1", "att_test")
    assert not folder.exists()
    secret_files.remove("job_1", "att_test")


def test_lines_of_a_secret_are_taken_out_of_texts() -> None:
    redaction = Redaction([b"#cloud-config\npassword: hunter2-hunter2\nrun: x\n", b"", b"\xff\xfe"])
    assert redaction.text("bad line 'password: hunter2-hunter2' in file") == "bad line '***' in file"
    assert redaction.text("nothing of it") == "nothing of it"
    spaced = Redaction([b'say:   "hello  world"'])
    assert spaced.text('error near say: "hello world"') == "error near ***"
    assert spaced.text(r'{"msg": "near say:   \"hello  world\""}') == '{"msg": "near ***"}'


def test_a_result_keeps_a_name_that_happens_to_be_a_line_of_a_secret() -> None:
    redaction = Redaction([b"#cloud-config\ndatabase-1\n", b"whole-secret"])
    before = {"name": "database-1", "list": ["x whole-secret y", 3]}
    assert redaction.data(before) == {"name": "database-1", "list": ["x *** y", 3]}
