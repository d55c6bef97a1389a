"""A pytest plugin: a skipped or expected-to-fail test that tests/skips.txt does not list fails the run."""

from pathlib import Path

import pytest

LIST = Path(__file__).resolve().parents[1] / "skips.txt"


def listed() -> dict[str, str]:
    """Return node id → reason from the list: lines `NODEID: REASON`, blank ones and # comments aside."""
    entries: dict[str, str] = {}
    for number, line in enumerate(LIST.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        node, colon, reason = line.partition(": ")
        if not colon or not reason.strip():
            raise pytest.UsageError(f"{LIST}:{number}: expected `NODEID: REASON`, found {line!r}")
        if not (LIST.parents[1] / node.split("::")[0]).exists():
            raise pytest.UsageError(f"{LIST}:{number}: there is no such test any more; remove the line")
        entries[node.strip()] = reason.strip()
    return entries


class Skips:
    """Gathers the skips of a run."""

    def __init__(self) -> None:
        self.allowed = listed()
        self.unlisted: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and report.nodeid not in self.allowed:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            self.unlisted.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skipped test."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a skipped module."""
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a green run with unlisted skips into a failed one."""
        if self.unlisted and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which skips are not listed."""
        if self.unlisted:
            terminalreporter.section(f"skips that {LIST.relative_to(LIST.parents[1])} does not list")
            for line in self.unlisted:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Take part in the run, once (the workers of pytest-xdist report to the first process)."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Skips(), "unlisted-skips")
