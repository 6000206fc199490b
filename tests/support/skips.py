"""A pytest plugin that fails the run if a test is skipped that tests/allowed_skips.txt does not list.

It is active only if the environment variable CI is set. xfail is not a skip.
"""

import os

import pytest

LIST = "tests/allowed_skips.txt"


def allowed_skips(text: str) -> set[str]:
    """Parse lines of `path::test  # reason` into node IDs; raises UsageError if a line has no reason."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if not line.partition("  # ")[2].strip():
            raise pytest.UsageError(f"{LIST}: {line!r} has no reason; write: path::test  # reason")
    return {line.partition("  # ")[0].strip() for line in lines}


def pytest_configure(config: pytest.Config) -> None:
    is_xdist_worker = hasattr(config, "workerinput")  # the main process receives the reports of all workers
    if os.environ.get("CI") and not is_xdist_worker:
        path = config.rootpath / LIST
        config.pluginmanager.register(SkipCheck(allowed_skips(path.read_text() if path.exists() else "")))


class SkipCheck:
    """Collects the skipped tests; fails the run if one is not in `allowed`, node IDs without parameters."""

    def __init__(self, allowed: set[str]) -> None:
        self._allowed = allowed
        self._skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:  # the skip of a whole file
            self._add(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._not_allowed() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._skipped:
            terminalreporter.section("skipped tests")
        not_allowed = self._not_allowed()
        for test, reason in self._skipped.items():
            state = "FAILED, not in " + LIST if test in not_allowed else "allowed"
            terminalreporter.write_line(f"{test}: {reason} ({state})")

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        cause = report.longrepr  # for a skip: (path, line, reason)
        self._skipped[report.nodeid] = str(cause[2] if isinstance(cause, tuple) else cause)

    def _not_allowed(self) -> set[str]:
        return {test for test in self._skipped if test.partition("[")[0] not in self._allowed}
