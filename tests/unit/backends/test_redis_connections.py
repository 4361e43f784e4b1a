"""Which connection a command takes, and what becomes of it afterwards."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest
import redis

from synmanager.backends.redis import connections as module
from synmanager.backends.redis.connections import Connections, _pack
from synmanager.backends.redis.dialling import Plain
from synmanager.backends.redis.faults import Failed
from synmanager.backends.redis.scripts import ACK


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

    def call(self, *command: Any) -> Any:
        return self.connections.call(*command, fits=lambda reply: type(reply) is int)

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
    with pytest.raises(Failed) as caught:
        lines.call("A")
    assert (caught.value.code, caught.value.sent) == ("WRONGTYPE", False)
    assert lines.call("B") == 2
    assert len(lines.made) == 1


@pytest.mark.parametrize(
    "error",
    [
        redis.TimeoutError(),
        OSError(),
        KeyboardInterrupt(),
        redis.ResponseError("unknown command"),
        redis.ResponseError("of a proxy that is on fire"),
        b"PONG",
        [1],
        None,
    ],
)
def test_a_connection_with_an_answer_outstanding_is_not_used_again(error: Any) -> None:
    lines = Lines(error, 2)
    with pytest.raises((Failed, KeyboardInterrupt)) as caught:
        lines.call("A")
    assert not isinstance(caught.value, Failed) or caught.value.sent
    assert not lines.made[0].connected
    assert lines.call("B") == 2
    assert len(lines.made) == 2


@pytest.mark.parametrize("error", [redis.ConnectionError("refused"), OSError("no host")])
def test_what_was_not_sent_is_told_from_what_was(error: Exception) -> None:
    lines = Lines(refuses=error)
    with pytest.raises(Failed) as caught:
        lines.call("A")
    assert not caught.value.sent
    assert not lines.made[0].sent
    lines = Lines(redis.ConnectionError("reset"))
    with pytest.raises(Failed) as caught:
        lines.call("A")
    assert caught.value.sent


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


class Alarm(Exception):
    pass


@pytest.mark.parametrize("raised", [TimeoutError("mine"), redis.TimeoutError("mine"), Alarm()])
@pytest.mark.parametrize("step", ["connect", "send_packed_command", "read_response"])
def test_what_a_signal_handler_raises_passes_through(
    step: str, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although redis-py makes its own of it; and the connection is not used again."""

    def ring(number: int, frame: Any) -> None:
        raise raised

    def interrupted(self: Line, *args: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except TimeoutError:
            raise redis.TimeoutError("Timeout reading from socket")  # noqa: B904 - as redis-py

    monkeypatch.setattr(Line, step, interrupted)
    before = signal.signal(signal.SIGUSR1, ring)
    lines = Lines(1)
    try:
        with pytest.raises(type(raised)) as caught:
            lines.call("A")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value is raised
    assert not lines.made[0].connected
    assert not lines.connections._busy
    assert not lines.connections._idle


def test_what_a_handler_raised_before_is_not_taken_for_a_later_failure() -> None:
    def ring(number: int, frame: Any) -> None:
        raise TimeoutError("mine")

    before = signal.signal(signal.SIGUSR1, ring)
    lines = Lines(redis.ConnectionError("reset"))
    try:
        signal.raise_signal(signal.SIGUSR1)
    except TimeoutError:
        with pytest.raises(Failed, match="reset"):
            lines.call("A")
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("step", ["connect", "send_packed_command", "read_response", "__init__"])
def test_a_call_within_a_call_has_a_connection_of_its_own(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a signal handler, or of a ``__del__``, in the middle of anything."""
    answers = []
    original = getattr(Line, step)

    def within(self: Line, *args: Any) -> Any:
        monkeypatch.setattr(Line, step, original)
        answers.append(lines.call("INNER"))
        return original(self, *args)

    monkeypatch.setattr(Line, step, within)
    lines = Lines(1, 2)
    answers.append(lines.call("OUTER"))
    assert answers == [1, 2]
    assert len(lines.made) == 2
    lines.connections.close()
    assert not any(line.connected for line in lines.made)


def test_those_of_before_a_failure_are_not_kept() -> None:
    """One that was under way then may be as dead as the others, or lead to the same replica."""
    lines = Lines(1, 2)

    def meanwhile(reply: Any) -> bool:
        lines.connections.forget_idle()
        return True

    assert lines.connections.call("A", fits=meanwhile) == 1
    assert not lines.made[0].connected
    assert lines.call("B") == 2
    assert len(lines.made) == 2


def test_after_close_nothing_goes_out() -> None:
    lines = Lines(1)
    lines.call("A")
    lines.connections.close()
    lines.connections.close()
    assert not lines.made[0].connected
    with pytest.raises(Failed, match="closed"):
        lines.call("B")


def test_a_script_that_the_server_has_forgotten_is_sent_again() -> None:
    lines = Lines(redis.exceptions.NoScriptError("NOSCRIPT"), 1)
    assert lines.connections.run(ACK, ["base"], ("lease", "id")) == 1
    first, second = lines.made[0].sent
    assert first == _pack(("EVALSHA", ACK.sha, 1, "base", "lease", "id"))
    assert second == _pack(("EVAL", ACK.source, 1, "base", "lease", "id"))


def test_a_caller_s_own_timeout_ends_a_wait_for_what_does_not_come() -> None:
    """It is the socket's as well, by its type, and then it means: nothing yet."""

    class Alarm(TimeoutError):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    with socket.create_server(("127.0.0.1", 0)) as silent:
        make: Any = Plain
        connection = make(host="127.0.0.1", port=silent.getsockname()[1], socket_timeout=60)
        connection._sock = connection._connect()
        connection._parser.on_connect(connection)
        before = signal.signal(signal.SIGALRM, ring)
        try:
            with pytest.raises(Alarm):
                wait(connection)
        finally:
            signal.signal(signal.SIGALRM, before)
            connection.disconnect()


def wait(connection: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    connection.can_read(60)
