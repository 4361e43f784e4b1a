"""What all suites share: the long form, notes of what they ran on, and a report of what was left
out, and why, in the last lines."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Generator

import pytest
import ran

pytest.register_assert_rewrite("ranking", "roles", "strangers")  # of tests/shared


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        default=os.environ.get("SYNMANAGER_TEST_FORM") == "long",
        help="the long form: more brokers, and faults for hours (or SYNMANAGER_TEST_FORM=long)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): pytest-xdist's, where that is")
    # A script's background job ignores it, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unraisable_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that raise in signal handlers, which may also be called in a finaliser.

    Python drops what is raised there. pytest would keep it, with all that its frames hold, and
    may be interrupted itself while it does.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK:
        ran.keep()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around, and so after, the reporter's own
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    yield
    # The plugin is there where synmanager is installed.
    tells_of_the_contract = terminalreporter.config.pluginmanager.has_plugin("pytest_synmanager")
    skipped: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        if isinstance(report.longrepr, tuple):  # where, line, why
            if "Skipped: contract: " in report.longrepr[2] and tells_of_the_contract:
                continue
            skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if skipped:
        terminalreporter.section("NOT TESTED HERE", sep="!", yellow=True, bold=True)
        for reason, count in skipped.most_common():
            terminalreporter.line(f"{count} tests: {reason}", yellow=True)
