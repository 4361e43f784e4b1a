"""What only RabbitMQ has: kinds of queues, forbidden features, its own timeout, its topology."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pika
import pytest

from synmanager.backends import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.errors import BrokerUnavailable, LeaseLost, PublishRefused
from synmanager.message import Message, Rank, encode
from synmanager.settings import parse_url


@pytest.fixture
def plain(amqp_url: str) -> Iterator[Any]:
    """A channel of plain pika."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


@pytest.fixture
def client(amqp_url: str) -> Iterator[RabbitMQBackend]:
    made = RabbitMQBackend(parse_url(amqp_url))
    made.open()
    yield made
    made.close()


@pytest.fixture
def spec(plain: Any) -> Iterator[QueueSpec]:
    name = f"test-{uuid4().hex}"
    yield QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), f"{name}-key")
    if plain.is_open:
        plain.queue_delete(name)
        plain.queue_delete(f"{name}.dead")
        plain.exchange_delete(f"{name}-exchange")


def publish(client: RabbitMQBackend, spec: QueueSpec, *ranks: Rank) -> list[Message]:
    sent = [Message(encode({"number": n}), rank=rank) for n, rank in enumerate(ranks)]
    client.publish(spec.exchange.name, spec.routing_key, sent)
    return sent


def test_a_quorum_queue_is_taken_as_it_is_and_counts_its_deliveries_itself(
    client: RabbitMQBackend,
    amqp_url: str,
    plain: Any,
    spec: QueueSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain.queue_declare(spec.name, durable=True, arguments={"x-queue-type": "quorum"})
    with caplog.at_level(logging.WARNING, logger="synmanager"):
        client.declare(spec)
        client.declare(spec)
    assert len([record for record in caplog.records if "cannot rank" in record.message]) == 1
    (sent,) = publish(client, spec, Rank.NORMAL)
    attempts = []
    for _ in range(3):
        worker = RabbitMQBackend(parse_url(amqp_url))
        worker.open()
        delivery = worker.receive([spec.name], 10)
        assert delivery is not None
        assert delivery.message.id == sent.id
        attempts.append(delivery.attempt)
        worker.close()
    last = client.receive([spec.name], 10)
    assert last is not None
    assert [*attempts, last.attempt] == [1, 2, 3, 4]
    client.nack(last)
    again = client.receive([spec.name], 10)
    assert again is not None
    assert again.attempt == 5
    client.ack(again)


def test_a_queue_of_ours_outlasts_the_broker_s_patience_where_it_can(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    client.declare(spec)
    arguments: dict[str, Any] = {"x-max-priority": 9}
    version = client._link.wire.server_properties["version"]  # type: ignore[union-attr]
    if not version.startswith("3.10"):
        arguments["x-consumer-timeout"] = 7 * 24 * 3600 * 1000
    plain.queue_declare(spec.name, durable=True, arguments=arguments)  # equivalent: no 406


@pytest.mark.parametrize("listening", [False, True])
def test_a_channel_that_the_broker_closes_takes_its_delivery_and_nothing_else(
    client: RabbitMQBackend, spec: QueueSpec, listening: bool
) -> None:
    """As it does when a job outlasts its patience: then the lease is lost, and that is said."""
    client.declare(spec)
    publish(client, spec, Rank.NORMAL, Rank.NORMAL, Rank.NORMAL)
    done = client.receive([spec.name], 10)
    assert done is not None
    if listening:
        done = client.receive([spec.name], 10, done)
        assert done is not None
    kept = client.receive([spec.name], 10)
    assert kept is not None
    link, arrival = done.receipt
    with link:
        arrival.lane._channel.basic_ack(4711)  # an unknown delivery: 406, the channel is closed
    with pytest.raises(LeaseLost):
        client.receive([spec.name], 1, done)
    client.ack(kept)
    again = client.receive([spec.name], 10)
    assert again is not None
    assert (again.message.id, again.attempt) == (done.message.id, 2)
    client.ack(again)


def test_a_message_over_the_broker_s_limit_is_refused(
    client: RabbitMQBackend, spec: QueueSpec
) -> None:
    version = client._link.wire.server_properties["version"]  # type: ignore[union-attr]
    client.declare(spec)
    if version.startswith("3."):
        return  # its limit of 128 MiB is beyond what this test should need
    with pytest.raises(PublishRefused, match="larger"):
        client.publish(spec.exchange.name, spec.routing_key, [Message(b"x" * (17 << 20))])
    publish(client, spec, Rank.NORMAL)


def test_a_full_queue_refuses(client: RabbitMQBackend, plain: Any, spec: QueueSpec) -> None:
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    plain.queue_declare(spec.name, durable=True, arguments=limits)
    client.declare(spec)
    publish(client, spec, Rank.NORMAL)
    with pytest.raises(PublishRefused, match="full"):
        publish(client, spec, Rank.NORMAL, Rank.NORMAL)
    assert client.count(spec.name).ready == 1


def test_a_port_where_another_protocol_is_spoken(amqp_url: str) -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = replace(parse_url(amqp_url), host="127.0.0.1", port=server.server_port, timeout=5.0)
    try:
        with pytest.raises(BrokerUnavailable):
            RabbitMQBackend(address).open()
    finally:
        server.shutdown()
        server.server_close()


def test_a_delay_that_ends_without_its_queue_is_in_nobody_s_way(
    client: RabbitMQBackend, amqp_url: str, plain: Any, spec: QueueSpec
) -> None:
    """More of them than RabbitMQ dead-letters at a time; and they come when the queue is back."""
    other = QueueSpec(f"{spec.name}-other", spec.exchange, f"{spec.routing_key}-other")
    client.declare(spec, other)
    try:
        gone = [Message(encode({"number": n})) for n in range(100)]
        client.publish(spec.exchange.name, spec.routing_key, gone, delay=0.5)
        plain.queue_delete(spec.name)
        (passing,) = [Message(b"{}")]
        client.publish(other.exchange.name, other.routing_key, [passing], delay=1.5)
        delivery = client.receive([other.name], 10)
        assert delivery is not None
        assert delivery.message.id == passing.id
        client.nack(delivery, delay=0.5)
        again = client.receive([other.name], 10)
        assert again is not None
        client.ack(again)
    finally:
        plain.queue_delete(other.name)
        plain.queue_delete(f"{other.name}.dead")
    newcomer = RabbitMQBackend(parse_url(amqp_url))
    newcomer.open()
    newcomer.declare(spec)
    arrived = []
    while (job := newcomer.receive([spec.name], 1)) is not None:
        arrived.append(job.message.id)
        newcomer.ack(job)
    newcomer.close()
    assert arrived == [message.id for message in gone]
