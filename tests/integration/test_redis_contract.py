"""The Redis backend keeps the contract on real servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import redis
from hypothesis import settings
from redis.exceptions import ResponseError

from synmanager.backends import QueueBackend
from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.redis import RedisBackend
from synmanager.backends.redis.keys import Keys
from synmanager.settings import parse_url
from synmanager.testing import BackendContract
from synmanager.testing.model import ContractMachine
from synmanager.testing.network import NetworkBrokerUnderTest

PREFIX = "synmanager-contract"
KEYS = Keys(PREFIX)


def _answer_nonsense() -> NoReturn:
    raise ResponseError("NEVER heard of it")


class RedisUnderTest(NetworkBrokerUnderTest):
    """A server, which may hold other things as well."""

    timeout = 3.0  # a busy server takes more than a second now and then
    excuses = dict.fromkeys(
        ("restart", "freeze_server"), "the server is everybody's; tests/faults has its own"
    )

    def __init__(self, url: str) -> None:
        self._address = replace(parse_url(url), options={"prefix": PREFIX})
        super().__init__(self._address.host or "localhost", self._address.port or 6379)
        self.foreigner = redis.Redis.from_url(url)

    def close(self) -> None:
        self.foreigner.close()
        self.foreigner.connection_pool.disconnect()  # which redis-py 5.0.0 leaves to chance

    def new_client(self, **address: Any) -> RedisBackend:
        return RedisBackend(replace(self._address, **address))

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, RedisBackend)
        connections = client._connections
        assert connections is not None
        for connection, _ in connections._idle:
            connection._sock.shutdown(socket.SHUT_RDWR)

    def refused(self, password: str) -> dict[str, Any]:
        return {"username": "nobody", "password": password}

    def bad_options(self) -> list[dict[str, str]]:
        return [*super().bad_options(), {"cafile": "/nowhere/ca.pem"}, {"prefix": "{"}]

    def confuse(self, client: QueueBackend) -> None:
        assert isinstance(client, RedisBackend)
        assert client._connections is not None
        for connection, _ in client._connections._idle:
            connection.read_response = _answer_nonsense

    def publish_raw(self, queue: str, body: bytes) -> None:
        self._add(queue, {"body": body})

    def publish_damaged(self, queue: str) -> list[bytes]:
        damaged: list[dict[str, Any]] = [
            {"body": b"1", "id": b"\xff"},
            {"body": b"2", "schema": "one"},
            {"body": b"3", "submitted_at": "yesterday"},
            {"body": b"4", "submitted_at": "nan"},
            {"body": b"5", "attempts": "-1"},
        ]
        for fields in damaged:
            self._add(queue, fields)
        return [fields["body"] for fields in damaged]

    def discard(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            exchange = spec if isinstance(spec, ExchangeSpec) else spec.exchange
            self.foreigner.hdel(KEYS.exchanges, exchange.name)
            patterns = [f"{KEYS.route(exchange.name, None)}*"]
            if isinstance(spec, QueueSpec):
                self.foreigner.srem(KEYS.queues, spec.name)
                patterns.append(f"{KEYS.base(spec.name)}:*")
            for pattern in patterns:
                self.foreigner.delete(*self.foreigner.scan_iter(pattern, count=10_000), "nothing")

    def discard_logs(self, *logs: str) -> None:
        self.foreigner.delete(*map(KEYS.log, logs), "nothing")

    def _add(self, queue: str, fields: dict[Any, Any]) -> None:
        self.foreigner.xadd(f"{KEYS.base(queue)}:normal", fields)


class TestRedis(BackendContract):
    @pytest.fixture
    def broker(self, redis_url: str) -> Iterator[RedisUnderTest]:
        broker = RedisUnderTest(redis_url)
        yield broker
        broker.close()


def test_a_random_walk(redis_url: str) -> None:
    class RedisMachine(ContractMachine):
        def make_broker(self) -> RedisUnderTest:
            self.under_test = RedisUnderTest(redis_url)
            return self.under_test

        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "under_test"):
                self.under_test.close()

    machine = RedisMachine.TestCase
    machine.settings = settings(
        max_examples=20, stateful_step_count=30, deadline=None, database=None
    )
    machine().runTest()
