"""Messages that become visible later: delayed ones, and retries."""

from __future__ import annotations

import time

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.message import Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    AT_ONCE,
    WAIT,
    assert_counts,
    in_thread,
    make_message,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import UNHURRIED, Declare, Topic

__all__ = ["Delays"]


class Delays(Topic):
    def test_a_delayed_message_is_invisible_until_it_is_due(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        delay = UNHURRIED * broker.delay
        (sent,) = publish(client, spec, make_message(rank=Rank.HIGH), delay=delay)
        assert client.receive([spec.name], 0) is None
        broker.pass_time(delay * 0.4)
        assert client.receive([spec.name], 0) is None
        broker.pass_time(delay * 0.6)
        delivery = take(client, spec)
        assert delivery.message.id == sent.id
        assert delivery.message.rank is sent.rank
        assert delivery.message.body == sent.body
        assert delivery.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        assert delivery.attempt == 1  # the wait was nobody's failure
        client.ack(delivery)
        assert takes_nothing(broker, client, spec)

    def test_a_delayed_message_wakes_up_a_waiting_client(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        specs = [declare(), declare()]
        (sent,) = publish(client, specs[1], delay=broker.delay)
        waiting = in_thread(other.receive, [spec.name for spec in specs], WAIT)
        time.sleep(min(broker.quiet, broker.delay / 2))
        assert not waiting.done()
        broker.pass_time(broker.delay)
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert delivery.message.id == sent.id

    @pytest.mark.parametrize("way", ["publish", "nack"])
    def test_a_delay_that_begins_during_a_wait_ends_it_when_it_is_over(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        way: str,
    ) -> None:
        """Who began to wait when nothing was delayed has to learn until when to sleep now."""
        if way == "nack":
            (sent,) = publish(client, spec)
            held = take(client, spec)
        waiting = in_thread(other.receive, [spec.name], WAIT)
        time.sleep(broker.quiet)  # no call tells that another one is waiting
        if way == "nack":
            client.nack(held, delay=broker.delay)
        else:
            (sent,) = publish(client, spec, delay=broker.delay)
        broker.pass_time(broker.delay)
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert delivery.message.id == sent.id

    def test_a_part_of_a_second_is_a_delay_too(self, client: QueueBackend, spec: QueueSpec) -> None:
        begun = time.monotonic()
        publish(client, spec, delay=0.7)
        client.nack(take(client, spec), delay=0.7)
        take(client, spec)
        assert time.monotonic() - begun > 1.2

    def test_a_delayed_batch_keeps_its_order(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(n) for n in range(10)), delay=broker.delay)
        broker.pass_time(broker.delay)
        taken = [take(client, spec) for _ in sent]
        assert [delivery.message.id for delivery in taken] == [message.id for message in sent]

    def test_delays_of_different_length_end_in_their_own_order(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        # The long one must not stand in the way of the short one behind it.
        (later,) = publish(client, spec, delay=broker.delay * 3)
        (sooner,) = publish(client, spec, delay=broker.delay)
        broker.pass_time(broker.delay)
        first = take(client, spec)
        assert first.message.id == sooner.id
        client.ack(first)
        broker.pass_time(broker.delay * 2)
        assert take(client, spec).message.id == later.id

    def test_a_delayed_message_takes_its_place_by_rank_when_it_is_due(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, make_message(rank=Rank.HIGH), delay=broker.delay)
        publish(client, spec, make_message(rank=Rank.LOW), delay=broker.delay)
        publish(client, spec, make_message(1), make_message(2))
        assert take(client, spec).message.rank is Rank.NORMAL
        broker.pass_time(broker.delay * 3)  # all are there by then, also on a slow machine
        ranks = [take(client, spec).message.rank for _ in range(3)]
        assert ranks == [Rank.HIGH, Rank.NORMAL, Rank.LOW]

    def test_a_delayed_message_outlives_its_publisher(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(other, spec, delay=broker.delay)
        broker.cut(other)
        broker.pass_time(broker.delay)
        assert take(client, spec).message.id == sent.id

    def test_a_fanout_delays_every_copy(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        second = declare(exchange=first.exchange)
        (sent,) = publish(client, first, delay=broker.delay)
        assert client.receive([first.name, second.name], 0) is None
        broker.pass_time(broker.delay)
        assert take(client, first).message.id == sent.id
        assert take(client, second).message.id == sent.id
        assert takes_nothing(broker, client, first, second)

    def test_a_delay_on_one_topic_key_stays_on_it(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, declare: Declare
    ) -> None:
        sibling = declare(exchange=spec.exchange)
        publish(client, spec, delay=broker.delay)
        broker.pass_time(broker.delay)
        take(client, spec)
        assert takes_nothing(broker, client, sibling)

    def test_the_longest_delay_is_taken(self, client: QueueBackend, spec: QueueSpec) -> None:
        longest = client.features.longest_delay
        publish(client, spec)
        client.nack(take(client, spec), delay=longest)
        publish(client, spec, delay=longest)
        assert client.receive([spec.name], 0) is None
        assert_counts(client, spec, delayed=2)

    def test_a_delayed_message_is_counted_as_delayed(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, make_message(), make_message(), delay=3600)
        assert_counts(client, spec, delayed=2)

    def test_what_is_due_is_counted_as_ready(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        """Though nobody receives: whoever starts workers by what is ready would never start one."""
        if not client.features.counts_delayed:
            return
        publish(client, spec, delay=broker.delay)
        broker.pass_time(broker.delay)
        assert_counts(client, spec, ready=1)

    @pytest.mark.parametrize(("count", "attempt"), [(True, 3), (False, 2)])
    def test_a_delayed_nack_comes_back_when_it_is_due(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        count: bool,
        attempt: int,
    ) -> None:
        (sent,) = publish(client, spec, make_message(rank=Rank.LOW))
        client.nack(take(client, spec))
        delivery = take(client, spec)
        client.nack(delivery, delay=broker.delay, count=count)
        assert delivery.settled
        assert other.receive([spec.name], 0) is None
        assert_counts(other, spec, delayed=1)
        client.close()  # the wait is the broker's, not the client's
        broker.pass_time(broker.delay)
        again = take(other, spec)
        assert again.message.id == sent.id
        assert again.message.rank is sent.rank
        assert again.message.body == sent.body
        assert again.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        assert again.attempt == attempt
        other.ack(again)
        assert takes_nothing(broker, other, spec)

    def test_a_delayed_nack_of_one_fanout_copy_leaves_the_other_queues_alone(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        second = declare(exchange=first.exchange)
        publish(client, first)
        client.ack(take(client, second))
        client.nack(take(client, first), delay=broker.delay)
        broker.pass_time(broker.delay)
        assert take(client, first).attempt == 2
        assert takes_nothing(broker, client, second)

    def test_a_delayed_nack_lets_the_others_pass(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, make_message(1), make_message(2))
        client.nack(take(client, spec), delay=broker.delay)
        assert take(client, spec).message.id == sent[1].id
