"""What all suites share: a run that left tests out says so, and why, in its last lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest

pytest.register_assert_rewrite("ranking", "roles")  # of tests/shared


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around, and so after, the reporter's own
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    yield
    skipped: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        if isinstance(report.longrepr, tuple):  # where, line, why
            skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if skipped:
        terminalreporter.section("NOT TESTED HERE", sep="!", yellow=True, bold=True)
        for reason, count in skipped.most_common():
            terminalreporter.line(f"{count} tests: {reason}", yellow=True)
