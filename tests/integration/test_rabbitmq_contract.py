"""The RabbitMQ backend keeps the contract, on real servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pika
import pytest
from containers import Container
from hypothesis import settings

from synmanager.backends import ExchangeSpec, QueueBackend, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.backends.rabbitmq.journal import stream
from synmanager.backends.rabbitmq.ranks import sisters
from synmanager.errors import PublishRefused
from synmanager.settings import parse_url
from synmanager.testing import BackendContract
from synmanager.testing.dead_letters import DeadLetters
from synmanager.testing.model import ContractMachine
from synmanager.testing.network import NetworkBrokerUnderTest
from synmanager.testing.ranking import Ranking
from synmanager.testing.receiving import Receiving
from synmanager.testing.steps import (
    AT_ONCE,
    WAIT,
    in_thread,
    make_message,
    make_spec,
    publish,
    take,
)
from synmanager.testing.topic import Declare

#: Headers and properties that make no sense, each by itself.
DAMAGE: tuple[dict[str, Any], ...] = (
    {"x-synmanager-attempts": "many"},
    {"x-synmanager-attempts": -1},
    {"x-synmanager-schema": "new"},
    {"x-synmanager-submitted-at": "yesterday"},
)


class RabbitMQUnderTest(NetworkBrokerUnderTest):
    """A server that is shared by all tests of the session.

    Args:
        channel: of plain pika, for what only a stranger does.
    """

    timeout = 3.0  # a busy server takes more than a second now and then
    excuses = dict.fromkeys(
        ("restart", "freeze_server"), "the server is everybody's; tests/faults has its own"
    )

    def __init__(self, url: str, channel: Any) -> None:
        self._address = parse_url(url)
        super().__init__(self._address.host or "localhost", self._address.port or 5672)
        self._channel = channel

    def new_client(self, **address: Any) -> RabbitMQBackend:
        return RabbitMQBackend(replace(self._address, **address))

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, RabbitMQBackend)
        assert client._link is not None
        # As the kernel does for a process that dies: the broker sees the end of the stream.
        client._link.wire._sock.shutdown(socket.SHUT_RDWR)

    def refused(self, password: str) -> dict[str, Any]:
        return {"username": "guest", "password": password}

    def bad_options(self) -> list[dict[str, str]]:
        return [*super().bad_options(), {"cafile": "/nowhere/ca.pem"}]

    def confuse(self, client: QueueBackend) -> None:
        assert isinstance(client, RabbitMQBackend)
        assert client._link is not None
        wire = client._link.wire
        read = wire._on_data_available
        wire._on_data_available = lambda data: read(b"\xff" + data)

    def publish_raw(self, queue: str, body: bytes) -> None:
        self._channel.basic_publish("", queue, body, mandatory=True)

    def publish_damaged(self, queue: str) -> list[bytes]:
        bodies = []
        for number, headers in enumerate(DAMAGE):
            bodies.append(b'{"damage": %d}' % number)
            properties = pika.BasicProperties(headers=headers, delivery_mode=2)
            self._channel.basic_publish("", queue, bodies[-1], properties, mandatory=True)
        return bodies

    def discard(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            if isinstance(spec, QueueSpec):
                self._channel.queue_delete(f"{spec.name}.dead")
                for queue in (spec.name, *(sister.name for sister in sisters(spec))):
                    self._channel.queue_delete(queue)
                    if len(f"~{queue}.due".encode()) <= 255:  # else there can be none
                        self._channel.queue_delete(f"~{queue}.due")
                        self._channel.exchange_delete(f"~{queue}.due")
            else:
                for suffix in ("", ".high", ".low"):
                    self._channel.exchange_delete(f"{spec.name}{suffix}")

    def discard_logs(self, *logs: str) -> None:
        for log in logs:
            self._channel.queue_delete(stream(log))


@pytest.fixture(scope="module")
def channel(amqp_url: str) -> Iterator[Any]:
    parameters = pika.URLParameters(amqp_url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    made = connection.channel()
    made.confirm_delivery()
    yield made
    with suppress(pika.exceptions.AMQPError):
        connection.close()


class TestRabbitMQ(BackendContract):
    @pytest.fixture
    def broker(self, amqp_url: str, channel: Any) -> RabbitMQUnderTest:
        return RabbitMQUnderTest(amqp_url, channel)


@pytest.fixture
def quorum_broker(amqp_url: str, channel: Any) -> RabbitMQUnderTest:
    """A server on which every queue is a quorum queue, and has sisters before 4.3."""
    return RabbitMQUnderTest(f"{amqp_url}?queues=quorum", channel)


@pytest.fixture
def ringing_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes later than it is awaited meets the end of its consumer, which counts before 4.3.

    On a busy machine that would be much of what is published at once.
    """
    if "ring_at_once" in request.node.name:
        monkeypatch.setattr("synmanager.backends.rabbitmq.backend._GATHERING", 1.0)


class TestQuorumQueues(Ranking, Receiving, DeadLetters):
    """What differs there; the rest is in the long form."""

    @pytest.fixture
    def broker(self, quorum_broker: RabbitMQUnderTest, ringing_at_once: None) -> RabbitMQUnderTest:
        return quorum_broker


@pytest.mark.long
class TestAllOnQuorumQueues(BackendContract):
    @pytest.fixture
    def broker(self, quorum_broker: RabbitMQUnderTest, ringing_at_once: None) -> RabbitMQUnderTest:
        return quorum_broker


def test_a_random_walk(amqp_url: str, channel: Any) -> None:
    class RabbitMQMachine(ContractMachine):
        def make_broker(self) -> RabbitMQUnderTest:
            return RabbitMQUnderTest(amqp_url, channel)

    machine = RabbitMQMachine.TestCase
    machine.settings = settings(
        max_examples=20, stateful_step_count=30, deadline=None, database=None
    )
    machine().runTest()


@pytest.fixture(scope="module")
def strict_url(mq_image: str) -> Iterator[str]:
    """A server that forbids a prefetch over a whole channel, as 4.3 does by default."""
    forbidden = "-rabbit permit_deprecated_features #{global_qos=>false}"
    with Container(mq_image, {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": forbidden}) as container:
        container.wait_until_answering()
        yield f"amqp://guest:guest@127.0.0.1:{container.port(5672)}"
        assert "deprecated_features.permit.global_qos" in container.logs()  # it was asked for


class TestWithoutSharedPrefetch(Receiving):
    @pytest.fixture
    def broker(self, strict_url: str) -> Iterator[RabbitMQUnderTest]:
        connection = pika.BlockingConnection(pika.URLParameters(strict_url))
        yield RabbitMQUnderTest(strict_url, connection.channel())
        connection.close()

    def test_what_cannot_go_back_is_not_the_jobs_fault(
        self, broker: RabbitMQUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        """What came beside it is copied into its queue, and here that is full."""
        first = declare("fanout")
        second = make_spec(exchange=first.exchange)
        limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
        broker._channel.queue_declare(second.name, durable=True, arguments=limits)
        client.declare(second)
        for number in range(20):
            waiting = in_thread(client.receive, [first.name, second.name], WAIT)
            time.sleep(broker.quiet)
            left = 3
            try:
                publish(other, first, make_message(number), make_message("fills it"))
            except PublishRefused:  # it was full already
                left = 2
            held = waiting.result(AT_ONCE)
            assert held is not None
            for _ in range(left):
                other.ack(take(other, first, second, wait=AT_ONCE))
            client.ack(held)
