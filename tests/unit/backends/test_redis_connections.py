"""Which connection a command takes, and what becomes of it afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from synmanager.backends.redis import connections as module
from synmanager.backends.redis.connections import Connections, _pack
from synmanager.backends.redis.scripts import ACK
from synmanager.errors import BrokerUnavailable, SynmanagerError


class Line:
    """In the place of redis-py's connection: answers what it is told to."""

    def __init__(self, answers: list[Any], refuses: Exception | None = None) -> None:
        self.answers = answers
        self.refuses = refuses
        self.connected = False
        self.connects = 0
        self.dead = False
        self.sent: list[bytes] = []

    def connect(self) -> None:
        if self.refuses:
            raise self.refuses
        self.connected = True
        self.connects += 1

    def disconnect(self) -> None:
        self.connected = False

    def send_packed_command(self, command: list[bytes]) -> None:
        self.sent += command

    def read_response(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def can_read(self, timeout: float) -> bool:
        return self.dead


class Lines:
    def __init__(self, *answers: Any, refuses: Exception | None = None) -> None:
        self.made: list[Line] = []
        self.answers = list(answers)
        self.refuses = refuses
        self.connections = Connections(self.make, "host:1")
        self.call = self.connections.call

    def make(self) -> Line:
        self.made.append(Line(self.answers, self.refuses))
        return self.made[-1]


@pytest.mark.parametrize(
    "command",
    [("PING",), ("SET", "ключ", b"\xff\r\n", 1), ("XADD", "", b"", -5, "x" * 10_000)],
)
def test_a_command_is_written_as_redis_py_writes_it(command: tuple[Any, ...]) -> None:
    theirs: Any = redis.Connection()  # type: ignore[no-untyped-call]
    assert _pack(command) == b"".join(theirs.pack_command(*command))


def test_a_connection_is_kept_for_the_next_call() -> None:
    lines = Lines(1, 2)
    assert [lines.call("A"), lines.call("B")] == [1, 2]
    assert len(lines.made) == 1
    assert lines.made[0].connects == 1


def test_a_connection_outlives_an_answer_that_is_an_error() -> None:
    lines = Lines(redis.ResponseError("WRONGTYPE"), 2)
    with pytest.raises(redis.ResponseError):
        lines.call("A")
    assert lines.call("B") == 2
    assert len(lines.made) == 1


@pytest.mark.parametrize("error", [redis.TimeoutError(), OSError(), KeyboardInterrupt()])
def test_a_connection_with_an_answer_outstanding_is_not_used_again(error: BaseException) -> None:
    lines = Lines(error, 2)
    with pytest.raises(type(error)):
        lines.call("A")
    assert not lines.made[0].connected
    assert lines.call("B") == 2
    assert len(lines.made) == 2


@pytest.mark.parametrize("error", [redis.ConnectionError("refused"), OSError("no host")])
def test_what_was_not_sent_is_told_from_what_was(error: Exception) -> None:
    lines = Lines(refuses=error)
    with pytest.raises(BrokerUnavailable, match="host:1"):
        lines.call("A")
    assert not lines.made[0].sent
    lines = Lines(redis.ConnectionError("reset"))
    with pytest.raises(redis.ConnectionError) as caught:
        lines.call("A")
    assert not isinstance(caught.value, SynmanagerError)


@pytest.mark.parametrize("dead", [True, False])
def test_a_connection_that_was_idle_for_long_is_looked_at(
    dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(1, 2)
    lines.call("A")
    lines.made[0].dead = dead
    monkeypatch.setattr(module, "_STALE", -1.0)
    assert lines.call("B") == 2
    assert lines.made[0].connects == (2 if dead else 1)


def test_after_close_nothing_goes_out() -> None:
    lines = Lines(1)
    lines.call("A")
    lines.connections.close()
    lines.connections.close()
    assert not lines.made[0].connected
    with pytest.raises(BrokerUnavailable, match="closed"):
        lines.call("B")


def test_a_script_that_the_server_has_forgotten_is_sent_again() -> None:
    lines = Lines(redis.exceptions.NoScriptError("NOSCRIPT"), 1)
    assert lines.connections.run(ACK, ["base"], ("lease", "id")) == 1
    first, second = lines.made[0].sent
    assert first == _pack(("EVALSHA", ACK.sha, 1, "base", "lease", "id"))
    assert second == _pack(("EVAL", ACK.source, 1, "base", "lease", "id"))
