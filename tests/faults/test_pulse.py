"""A node that can confirm nothing is cut off from the others, which hand out what runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from harness.rabbitmq import RabbitMQ

from synmanager.backends import Delivery, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend, pulse
from synmanager.errors import LeaseLost
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, make_spec, publish, take

pytestmark = pytest.mark.only("rabbitmq")

#: Seconds; and those for which a broker may stand still that is only slow.
EVERY = 0.2
LONG = 50.0


def several(url: str) -> str:
    """One node, by two names."""
    login, _, rest = url.partition("127.0.0.1")
    port = rest.partition("/")[0]
    return f"{login}localhost{port},127.0.0.1{rest}"


@pytest.fixture
def connect(
    broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., RabbitMQBackend]]:
    monkeypatch.setattr(pulse, "_EVERY", EVERY)
    monkeypatch.setattr(pulse, "_DOUBT", LONG)
    broker.make_queues_of("quorum")
    made: list[RabbitMQBackend] = []

    def connect_one(url: str = "") -> RabbitMQBackend:
        made.append(RabbitMQBackend(parse_url(several(url or broker.url()))))
        made[-1].open()
        return made[-1]

    yield connect_one
    for client in made:
        client.close()


@pytest.fixture
def spec(connect: Callable[..., RabbitMQBackend]) -> QueueSpec:
    """Of a queue with one job."""
    spec = make_spec()
    client = connect()
    client.declare(spec)
    publish(client, spec, make_message())
    return spec


def keep(client: RabbitMQBackend, delivery: Delivery, is_over: Callable[[], object]) -> None:
    """Renew as a worker does while it runs a job."""
    until = time.monotonic() + 60
    while not is_over():
        assert time.monotonic() < until
        client.renew(delivery)
        time.sleep(0.02)


def is_felt(client: RabbitMQBackend) -> bool:
    return client._topology.pulse._was_felt


def running(client: RabbitMQBackend, spec: QueueSpec) -> tuple[RabbitMQBackend, Delivery]:
    """Take the job, and feel the pulse."""
    client.declare(spec)
    delivery = take(client, spec)
    keep(client, delivery, lambda: is_felt(client))
    return client, delivery


def test_its_workers_lose_what_they_run_and_go_to_another(
    broker: RabbitMQ,
    connect: Callable[..., RabbitMQBackend],
    spec: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, delivery = running(connect(), spec)
    monkeypatch.setattr(pulse, "_DOUBT", EVERY)
    with broker.holding(pulse.QUEUE), pytest.raises(LeaseLost):
        keep(client, delivery, lambda: client.count(spec.name) is None)  # it answers all else
    assert not client.is_open
    client.open()
    client.ack(take(client, spec))


def test_where_none_was_ever_felt_nothing_is_given_up(
    broker: RabbitMQ,
    connect: Callable[..., RabbitMQBackend],
    spec: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, delivery = running(connect(), spec)
    first.ack(delivery)
    publish(first, spec, make_message())
    monkeypatch.setattr(pulse, "_DOUBT", EVERY)
    client = connect()
    client.declare(spec)
    with broker.holding(pulse.QUEUE):
        delivery = take(client, spec)
        until = time.monotonic() + 10 * EVERY
        keep(client, delivery, lambda: time.monotonic() > until)
    keep(client, delivery, lambda: is_felt(client))
    client.ack(delivery)


def test_who_finds_the_queue_does_not_ask_for_it(
    connect: Callable[..., RabbitMQBackend], spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ends the connection of who asks while the queue has no leader."""
    first, delivery = running(connect(), spec)
    first.ack(delivery)
    publish(first, spec, make_message())
    second = connect()
    monkeypatch.setattr(second._topology.pulse, "_find", None)
    second, delivery = running(second, spec)
    second.ack(delivery)


def test_a_queue_that_was_deleted_is_made_anew(
    broker: RabbitMQ, connect: Callable[..., RabbitMQBackend], spec: QueueSpec
) -> None:
    client, delivery = running(connect(), spec)
    broker.delete_queue(pulse.QUEUE)

    def is_there() -> bool:
        with suppress(Exception), broker.channel() as channel:
            return bool(channel.queue_declare(pulse.QUEUE, passive=True))
        return False

    keep(client, delivery, is_there)
    client.ack(delivery)


def test_while_the_broker_reads_nothing_nothing_is_given_up(
    broker: RabbitMQ,
    connect: Callable[..., RabbitMQBackend],
    spec: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, delivery = running(connect(), spec)
    broker.raise_memory_alarm()
    try:
        link = client._link
        assert link is not None
        keep(client, delivery, lambda: link.wire.blocked)
        monkeypatch.setattr(pulse, "_DOUBT", EVERY)
        until = time.monotonic() + 10 * EVERY
        keep(client, delivery, lambda: time.monotonic() > until)
        monkeypatch.setattr(pulse, "_DOUBT", LONG)
    finally:
        broker.end_alarms()
    keep(client, delivery, lambda: not link.wire.blocked)
    client.ack(delivery)


def test_who_may_not_make_the_queue_is_told_so_and_works_on(
    broker: RabbitMQ, connect: Callable[..., RabbitMQBackend], caplog: pytest.LogCaptureFixture
) -> None:
    url = broker.url_of_a_stranger()
    broker.forbid("stranger", r"synmanager\\.pulse")
    spec = make_spec()
    with closing(connect(url)) as client:
        client.declare(spec)
        publish(client, spec, make_message())
        delivery = take(client, spec)
        keep(client, delivery, lambda: "cannot declare what tells them" in caplog.text)
        client.renew(delivery)
        client.ack(delivery)


def test_a_single_node_has_none(broker: RabbitMQ, spec: QueueSpec) -> None:
    with closing(RabbitMQBackend(parse_url(broker.url()))) as client:
        client.open()
        client.declare(spec)
        delivery = take(client, spec)
        client.renew(delivery)
        assert client._topology.pulse._lane is None
        client.ack(delivery)
