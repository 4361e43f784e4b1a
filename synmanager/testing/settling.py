"""Ack, nack and bury: once, twice, and after one another."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    AT_ONCE,
    HEADERS,
    WAIT,
    assert_counts,
    drain,
    in_thread,
    make_message,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Topic

__all__ = ["Settling"]

Settle = Callable[[QueueBackend, Delivery], None]

SETTLE: dict[str, Settle] = {
    "ack": lambda client, delivery: client.ack(delivery),
    "nack": lambda client, delivery: client.nack(delivery),
    "nack later": lambda client, delivery: client.nack(delivery, delay=3600),
    "nack uncounted": lambda client, delivery: client.nack(delivery, count=False),
    "bury": lambda client, delivery: client.bury(delivery, "a reason"),
}

#: What ``count`` says after each.
OUTCOME: dict[str, dict[str, int]] = {
    "ack": {},
    "nack": {"ready": 1},
    "nack later": {"delayed": 1},
    "nack uncounted": {"ready": 1},
    "bury": {"dead": 1},
}


class Settling(Topic):
    def test_an_acked_message_is_gone(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        delivery = take(client, spec)
        client.ack(delivery)
        assert delivery.settled
        assert takes_nothing(broker, client, spec)
        client.close()
        assert takes_nothing(broker, other, spec)
        assert_counts(other, spec)

    def test_an_ack_settles_no_other_delivery(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(3)))
        held = [take(client, spec) for _ in sent]
        client.ack(held[1])
        assert not held[0].settled
        client.close()
        assert {take(other, spec).message.id for _ in range(2)} == {sent[0].id, sent[2].id}

    @pytest.mark.parametrize(("count", "attempt"), [(True, 2), (False, 1)])
    def test_a_nacked_message_comes_back(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec, count: bool, attempt: int
    ) -> None:
        (sent,) = publish(client, spec, make_message(rank=Rank.HIGH))
        delivery = take(client, spec)
        client.nack(delivery, count=count)
        assert delivery.settled
        again = take(other, spec, wait=AT_ONCE)
        assert again.attempt == attempt
        assert again.message.id == sent.id
        assert again.message.rank is sent.rank
        assert again.message.body == sent.body
        assert again.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        assert not again.settled

    @pytest.mark.parametrize("delay", [0.0, 0.01], ids=["at once", "delayed"])
    def test_headers_come_back_each_time(
        self, client: QueueBackend, spec: QueueSpec, delay: float
    ) -> None:
        publish(client, spec, Message(b"{}", headers=HEADERS))
        for _ in range(2):
            client.nack(take(client, spec), delay=delay)
        client.nack(take(client, spec), count=False)
        delivery = take(client, spec)
        assert delivery.message.headers == HEADERS
        assert delivery.attempt == 3

    def test_every_counted_nack_adds_one_attempt(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        counted = [True, True, False, True, False] + [True] * 7  # to where one digit ends
        attempts = []
        for count in counted:
            delivery = take(client, spec)
            attempts.append(delivery.attempt)
            client.nack(delivery, count=count)
        attempts.append(take(client, spec).attempt)
        assert attempts == [1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]

    def test_a_nacked_message_exists_once(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        client.nack(take(client, spec))
        assert len(drain(broker, client, spec)) == 1

    def test_a_nack_wakes_up_a_waiting_client(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        delivery = take(client, spec)
        waiting = in_thread(other.receive, [spec.name], WAIT)
        time.sleep(broker.quiet)  # no call tells that another one is waiting
        client.nack(delivery)
        again = waiting.result(AT_ONCE)
        assert again is not None
        assert again.message.id == sent.id

    @pytest.mark.parametrize("second", SETTLE)
    @pytest.mark.parametrize("first", SETTLE)
    def test_settling_twice_changes_nothing(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        first: str,
        second: str,
    ) -> None:
        """What is settled is no lost lease, whatever is asked of it: ``renew`` is a no-op too."""
        publish(client, spec)
        delivery = take(client, spec)
        SETTLE[first](client, delivery)
        SETTLE[second](client, delivery)
        client.renew(delivery)
        outcome = OUTCOME[first]
        assert_counts(client, spec, **outcome)
        assert len(drain(broker, other, spec)) == outcome.get("ready", 0)

    @pytest.mark.parametrize("second", SETTLE)
    def test_settling_twice_does_not_touch_the_next_holder(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        second: str,
    ) -> None:
        publish(client, spec)
        delivery = take(client, spec)
        client.nack(delivery, count=False)
        again = take(other, spec)
        SETTLE[second](client, delivery)
        assert takes_nothing(broker, client, spec)
        other.ack(again)
        assert_counts(client, spec)
