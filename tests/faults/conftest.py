"""The fault suite's options, its brokers and its report."""

from __future__ import annotations

import faulthandler
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from harness.brokers import CANARY, Broker
from harness.catalogue import (
    BROKERS,
    SERVERLESS,
    SHORT,
    Missing,
    brokers_are_required,
    make_broker,
)
from harness.director import Director
from harness.processes import Processes

#: Seconds that a test may take unless it says otherwise with ``@pytest.mark.limit(seconds)``.
_LIMIT = 90

#: The name under which a report carries a line of what its test measured.
_MEASURED = "measured"

_leaks: list[str] = []
_seed = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--seed", type=int, default=20200, help="of everything that is random")


def pytest_configure(config: pytest.Config) -> None:
    global _seed
    _seed = config.getoption("--seed")
    config.addinivalue_line("markers", "limit(seconds): how long the test may take")
    config.addinivalue_line("markers", "only(kind, ...): brokers whose name begins so")
    config.addinivalue_line("markers", "server: brokers that are one, and no file")


def pytest_report_header(config: pytest.Config) -> str:
    form = "long" if config.getoption("--long") else "short"
    return f"faults: the {form} form, seed {_seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("only")
        names = [
            name
            for name in (BROKERS if metafunc.config.getoption("--long") else SHORT)
            if marker is None or name.startswith(marker.args)
        ]
        if metafunc.definition.get_closest_marker("server"):
            names = [name for name in names if name not in SERVERLESS]
        # With pytest-xdist, a process for each broker.
        brokers = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
        metafunc.parametrize("server", brokers, indirect=True, scope="session")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of its own for each test, the same in every run with the same seed."""
    return random.Random(f"{_seed} {request.node.name}")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that lives for the session; tests take it as ``broker``."""
    directory = tmp_path_factory.mktemp(request.param)
    try:
        broker = make_broker(request.param, directory)
    except Missing as missing:
        if brokers_are_required():
            pytest.fail(f"{request.param}: {missing}", pytrace=False)
        pytest.skip(f"{request.param}: {missing}")
    try:
        broker.start()
        yield broker
    finally:
        broker.destroy()


@pytest.fixture
def broker(server: Broker) -> Broker:
    """A broker that runs and holds nothing."""
    server.recover()
    return server


@pytest.fixture
def processes(
    broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Processes]:
    """Starts the test's programs; kills what is left of them, and searches what they printed."""
    started = Processes(tmp_path, broker.url())
    try:
        yield started
    finally:
        broker.launcher.thaw()
        started.end()
    for path in (*tmp_path.glob("*.out"), *tmp_path.glob("*.jsonl")):
        assert CANARY not in path.read_text(errors="replace"), f"the password is in {path.name}"


@pytest.fixture
def director(broker: Broker, processes: Processes) -> Director:
    """Submits the test's jobs, and looks at the broker."""
    return Director(broker.url(), processes.journal)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keeps a line of what the test measured, for the report at the end."""

    def note(line: str) -> None:
        request.node.user_properties.append((_MEASURED, line))
        print(line)

    return note


@pytest.fixture(autouse=True)
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends a test that hangs, and shows where."""
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else _LIMIT
    if request.config.getoption("--long"):
        seconds *= 100

    def too_long(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError(f"the test took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if CANARY in report.longreprtext + "".join(text for _, text in report.sections):
        _leaks.append(f"{report.nodeid} ({report.when})")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _leaks:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures = [
        (report.nodeid.rpartition("::")[2], line)
        for report in (
            *terminalreporter.getreports("passed"),
            *terminalreporter.getreports("failed"),
        )
        if report.when == "call"
        for name, line in report.user_properties
        if name == _MEASURED
    ]
    if figures:
        terminalreporter.section("measured")
        width = max(len(name) for name, _ in figures)
        for name, line in sorted(figures):
            terminalreporter.line(f"{name:<{width}}  {line}")
    if _leaks:
        terminalreporter.section("THE PASSWORD WAS SHOWN", red=True)
        for where in _leaks:
            terminalreporter.line(where)
    terminalreporter.line(f"seed {_seed}; ended {time.strftime('%Y-%m-%d %H:%M:%S')}")
