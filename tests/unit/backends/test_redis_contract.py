"""The Redis backend keeps the contract, as far as fakeredis can tell."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
from fake_redis import FakeConnection, new_server
from hypothesis import settings

from synmanager.backends import Address, QueueBackend
from synmanager.backends.redis import RedisBackend
from synmanager.testing import BackendContract, BrokerUnderTest
from synmanager.testing.model import ContractMachine


class FakeRedisUnderTest(BrokerUnderTest):
    # Real time: the backend compares the server's clock with its own, and both would have to be
    # moved together.
    lease = 0.5
    delay = 0.5
    quiet = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.server = new_server()
        self.foreigner = fakeredis.FakeRedis(server=self.server)

    def new_client(self, **address: Any) -> RedisBackend:
        return RedisBackend(Address("redis", **address), self.connection)

    def connection(self, **options: Any) -> FakeConnection:
        return FakeConnection(server=self.server, **options)

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, RedisBackend)
        connections = client._connections
        assert connections is not None
        for connection, _ in connections._idle:
            connection._sock.shutdown(0)

    def publish_raw(self, queue: str, body: bytes) -> None:
        self.foreigner.xadd(f"{{synmanager}}:queue:{queue}:normal", {"body": body})

    def publish_damaged(self, queue: str) -> list[bytes]:
        stream = f"{{synmanager}}:queue:{queue}:normal"
        damaged: list[dict[Any, Any]] = [
            {"body": b"1", "id": b"\xff"},
            {"body": b"2", "schema": "one"},
            {"body": b"3", "submitted_at": "yesterday"},
            {"body": b"4", "submitted_at": "nan"},
            {"body": b"5", "attempts": "-1"},
        ]
        for fields in damaged:
            self.foreigner.xadd(stream, fields)
        return [fields["body"] for fields in damaged]


class TestRedis(BackendContract):
    @pytest.fixture
    def broker(self) -> FakeRedisUnderTest:
        return FakeRedisUnderTest()


class RedisMachine(ContractMachine):
    def make_broker(self) -> FakeRedisUnderTest:
        return FakeRedisUnderTest()


TestRedisModel = RedisMachine.TestCase
TestRedisModel.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, database=None
)
