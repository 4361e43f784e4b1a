"""The Redis backend keeps the contract, as far as fakeredis can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import fakeredis
import pytest
from cutting import Cutter
from fake_redis import FakeConnection, new_server
from hypothesis import settings
from redis.exceptions import ConnectionError, ResponseError

from synmanager.backends import Address, QueueBackend
from synmanager.backends.redis import RedisBackend
from synmanager.testing import BackendContract, BrokerUnderTest
from synmanager.testing.model import ContractMachine


def _answer_nonsense() -> NoReturn:
    raise ResponseError("NEVER heard of it")


class _CuttingConnection(FakeConnection):
    """Counts what is sent, and loses one request or its reply."""

    def __init__(self, cutter: Cutter, **options: Any) -> None:
        super().__init__(**options)
        self._cutter = cutter

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        send = super().send_packed_command
        self._cutter.trip(lambda: send(command, check_health), ConnectionError("cut"))


class FakeRedisUnderTest(BrokerUnderTest):
    excuses = dict.fromkeys(
        ("freeze", "freeze_server", "restart", "refused", "dead"), "fakeredis is no server"
    )
    # Real time: the backend compares the server's clock with its own, and both would have to be
    # moved together.
    lease = 0.5
    delay = 1.0  # in which others look that nothing is due, however slow they are
    quiet = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.server = new_server()
        self.foreigner = fakeredis.FakeRedis(server=self.server)
        self._cutters: dict[QueueBackend, Cutter] = {}

    def new_client(self, **address: Any) -> RedisBackend:
        return RedisBackend(Address("redis", **address), self.connection)

    def connection(self, **options: Any) -> FakeConnection:
        return FakeConnection(server=self.server, **options)

    def new_wired_client(self, **address: Any) -> RedisBackend:
        cutter = Cutter()

        def connection(**options: Any) -> FakeConnection:
            return _CuttingConnection(cutter, server=self.server, **options)

        client = RedisBackend(Address("redis", **address), connection)
        self._cutters[client] = cutter
        return client

    def requests(self, client: QueueBackend) -> int:
        return self._cutters[client].count

    def cut_round_trip(
        self, client: QueueBackend, number: int, *, acted: bool
    ) -> Callable[[], bool]:
        return self._cutters[client].cut(number, acted=acted)

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, RedisBackend)
        connections = client._connections
        assert connections is not None
        for connection, _ in connections._idle:
            connection._sock.shutdown(0)

    def confuse(self, client: QueueBackend) -> None:
        assert isinstance(client, RedisBackend)
        assert client._connections is not None
        for connection, _ in client._connections._idle:
            connection.read_response = _answer_nonsense

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
