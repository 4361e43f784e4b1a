"""What only RabbitMQ has: kinds of queues, forbidden features, its own timeout, its topology."""

from __future__ import annotations

import gc
import logging
import socket
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pika
import pytest
from conftest import stranded, version
from threads import WAIT, in_thread, until

from synmanager.backends import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.backends.rabbitmq.frames import Content
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    InvalidJob,
    LeaseLost,
    PublishRefused,
    Unroutable,
)
from synmanager.message import Message, Rank, encode
from synmanager.settings import parse_url


@pytest.fixture
def spec(plain: Any) -> Iterator[QueueSpec]:
    name = f"test-{uuid4().hex}"
    yield QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), f"{name}-key")
    if plain.is_open:
        delete(plain, name)
        plain.exchange_delete(f"{name}-exchange")


def delete(plain: Any, queue: str) -> None:
    """Remove a queue and all that lies beside it."""
    plain.queue_delete(queue)
    plain.queue_delete(f"{queue}.dead")
    plain.queue_delete(f"~{queue}.due")
    plain.exchange_delete(f"~{queue}.due")


def publish(client: RabbitMQBackend, spec: QueueSpec, *ranks: Rank) -> list[Message]:
    sent = [Message(encode({"number": n}), rank=rank) for n, rank in enumerate(ranks)]
    client.publish(spec.exchange.name, spec.routing_key, sent)
    return sent


def test_quorum_queues_are_made_for_who_wants_them(
    amqp_url: str, plain: Any, spec: QueueSpec
) -> None:
    """Without a limit of deliveries, or with one that is never reached."""
    limit = -1 if version(plain) >= (4, 3) else 2**31 - 1
    client = RabbitMQBackend(parse_url(f"{amqp_url}?queues=quorum"))
    client.open()
    client.declare(spec)
    made = client.facts([spec.name, f"{spec.name}.dead"]).arguments
    for arguments in made.values():
        assert arguments["x-queue-type"] == "quorum"
        assert arguments["x-delivery-limit"] == limit
    assert len(made) == 2
    client.undeclare(spec)
    client.close()


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
    assert "cannot rank" not in caplog.text  # it has sisters, where it cannot by itself
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
    with done.receipt.link:
        done.receipt.arrival.lane._channel.basic_ack(4711)  # unknown: 406
    with pytest.raises(LeaseLost):
        client.receive([spec.name], 1, done)
    client.ack(kept)
    # It comes back when the broker gets to it, perhaps behind what was there.
    attempts = {}
    while done.message.id not in attempts:
        again = client.receive([spec.name], 10)
        assert again is not None
        attempts[again.message.id] = again.attempt
        client.ack(again)
    assert attempts.pop(done.message.id) == 2
    assert set(attempts.values()) <= {1}


