"""The journal in Redis: what goes, what strangers leave there, and a server without room."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NoReturn

import fakeredis
import pytest
import redis
from fake_redis import FakeConnection, new_server

from synmanager.backends import Address
from synmanager.backends.redis import RedisBackend
from synmanager.errors import PublishRefused

KEY = "{synmanager}:journal:events"


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return new_server()


@pytest.fixture
def stranger(server: fakeredis.FakeServer) -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis(server=server) as made:
        yield made


@pytest.fixture
def client(server: fakeredis.FakeServer) -> Iterator[RedisBackend]:
    yield from connect(server)


def connect(server: fakeredis.FakeServer, **address: Any) -> Iterator[RedisBackend]:
    def connection(**options: Any) -> FakeConnection:
        return FakeConnection(server=server, **options)

    made = RedisBackend(Address("redis", **address), connection)
    made.open()
    yield made
    made.close()


def data(client: RedisBackend) -> list[bytes]:
    return [entry.data for entry in client.replay("events", limit=5000)]


def test_what_is_too_old_goes(server: fakeredis.FakeServer, stranger: fakeredis.FakeRedis) -> None:
    for client in connect(server, journal_age=60):
        old, young = (int((time.time() - seconds) * 1000) for seconds in (70, 50))
        for number in range(1000):
            stranger.xadd(KEY, {"total": 3 * number, "data": b"old"}, id=f"{old}-{number}")
        stranger.xadd(KEY, {"total": 3005, "data": b"young"}, id=f"{young}-0")
        client.record("events", [b"new"])
        kept = data(client)
        assert kept[-2:] == [b"young", b"new"]
        assert len(kept) <= 102  # whole nodes go


def test_no_more_than_so_many_bytes_are_kept(server: fakeredis.FakeServer) -> None:
    for client in connect(server, journal_bytes=10_000):
        for number in range(0, 1000, 10):
            client.record("events", [b"%0100d" % n for n in range(number, number + 10)])
            kept = [int(each) for each in data(client)]
            assert kept == list(range(number + 10 - len(kept), number + 10))
            assert min(number + 10, 99) <= len(kept) <= 210
        client.record("events", [b"x" * 50_000])  # larger than all that is kept
        client.record("events", [b"last"])
        assert data(client)[-1] == b"last"


def test_what_strangers_leave_there(client: RedisBackend, stranger: fakeredis.FakeRedis) -> None:
    stranger.xadd(KEY, {"what": b"ever"})
    client.record("events", [b"1"])
    stranger.xadd(KEY, {"total": b"many", "data": b"2"})
    client.record("events", [b"3"])
    assert data(client) == [b"", b"1", b"2", b"3"]


def test_a_server_without_room_refuses_and_is_there(client: RedisBackend) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise redis.exceptions.OutOfMemoryError("no room")

    assert client._connections is not None
    ((connection, _),) = client._connections._idle
    connection.read_response = refuse
    with pytest.raises(PublishRefused, match="memory"):
        client.record("events", [b"1"])
    assert client.is_open
    del connection.read_response
    connection.disconnect()
    client.record("events", [b"2"])
