"""Servers that are no Redis, or none for us."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import redis
from fake_redis import INFO, FakeConnection, new_server

from synmanager.backends import Address
from synmanager.backends.redis import RedisBackend, checks
from synmanager.errors import AccessRefused, BrokerUnavailable, SynmanagerError, TopologyError


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], Address]]:
    """Starts a server that answers every command the same; without an end of line, one only."""
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> Address:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        while said := client.recv(4096):
                            client.sendall(answer * len(re.findall(rb"\*\d+\r\n", said)))
                            if not answer.endswith(b"\n"):
                                break

        threading.Thread(target=serve, daemon=True).start()
        return Address("redis", "127.0.0.1", listener.getsockname()[1], timeout=5)

    yield start
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    ("answer", "error", "word"),
    [
        (b"AMQP\x00\x00\x09\x01", AccessRefused, "use amqp://"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", AccessRefused, "speaks HTTP"),
        (b"<!DOCTYPE HTML>\r\n", AccessRefused, "speaks HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", BrokerUnavailable, "SSH-2.0"),
        (b"+OK\r\n", BrokerUnavailable, "answer to INFO"),
        (b":1\r\n", BrokerUnavailable, "INFO|Invalid Database"),
        (b"-ERR proxy on fire\r\n", BrokerUnavailable, "on fire"),
        (b"-DENIED Redis is running in protected mode\r\n", BrokerUnavailable, "protected mode"),
        (b"", BrokerUnavailable, "no connection"),
    ],
)
@pytest.mark.parametrize("path", ["", "1"], ids=["at the first command", "in the handshake"])
def test_what_is_no_redis_says_what_it_is(
    answering: Callable[[bytes], Address],
    answer: bytes,
    error: type[SynmanagerError],
    word: str,
    path: str,
) -> None:
    address = answering(answer)
    client = RedisBackend(Address("redis", address.host, address.port, path=path, timeout=5))
    with pytest.raises(error, match=word):
        client.open()
    assert not client.is_open
    client.close()


def told(info: bytes | Exception) -> RedisBackend:
    kind = type("Told", (FakeConnection,), {"info": info})
    return RedisBackend(Address("redis"), partial(kind, server=new_server()))


@pytest.mark.parametrize(
    ("line", "error", "word"),
    [
        (b"redis_mode:sentinel\r\n", AccessRefused, "is a Sentinel.* ask it"),
        (b"role:slave\r\n", BrokerUnavailable, "is a replica"),
        (b"maxmemory_policy:allkeys-random\r\n", TopologyError, "noeviction"),
    ],
)
def test_a_server_that_keeps_no_jobs(line: bytes, error: type[SynmanagerError], word: str) -> None:
    client = told(INFO + line)
    with pytest.raises(error, match=word):
        client.open()
    assert not client.is_open
    client.close()


@pytest.mark.parametrize("policy", ["lru", "lfu", "random", "ttl"])
def test_an_eviction_of_what_expires_is_none_of_ours(policy: str) -> None:
    client = told(INFO + b"maxmemory_policy:volatile-" + policy.encode() + b"\r\n")
    client.open()
    client.close()


def test_a_server_that_does_not_tell_what_it_is_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_warned", set())
    parser: Any = redis._parsers.BaseParser
    refusal = parser.parse_error("NOPERM this user has no permissions to run the 'info' command")
    read = FakeConnection.read_response

    def read_or_raise(connection: Any, *args: Any, **options: Any) -> Any:
        reply = read(connection, *args, **options)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(FakeConnection, "read_response", read_or_raise)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            client = told(refusal)
            client.open()
            assert client.is_open
            client.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "INFO" in caplog.text