def test_a_consumer_that_the_broker_cancels_loses_what_it_holds(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    """As 4.3 does when a job outlasts its patience; here because the queue is deleted."""
    client.declare(spec)
    publish(client, spec, Rank.NORMAL, Rank.NORMAL)
    first = client.receive([spec.name], 10)
    assert first is not None
    held = client.receive([spec.name], 10, first)  # from a consumer, which stays
    assert held is not None
    plain.queue_delete(spec.name)

    def keep_for(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            client.renew(held)
            time.sleep(0.01)

    with pytest.raises(LeaseLost):
        keep_for(10)
    with pytest.raises(LeaseLost):
        client.ack(held)


def test_what_cannot_be_counted_on_a_caller_s_channel_goes_back(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    """The copy with the count has no queue to go to: that is the error, and the channel ends."""
    client.declare(spec)
    publish(client, spec, Rank.NORMAL)
    first, _, _ = plain.basic_get(spec.name)
    plain.basic_nack(first.delivery_tag)
    method, header, body = plain.basic_get(spec.name)
    assert method.redelivered
    with client._link as link, link.lane() as lane:  # type: ignore[union-attr]
        lane.call("queue_delete", spec.name)
    with pytest.raises(Unroutable):
        client.adopt(spec.name, plain, method, header, body, settled=False)
    assert not plain.is_open


def test_a_message_over_the_broker_s_limit_is_refused(
    client: RabbitMQBackend, spec: QueueSpec
) -> None:
    version = client._link.wire.server_properties["version"]  # type: ignore[union-attr]
    client.declare(spec)
    if version.startswith("3."):
        return  # its limit of 128 MiB is beyond what this test should need
    small, large = Message(b"{}"), Message(b"x" * (17 << 20))
    with pytest.raises(InvalidJob, match=f"{large.id}.*larger"):
        client.publish(spec.exchange.name, spec.routing_key, [small, large])
    publish(client, spec, Rank.NORMAL)


def test_a_full_queue_refuses(client: RabbitMQBackend, plain: Any, spec: QueueSpec) -> None:
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    plain.queue_declare(spec.name, durable=True, arguments=limits)
    client.declare(spec)
    publish(client, spec, Rank.NORMAL)
    with pytest.raises(PublishRefused, match="full"):
        publish(client, spec, Rank.NORMAL, Rank.NORMAL)
    assert client.count(spec.name).ready == 1


def test_a_job_of_a_full_queue_comes_again_and_is_counted(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    """Its count is written into a copy, for which there is no room."""
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    plain.queue_declare(spec.name, durable=True, arguments=limits)
    client.declare(spec)
    publish(client, spec, Rank.NORMAL)
    method, _, _ = plain.basic_get(spec.name)
    publish(client, spec, Rank.NORMAL)
    plain.basic_nack(method.delivery_tag)
    until(lambda: client.count(spec.name).ready == 2, "it is back")
    crashed = client.receive([spec.name], 10)
    assert crashed is not None
    assert crashed.attempt == 2
    client.ack(crashed)
    fresh = client.receive([spec.name], 10)
    assert fresh is not None
    assert fresh.attempt == 1


def test_a_port_where_another_protocol_is_spoken(amqp_url: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = replace(parse_url(amqp_url), host="127.0.0.1", port=server.server_port, timeout=5.0)
    try:
        with pytest.raises(AccessRefused, match="it speaks HTTP"):
            RabbitMQBackend(address).open()
    finally:
        server.shutdown()
        server.server_close()


def nested(depth: int) -> bytes:
    """An AMQP table in a table in a table."""
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


def publish_with_headers(
    client: RabbitMQBackend, spec: QueueSpec, table: bytes, body: bytes
) -> None:
    """Publish with a table of headers that pika would not write."""
    flags = struct.pack(">H", pika.BasicProperties.FLAG_HEADERS)
    content = Content(flags + struct.pack(">I", len(table)) + table, body)
    with client._link as link, link.lane() as lane:  # type: ignore[union-attr]
        lane.publish("", spec.name, [content])


@pytest.mark.parametrize(
    "table", [nested(1500), b"\x04whenT" + struct.pack(">Q", 1 << 62)], ids=["deep", "far future"]
)
def test_headers_that_pika_cannot_read_make_a_dead_letter(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec, table: bytes
) -> None:
    client.declare(spec)
    publish_with_headers(client, spec, table, b'{"number": 1}')
    publish(client, spec, Rank.LOW)
    bodies = []
    for _ in range(2):
        delivery = client.receive([spec.name], 10)
        assert delivery is not None
        if delivery.defect is None:
            client.ack(delivery)
        else:
            client.bury(delivery, delivery.defect)
        bodies.append(delivery.message.body)
    assert sorted(bodies) == [b'{"number": 0}', b'{"number": 1}']
    (letter,) = client.dead_letters(spec.name, 10)
    assert letter.message.body == b'{"number": 1}'
    assert "cannot be read" in letter.reason


@pytest.mark.parametrize(
    "table",
    [b"\x05scored" + struct.pack(">d", 1e300), b"\x01\xfft\x01"],
    ids=["large number", "name that is no text"],
)
def test_headers_that_pika_cannot_write_are_left_out_of_a_copy(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec, table: bytes
) -> None:
    client.declare(spec)
    publish_with_headers(client, spec, table, b"{}")
    first = client.receive([spec.name], 10)
    assert first is not None
    assert first.defect is None
    client.nack(first)
    second = client.receive([spec.name], 10)
    assert second is not None
    assert second.attempt == 2
    client.bury(second, "enough")
    (letter,) = client.dead_letters(spec.name, 10)
    assert (letter.message.body, letter.reason) == (b"{}", "enough")


def test_trouble_with_what_is_done_beside_a_job_ends_no_heartbeats(
    client: RabbitMQBackend, caplog: pytest.LogCaptureFixture
) -> None:
    done = []

    def trouble() -> bool:
        raise ArithmeticError("not foreseen")

    def unfinished() -> bool:
        done.append(time.monotonic())
        return len(done) == 3

    link = client._link
    assert link is not None
    with link:
        link.later(trouble)
        link.later(unfinished)
    until(lambda: len(done) == 3, "what is not done is done at the next look")
    assert "not foreseen" in caplog.text
    assert not link._chores


def test_two_threads_that_settle_one_delivery_settle_it_once(
    client: RabbitMQBackend, spec: QueueSpec
) -> None:
    """As when the grace period ends just when the callback does."""
    client.declare(spec)
    for _ in range(30):
        publish(client, spec, Rank.NORMAL)
        delivery = client.receive([spec.name], 10)
        assert delivery is not None
        threads = [
            threading.Thread(target=client.nack, args=(delivery,)),
            threading.Thread(target=client.ack, args=(delivery,)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert delivery.settled
        client.renew(delivery)
        client.count(spec.name)  # no channel was closed under us
        client.purge(spec.name)
    assert client._link is not None
    assert len(set(client._link._idle)) == len(client._link._idle)


def test_a_job_that_is_settled_while_another_is_asked_for_is_settled_once(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    other = QueueSpec(f"{spec.name}.other", spec.exchange, "other")
    client.declare(spec, other)
    for _ in range(30):
        waiting = in_thread(client.receive, [other.name, spec.name], 10)
        publish(client, spec, Rank.NORMAL)
        delivery = waiting()
        assert delivery is not None
        asking = in_thread(client.receive, [other.name, spec.name], 0.0, delivery)
        client.nack(delivery)
        again = asking() or client.receive([spec.name], 0.0)
        assert delivery.settled
        if again is not None:  # the nack came first
            client.ack(again)
        assert client.count(spec.name).ready == 0
    delete(plain, other.name)


def test_a_connection_that_is_cut_during_the_login_is_no_refusal(amqp_url: str) -> None:
    address = parse_url(amqp_url)
    listener = socket.create_server(("127.0.0.1", 0))

    def cut_after_start_ok() -> None:
        client, _ = listener.accept()
        server = socket.create_connection((address.host or "", address.port or 5672))
        server.sendall(client.recv(8))
        client.sendall(server.recv(65536))
        client.recv(65536)  # Start-Ok: the credentials
        client.close()
        server.close()

    thread = threading.Thread(target=cut_after_start_ok)
    thread.start()
    try:
        port = listener.getsockname()[1]
        with pytest.raises(BrokerUnavailable):
            RabbitMQBackend(replace(address, host="127.0.0.1", port=port)).open()
    finally:
        thread.join(10)
        listener.close()


def test_a_client_that_is_dropped_without_a_word_is_freed(amqp_url: str) -> None:
    dropped = RabbitMQBackend(replace(parse_url(amqp_url), heartbeat=1.0))
    dropped.open()
    wire = weakref.ref(dropped._link.wire)  # type: ignore[union-attr]
    del dropped
    deadline = time.monotonic() + 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # that is what happens to its sockets
        while wire() is not None and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.05)
    assert wire() is None


def test_a_delay_that_ends_without_its_queue_is_in_nobody_s_way(
    client: RabbitMQBackend, amqp_url: str, plain: Any, spec: QueueSpec
) -> None:
    """More of them than RabbitMQ dead-letters at a time; and they come when the queue is back."""
    other = QueueSpec(f"{spec.name}-other", spec.exchange, f"{spec.routing_key}-other")
    client.declare(spec, other)

    gone = [Message(encode({"number": n})) for n in range(100)]
    ids = [message.id for message in gone]
    try:
        plain.queue_delete(spec.name)
        client.publish(spec.exchange.name, spec.routing_key, gone, delay=0.5)
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
        delete(plain, other.name)
    until(lambda: {*ids} <= {*stranded(plain)}, "they are put aside", 30)
    newcomer = RabbitMQBackend(parse_url(amqp_url))
    newcomer.open()
    newcomer.declare(spec)
    arrived: list[str] = []
    while job := newcomer.receive([spec.name], WAIT if len(arrived) < len(ids) else 0.5):
        arrived.append(job.message.id)
        newcomer.ack(job)
    newcomer.close()
    assert not {*ids} & {*stranded(plain)}
    assert arrived == ids
