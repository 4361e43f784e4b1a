"""PostgreSQL keeps the contract, on a real server."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from server import PostgreSQL
from synmanager_postgresql import PostgreSQLBackend

from synmanager.backends import Address, QueueBackend
from synmanager.errors import TopologyError
from synmanager.testing import BackendContract
from synmanager.testing.model import ContractMachine
from synmanager.testing.network import NetworkBrokerUnderTest


class PostgreSQLUnderTest(NetworkBrokerUnderTest):
    # Each commit waits for a disk that others use as well.
    delay = 2.0
    timeout = 3.0

    def __init__(self, server: PostgreSQL) -> None:
        super().__init__("127.0.0.1", server.port)
        self._server = server
        self._address = Address.from_url(server.url())

    def new_client(self, **address: Any) -> PostgreSQLBackend:
        return PostgreSQLBackend(replace(self._address, **address))

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, PostgreSQLBackend)
        if client._pool is not None:
            for wire in (*client._pool._idle, *client._pool._busy):
                wire.shut_down()

    def confuse(self, client: QueueBackend) -> None:
        assert isinstance(client, PostgreSQLBackend)
        assert client._pool is not None
        for wire in client._pool._idle:
            wire.ask("BEGIN")
            with suppress(TopologyError):
                wire.ask("SELECT 1 FROM nowhere")  # after which nothing is answered but that

    def refused(self, password: str) -> dict[str, Any]:
        return {"password": password}

    def publish_raw(self, queue: str, body: bytes) -> None:
        self._server.publish_raw(queue, body)

    def publish_damaged(self, queue: str) -> list[bytes]:
        damages = {
            b"1": "rank = 77",
            b"2": "schema = -1",
            b"3": "submitted_at = 'NaN'",
            b"4": "submitted_at = 'Infinity'",
            b"5": "headers = '{'",
            b"6": "headers = '[1]'",
            b"7": "headers = '{\"a\": 1}'",
            b"8": "deliveries = -3",
        }
        for body, damage in damages.items():
            self.publish_raw(queue, body)
            self._server.execute(f"UPDATE synmanager.jobs SET {damage} WHERE body = %s", body)
        return list(damages)


class TestPostgreSQL(BackendContract):
    @pytest.fixture
    def broker(self, server: PostgreSQL) -> PostgreSQLUnderTest:
        return PostgreSQLUnderTest(server)


_server: PostgreSQL | None = None


@pytest.fixture(autouse=True)
def _remember(server: PostgreSQL) -> None:
    global _server
    _server = server


class PostgreSQLMachine(ContractMachine):
    def make_broker(self) -> PostgreSQLUnderTest:
        assert _server is not None
        return PostgreSQLUnderTest(_server)


TestPostgreSQLModel = PostgreSQLMachine.TestCase
TestPostgreSQLModel.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, database=None
)
