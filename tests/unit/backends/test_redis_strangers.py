"""Whatever strangers put in its keys, the Redis backend goes on, as far as fakeredis can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import fakeredis
import pytest
from fake_redis import FakeConnection, new_server
from strangers import JUNK, KINDS, SPEC, assert_all_goes_on, assert_it_is_named

from synmanager.backends import Address
from synmanager.backends.redis import RedisBackend
from synmanager.backends.redis.keys import Keys

KEYS = Keys("synmanager")

#: It has no cmsgpack.
LACKING = ("normal: many fields",)


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return new_server()


@pytest.fixture
def connect(server: fakeredis.FakeServer) -> Iterator[Callable[[], RedisBackend]]:
    clients: list[RedisBackend] = []

    def connect() -> RedisBackend:
        client = RedisBackend(Address("redis"), partial(FakeConnection, server=server))
        clients.append(client)
        client.open()
        client.declare(SPEC)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.mark.parametrize("junk", [junk for junk in JUNK if junk not in LACKING])
def test_junk_in_a_key(
    connect: Callable[[], RedisBackend],
    server: fakeredis.FakeServer,
    junk: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_all_goes_on(connect, fakeredis.FakeRedis(server=server), KEYS, junk, caplog)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_another_type(
    connect: Callable[[], RedisBackend], server: fakeredis.FakeServer, kind: str
) -> None:
    assert_it_is_named(connect, fakeredis.FakeRedis(server=server), KEYS, kind)
