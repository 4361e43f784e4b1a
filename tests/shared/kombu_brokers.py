"""kombu's transports for the contract, each with what only its owner can do to it."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from synmanager.backends import QueueBackend, QueueSpec
from synmanager.backends.kombu import KombuBackend
from synmanager.settings import parse_url
from synmanager.testing import BackendContract, BrokerUnderTest
from synmanager.testing.dead_letters import DeadLetters
from synmanager.testing.leases import Leases
from synmanager.testing.settling import Settling
from synmanager.testing.steps import assert_counts, publish, take

__all__ = ["Contract", "KombuUnderTest", "Parts", "WholeContract"]


class Parts(Leases, Settling, DeadLetters):
    """What a transport can get wrong; the rest of the contract is mostly the backend's."""


class WholeContract(BackendContract):
    """The contract, but for what docs/kombu.md says of delays."""

    def test_what_is_due_is_counted_as_ready(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        """Once a consumer has looked, who moves it on where the broker does not."""
        publish(client, spec, delay=broker.delay)
        broker.pass_time(broker.delay)
        client.nack(take(client, spec), count=False)
        assert_counts(client, spec, ready=1)


# The long form, or the short one.
if TYPE_CHECKING or os.environ.get("SYNMANAGER_TEST_FORM") == "long":
    Contract = WholeContract
else:
    Contract = Parts


class KombuUnderTest(BrokerUnderTest):
    """A broker at a URL. Strangers reach it as this project's own carriers do.

    Args:
        url: with ``allow_loss=true`` where that is needed.
    """

    lease = 2.0
    delay = 0.8
    quiet = 0.1

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._address = parse_url(url)
        self._stranger: KombuBackend | None = None
        if not self.new_client().features.timed_lease:
            self.lease = 0.2  # which nothing waits for
        elif "+sqs:" in url:
            self.lease = 5.0  # every question to moto's server takes tens of milliseconds

    def new_client(self, **address: Any) -> KombuBackend:
        return KombuBackend(replace(self._address, **address))

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, KombuBackend)
        carrier: Any = client._carrier
        if hasattr(carrier, "_idle"):
            carrier._link.transport.sock.shutdown(socket.SHUT_RDWR)
        elif client._name == "pgmq":
            carrier._wire.close()
        elif client._name == "redis":
            pool = carrier._channel.pool
            for connection in pool._available_connections:
                if connection._sock is not None:
                    connection._sock.shutdown(socket.SHUT_RDWR)
        else:
            # No connection that could break: what is held is as lost as with the process.
            client._lose(carrier)
            client._held.clear()

    def publish_raw(self, queue: str, body: bytes) -> None:
        self._publish(queue, body, {})

    def publish_damaged(self, queue: str) -> list[bytes]:
        damaged = [
            (b"1", {"x-synmanager-schema": "one"}),
            (b"2", {"x-synmanager-submitted": "yesterday"}),
            (b"3", {"x-synmanager-submitted": "nan"}),
            (b"4", {"x-synmanager-attempts": "-1"}),
        ]
        for body, headers in damaged:
            self._publish(queue, body, headers)
        return [body for body, _ in damaged]

    def _publish(self, queue: str, body: bytes, headers: dict[str, str]) -> None:
        if self._stranger is None:
            self._stranger = self.new_client()
            self._stranger.open()
        carrier: Any = self._stranger._carrier
        channel = carrier._channel
        channel = channel() if callable(channel) else channel
        message = channel.prepare_message(
            body, content_type="application/json", content_encoding="utf-8", headers=headers
        )
        time.sleep(0.002)  # within one millisecond, files have no order
        if hasattr(carrier, "deliver"):
            carrier.deliver(message, queue)
        else:
            channel.basic_publish(message, "", queue)
        time.sleep(0.002)

    def close_clients(self) -> None:
        super().close_clients()
        if self._stranger is not None:
            self._stranger.close()
            self._stranger = None
