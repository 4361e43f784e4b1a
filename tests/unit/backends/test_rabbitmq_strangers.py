"""Whoever answers where RabbitMQ was expected is named, and at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from synmanager.backends import Address, ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    SynmanagerError,
)
from synmanager.message import Message

#: What a server says to a whole line, or to whatever it is sent.
LINES = {
    "Redis": b"-ERR wrong number of arguments for 'get' command\r\n",
    "Redis that wants a password": b"-NOAUTH Authentication required.\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}
AT_ONCE = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
}


class Server:
    """Answers, and keeps what it was asked."""

    def __init__(self, answer: bytes, *, to_lines: bool) -> None:
        self._answer = answer
        self._to_lines = to_lines
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        try:
            while True:
                end, _ = self._listener.accept()
                self._ends.append(end)
                threading.Thread(target=self._serve, args=(end,), daemon=True).start()
        except OSError:  # closed
            pass

    def _serve(self, end: socket.socket) -> None:
        try:
            heard = b""
            while chunk := end.recv(4096):
                heard += chunk
                if heard.endswith(b"\r\n\r\n") or not self._to_lines:
                    end.sendall(self._answer)
                    heard = b""
        except OSError:
            pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(answer: bytes, *, to_lines: bool) -> Server:
        servers.append(Server(answer, to_lines=to_lines))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def open_at(port: int, scheme: str = "amqp", timeout: float = 30.0) -> SynmanagerError:
    """The error, which comes long before the patience ends."""
    backend = RabbitMQBackend(Address(scheme, host="127.0.0.1", port=port, timeout=timeout))
    began = time.monotonic()
    with pytest.raises(SynmanagerError) as caught:
        backend.open()
    assert time.monotonic() - began < 10
    assert not backend.is_open
    backend.close()
    return caught.value


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize("name", LINES)
def test_who_waits_for_the_end_of_a_line_is_asked(
    serve: Callable[..., Server], scheme: str, name: str
) -> None:
    error = open_at(serve(LINES[name], to_lines=True).port, scheme)
    assert isinstance(error, AccessRefused)
    assert f"it speaks {name.split()[0]}" in str(error)


@pytest.mark.parametrize("name", AT_ONCE)
def test_who_answers_is_told_by_the_answer(serve: Callable[..., Server], name: str) -> None:
    error = open_at(serve(AT_ONCE[name], to_lines=False).port)
    assert isinstance(error, AccessRefused)
    assert f"it speaks {name}" in str(error)


def test_tls_where_none_is_spoken(serve: Callable[..., Server]) -> None:
    error = open_at(serve(b"AMQP\x00\x00\x09\x01", to_lines=False).port, "amqps")
    assert isinstance(error, AccessRefused)
    assert "TLS" in str(error)


@pytest.mark.parametrize("answer", [b"who are you?", b"\x01\x00\x00\xff\xff\xff\xff"])
def test_who_says_what_nobody_knows_may_be_better_later(
    serve: Callable[..., Server], answer: bytes
) -> None:
    error = open_at(serve(answer, to_lines=False).port)
    assert isinstance(error, BrokerUnavailable)
    assert "no AMQP" in str(error)


def test_who_says_nothing_has_the_whole_patience(serve: Callable[..., Server]) -> None:
    error = open_at(serve(b"", to_lines=True).port, timeout=1.5)
    assert isinstance(error, BrokerUnavailable)
    assert "no answer within 1.5 s" in str(error)


@pytest.mark.parametrize(
    "host", ["mq..example", ".example", "a" * 70 + ".example", "mq:5672", "1:2:3", "mq\udce9"]
)
def test_a_host_that_cannot_be_is_refused_before_anything_is_sent(host: str) -> None:
    with pytest.raises(ConfigurationError, match="no name of a host"):
        RabbitMQBackend(Address("amqp", host=host))


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "b\u00fccher.example", "127.0.0.1"])
def test_other_hosts_are_taken(host: str) -> None:
    RabbitMQBackend(Address("amqp", host=host))


@pytest.mark.parametrize("name", ["x" * 300, "\u00e9" * 130, "\ud800"])
def test_a_name_that_amqp_cannot_carry_is_refused_before_anything_is_sent(name: str) -> None:
    backend = RabbitMQBackend(Address("amqp"))  # which is not open
    exchange = ExchangeSpec("exchange", "topic")
    calls: list[Callable[[], object]] = [
        lambda: backend.declare(ExchangeSpec(name, "topic")),
        lambda: backend.declare(QueueSpec(name, exchange, "key")),
        lambda: backend.declare(QueueSpec("queue", exchange, name)),
        lambda: backend.publish(name, "key", [Message(b"{}")]),
        lambda: backend.publish("exchange", name, [Message(b"{}")]),
        lambda: backend.receive([name], 0),
        lambda: backend.count(name),
        lambda: backend.purge(name),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError):
            call()
    with pytest.raises(ConfigurationError):
        backend.declare(QueueSpec("x" * 252, exchange, "key"))  # its dead letters have a name, too


def test_an_id_that_amqp_cannot_carry_is_an_invalid_job() -> None:
    with pytest.raises(InvalidJob, match="id"):
        RabbitMQBackend(Address("amqp")).publish("", "train", [Message(b"{}", id="x" * 256)])
