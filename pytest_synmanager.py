"""synmanager's plugin for pytest, which is there as soon as synmanager is installed.

For those whose code submits or runs jobs, the fixtures ``synmanager_broker`` and
``synmanager_clock`` (``synmanager.testkit``).

For those who write a backend, ``pytest --synmanager-backend URL``, which runs the contract
(``synmanager.testing``) against the backend that serves the URL, on a broker that is the test's
alone.

A run that uses neither costs the import of this file: it lies beside the package, so that nothing
of synmanager is imported for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from synmanager.testkit import FakeBroker, TravellingClock

__all__ = ["synmanager_broker", "synmanager_clock"]

#: How the reasons of those tests begin that the owner of a broker has left out.
_LEFT_OUT = "Skipped: contract: "


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("synmanager").addoption(
        "--synmanager-backend",
        metavar="URL",
        help="run the contract that defines a backend against this one, such as redis://host:6379; "
        "whatever is there may be changed",
    )


@pytest.fixture
def synmanager_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    """A broker in memory, the test's own, which SYNMANAGER_BACKEND names while it runs.

    Whatever the test makes without an address reaches it; it fails on command.
    """
    from synmanager.testkit import FakeBroker

    with FakeBroker() as broker:
        monkeypatch.setenv("SYNMANAGER_BACKEND", broker.url)
        yield broker


@pytest.fixture
def synmanager_clock(synmanager_broker: FakeBroker) -> TravellingClock:
    """The time of synmanager_broker: advance(3600) lets an hour pass at once."""
    return synmanager_broker.clock


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--synmanager-backend") is None:
        return
    contract = import_module("synmanager.testing.installed")
    settings = import_module("synmanager.settings")
    try:
        contract.use(config, settings.parse_url(config.getoption("--synmanager-backend")))
    except ValueError as error:
        raise pytest.UsageError(f"--synmanager-backend: {error}") from None
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.clear()  # what would be run without the option
    config.args.append(str(contract.__file__))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the contract could not test, and why; nobody reads an ``s``."""
    left_out: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        where_line_why = report.longrepr
        if isinstance(where_line_why, tuple) and where_line_why[2].startswith(_LEFT_OUT):
            left_out[where_line_why[2].removeprefix(_LEFT_OUT)] += 1
    if left_out:
        terminalreporter.section("NOT TESTED BY THE CONTRACT", sep="!", yellow=True, bold=True)
        for reason, count in left_out.most_common():
            terminalreporter.line(f"{count} tests: {reason}", yellow=True)
