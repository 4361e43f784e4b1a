"""Dead letters that were looked at are there for whoever asks next, however busy their queue is.

The process of a classic queue says how much it has before it does what it was told earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest
from harness.rabbitmq import RabbitMQ

from synmanager.backends import QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend, lane, letters
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, make_spec, publish, take

pytestmark = pytest.mark.only("rabbitmq")

HELD = 1.0  # s


@pytest.fixture
def client(broker: RabbitMQ) -> Iterator[RabbitMQBackend]:
    with closing(RabbitMQBackend(parse_url(broker.url()))) as client:
        client.open()
        yield client


@pytest.fixture
def spec(client: RabbitMQBackend) -> QueueSpec:
    """Of a queue with three dead letters: "0", "1" and "2"."""
    spec = make_spec()
    client.declare(spec)
    publish(client, spec, *(make_message(str(number)) for number in range(3)))
    for _ in range(3):
        client.bury(take(client, spec), "why")
    return spec


def test_they_are_counted(
    broker: RabbitMQ, client: RabbitMQBackend, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Lane.close

    def hold_and_close(lane: Lane) -> None:
        monkeypatch.setattr(Lane, "close", close)
        broker.hold_queue(f"{spec.name}.dead", HELD)
        close(lane)

    monkeypatch.setattr(Lane, "close", hold_and_close)
    assert len(client.dead_letters(spec.name, 10)) == 3
    assert client.count(spec.name).dead == 3


def test_they_are_awaited_where_the_queue_is_slow_to_take_a_consumer(
    broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than between two of them."""
    broker.make_queues_of("quorum")
    ask = Lane._ask

    def hold_and_ask(asking: Lane, methods: Iterable[Any]) -> None:
        monkeypatch.setattr(Lane, "_ask", ask)
        broker.hold_queue(f"{spec.name}.dead", 2 * HELD)
        ask(asking, methods)

    with closing(RabbitMQBackend(parse_url(broker.url()))) as client:
        client.open()
        spec = make_spec()
        client.declare(spec)
        publish(client, spec, *(make_message(str(number)) for number in range(3)))
        for _ in range(3):
            client.bury(take(client, spec), "why")
        monkeypatch.setattr(lane, "_PAUSE", HELD)
        monkeypatch.setattr(Lane, "_ask", hold_and_ask)
        assert len(client.dead_letters(spec.name, 10)) == 3


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda client, queue, ids: client.redrive_letters(queue, ids), 1),
        (lambda client, queue, ids: client.purge_letters(queue, ids), 1),
        (lambda client, queue, ids: client.edit_letter(queue, ids[0], b"{}"), True),
        (lambda client, queue, _: client.redrive(queue, 10), 3),
        (lambda client, queue, _: client.purge_dead_letters(queue), 3),
        (lambda client, queue, _: len(client.dead_letters(queue, 10)), 3),
    ],
    ids=["redrive_letters", "purge_letters", "edit_letter", "redrive", "purge", "dead_letters"],
)
def test_they_are_found_by_another_client(
    broker: RabbitMQ,
    client: RabbitMQBackend,
    spec: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[RabbitMQBackend, str, list[str]], object],
    answer: object,
) -> None:
    def hold_and_close(lane: Lane, queue: str) -> None:
        broker.hold_queue(queue, HELD)
        lane.close()
        lane.link.wait(lambda: lane.is_lost)

    with closing(RabbitMQBackend(parse_url(broker.url()))) as other:
        other.open()
        with monkeypatch.context() as patch:
            patch.setattr(letters, "give_back", hold_and_close)
            looked_at = other.dead_letters(spec.name, 10)
        assert ask(client, spec.name, [looked_at[0].message.id]) == answer
