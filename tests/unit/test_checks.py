"""The runner of the checks tells the truth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checks import stamps
from tests.checks.ansible_lint import changed
from tests.checks.docs import anchors, broken_links
from tests.checks.runner import ROOT, Check, Runner, conclude
from tests.checks.stamps import fingerprint, unless_well


def run_pytest(folder: Path, *words: str, **texts: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in these files; no plugin but our own is loaded, as they take longer than the run."""
    for name, text in texts.items():
        (folder / f"test_{name}.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.checks.skips",
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [*command, *words, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_a_skip_that_is_not_listed_fails_the_run(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        skip="import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('reason 1')\n",
        xfail="import pytest\n@pytest.mark.xfail(reason='reason 2')\ndef test_b(): assert False\n",
        module="import pytest\npytest.skip('reason 3', allow_module_level=True)\n",
    )
    assert done.returncode == 1, done.stdout
    told = done.stdout.split("skips that tests/skips.txt does not list")[1]
    assert all(f"reason {number}" in told for number in (1, 2, 3))


def test_the_quick_loop_tries_the_first_case_of_each_test(tmp_path: Path) -> None:
    cases = "@pytest.mark.parametrize('n', [1, 2, 3])\n"
    done = run_pytest(
        tmp_path,
        "-p",
        "tests.checks.first_cases",
        cases=f"import pytest\n{cases}def test_a(n): assert n == 1\n{cases}def test_b(n): assert n == 1\n",
        others="import pytest\ndef test_a(): pass\ndef test_c(): pass\n",
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed, 4 deselected" in done.stdout


def test_no_test_at_all_fails_the_run(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, empty="").returncode == 5


def test_the_closing_line_counts_and_the_status_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    good = Check("good", ("sh", "-c", "echo fine"))
    bad = Check("bad", ("sh", "-c", "echo what went wrong; exit 3"), cheap=False)
    later = Check("later", ("false",), needs="no/such/folder")
    assert conclude(Runner().run([good, bad, later])) == 1
    told = capsys.readouterr().out
    assert "what went wrong" in told
    assert told.splitlines()[-1] == "1 passed, 1 failed"
    assert conclude(Runner().run([good, later])) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    assert conclude(Runner().run([later])) == 1, "nothing checked is not a success"


def test_lanes_run_beside_each_other_and_what_is_in_none_after_them(tmp_path: Path) -> None:
    def meets(mine: str, other: str, lane: str) -> Check:
        wait = f"touch {tmp_path}/{mine}; until [ -e {tmp_path}/{other} ]; do sleep 0.05; done"
        return Check(mine, ("timeout", "60", "sh", "-c", wait), cheap=False, lane=lane)

    second = Check("second", ("sh", "-c", f"test -e {tmp_path}/one && touch {tmp_path}/second"), cheap=False, lane="a")
    last = Check("last", ("test", "-e", f"{tmp_path}/second"), cheap=False)
    outcomes = Runner().run([meets("one", "two", "a"), second, meets("two", "one", "b"), last])
    assert [(outcome.check.name, outcome.code) for outcome in outcomes] == [
        *(("one", 0), ("second", 0)),
        *(("two", 0), ("last", 0)),
    ]


def test_a_link_to_nowhere_is_found() -> None:
    page = ROOT / "README.md"

    class Fake(type(page)):  # type: ignore[misc] # the page with a text of ours
        def read_text(self, *_: object, **__: object) -> str:
            return "# Two words\n[a](LICENSE) [b](no-such.md) [c](#two-words) [d](#three) `[e](none)` [f](https://example.org)\n"

    assert [problem.split("the link ")[1].split()[0] for problem in broken_links(Fake(page))] == [
        "no-such.md",
        "#three",
    ]
    assert anchors("# The `fleet` *entry*, explained\n") == {"the-fleet-entry-explained"}


def test_what_was_found_well_is_looked_at_again_when_anything_of_it_changes(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays/a.yml").write_text("one")
    first = fingerprint(["plays"], tmp_path)
    (tmp_path / "elsewhere").write_text("not read by the linter")
    assert fingerprint(["plays"], tmp_path) == first
    (tmp_path / "plays/a.yml").write_text("two")
    different = fingerprint(["plays"], tmp_path)
    (tmp_path / "plays/a.yml").rename(tmp_path / "plays/b.yml")
    renamed = fingerprint(["plays"], tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/dev.txt").write_text("another version of the linter")
    assert len({first, different, renamed, fingerprint(["plays"], tmp_path)}) == 4


def test_a_check_runs_again_when_it_failed_or_what_it_reads_is_not_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "ROOT", tmp_path)
    monkeypatch.setattr(stamps, "FOLDER", tmp_path / ".cache")
    content = {"now": "a"}
    monkeypatch.setattr(stamps, "fingerprint", lambda _paths: content["now"])
    ran: list[str] = []

    def ends(code: int, leaves: str) -> int:
        def check() -> int:
            ran.append(content["now"])
            content["now"] = leaves
            return code

        return unless_well("it", ["plays"], check)

    assert ends(1, leaves="a") == 1
    assert ends(0, leaves="b") == 0, "changed while it was looked at"
    assert ends(0, leaves="b") == 0
    assert ends(1, leaves="b") == 0, "known to be well"
    content["now"] = "c"
    assert ends(1, leaves="c") == 1
    assert ran == ["a", "a", "b", "c"]


def test_only_what_is_not_as_it_was_and_can_be_linted_counts_as_changed() -> None:
    before = {"plays/a.yml": "1", "plays/b.yml": "1", "plays/gone.yml": "1", "plays/README.md": "1"}
    now = {"plays/a.yml": "1", "plays/b.yml": "2", "plays/new.yaml": "1", "plays/README.md": "2"}
    assert changed(before, now) == ["plays/b.yml", "plays/new.yaml"]
