"""A password appears in no error, repr, log or traceback."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from grid import Grid

from synmanager import Archiver, Worker
from synmanager.cli import main
from synmanager.errors import ConfigurationError
from synmanager.settings import load_settings, parse_url
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

CANARY = "canary7c1f"

#: URLs that can never work, each with the canary in its password; a part of it leaks as well.
BROKEN_URLS = [
    f"amqp://alice:{CANARY}@host:0",
    f"amqp://alice:{CANARY}@host:70000",
    f"amqp://alice:{CANARY}@host:abc",
    f"amqp://alice:{CANARY}@ho st",
    f"amqp://alice:{CANARY}@[::1",
    f"amqp://alice:{CANARY}@ho\u2100st",
    f"amqp://alice:{CANARY}/x@host",
    f"amqp://alice:x/{CANARY}@host",
    f"amqp://alice:12/{CANARY}@host",
    f"amqp://alice:{CANARY}#x@host",
    f"amqp://alice:12#{CANARY}@host",
    f"amqp://alice:x#{CANARY}",
    f"amqp://alice:12?{CANARY}@host",
    f"amqp://alice:{CANARY}?x=y@host",
    f"amqp://alice:{CANARY}@host#fragment",
    f"amqp://alice:{CANARY}@host?x",
    f"amqp://alice:{CANARY}@host?x={CANARY}&x=2",
    f"kafka://alice:{CANARY}@host",
    f"://alice:{CANARY}@host",
    f"alice:{CANARY}@host",
    f"amqp:/alice:{CANARY}@host",
    f"amqp//alice:{CANARY}@host",
    f"memory://alice:{CANARY}@host?password={CANARY}",
    f" amqp ://alice:{CANARY}@host",
]


#: Each with what it needs besides a broker.
COMMANDS = [
    ["status"],
    ["demo"],
    ["doctor"],
    ["purge", "train", "--yes"],
    ["submit", "train", "run=1"],
    ["work", "archives:HANDLERS"],
    ["archive", "archives:write"],
    ["dead", "list"],
    ["dead", "show", "an-id"],
    ["dead", "redrive", "--all", "--yes"],
]


def everything_about(error: BaseException) -> str:
    """What a log, a crash report or a debugger shows of an error and what it suppresses."""
    shown = "".join(traceback.format_exception(error))
    return "\n".join([shown, str(error), repr(error), repr(error.args), repr(vars(error))])


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at any level; checked after the test."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)
    assert CANARY not in stream.getvalue()


MAKERS: dict[str, Any] = {
    "producer": TrainProducerOperator,
    "consumer": TrainConsumerOperator,
    "worker": lambda **options: Worker({"train": print}, **options),
    "archiver": lambda **options: Archiver(print, **options),
}


@pytest.mark.parametrize("url", BROKEN_URLS)
class TestBrokenUrl:
    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
    def test_as_an_argument(self, url: str, make: Any) -> None:
        with pytest.raises(ConfigurationError) as caught:
            make(url=url)
        assert CANARY not in everything_about(caught.value)

    def test_in_the_environment(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_BACKEND", url)
        with pytest.raises(ConfigurationError) as caught:
            TrainProducerOperator()
        assert CANARY not in everything_about(caught.value)

    def test_on_the_command_line(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        for command in COMMANDS:
            assert main([*command, "--backend", url]) in (1, 4)
        assert main(["move", "--from", url, "--to", "sqlite:////nowhere"]) == 1
        shown = capsys.readouterr()
        assert CANARY not in shown.out + shown.err
        lines = [line for line in shown.err.splitlines() if not line.startswith("broker: ")]
        assert all(line.startswith(("synmanager: ", "from: ", "to: ")) for line in lines)


@pytest.mark.parametrize(
    "environ",
    [
        {"SYNMANAGER_PASSWORD": CANARY},
        {"SYNMANAGER_PASSWORD": CANARY, "SYNMANAGER_USERNAME": " "},
        {"SYNMANAGER_PASSWORD": CANARY, "SYNMANAGER_USERNAME": "alice", "SYNMANAGER_LEASE": "x"},
        {"SYNMANAGER_PASSWORD": CANARY, "SYNMANAGER_USERNAME": "a", "SYNMANAGER_BACKEND": "kafka"},
    ],
)
def test_broken_variables(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        TrainProducerOperator()
    assert CANARY not in everything_about(caught.value)


@pytest.mark.parametrize("host", [f"amqp://alice:{CANARY}@host", f"alice:{CANARY}@host"])
def test_a_url_as_the_host(host: str) -> None:
    for make in MAKERS.values():
        with pytest.raises(ConfigurationError) as caught:
            make(host=host, url="memory")
        assert CANARY not in everything_about(caught.value)
    operator = TrainProducerOperator(url="memory")
    operator.host = host
    with pytest.raises(ConfigurationError) as caught:
        operator.connect()
    assert CANARY not in everything_about(caught.value)


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "redis", "rediss", "memory"])
def test_reprs(scheme: str, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_USERNAME", "alice")
    monkeypatch.setenv("SYNMANAGER_PASSWORD", CANARY)
    for url in (f"{scheme}://alice:{CANARY}@host", f"{scheme}://host"):
        settings = load_settings(url=url)
        assert settings.address.password == CANARY
        assert settings.address.username == "alice"
        for thing in (settings, settings.address, replace(settings.address, port=1), [settings]):
            assert CANARY not in repr(thing)
            assert CANARY not in str(thing)
    assert CANARY not in repr(parse_url(f"{scheme}://:{CANARY}@host"))


def test_a_connected_grid_shows_none(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_USERNAME", "alice")
    monkeypatch.setenv("SYNMANAGER_PASSWORD", CANARY)
    producer, consumer = grid.producer(), grid.consumer()
    producer.process(run=1)
    for thing in (producer, consumer, consumer.connection, consumer._session, consumer._runner):
        assert CANARY not in repr(thing)

    def fail(**kwargs: Any) -> None:
        raise ZeroDivisionError

    consumer.poll_message(fail)
    with pytest.raises(TypeError) as caught:
        consumer.__reduce__()
    assert CANARY not in everything_about(caught.value)
