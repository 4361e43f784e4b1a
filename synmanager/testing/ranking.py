"""High before normal before low, first in first out within each, first non-empty queue first."""

from __future__ import annotations

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.message import Rank, decode
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import assert_counts, drain, make_message, publish, take
from synmanager.testing.topic import Declare, Topic

__all__ = ["Ranking"]

LOW, NORMAL, HIGH = Rank.LOW, Rank.NORMAL, Rank.HIGH


class Ranking(Topic):
    @pytest.mark.parametrize("one_batch", [True, False], ids=["one batch", "one by one"])
    def test_ranks_are_strict_and_each_is_first_in_first_out(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, one_batch: bool
    ) -> None:
        sent = [
            make_message(number, rank=rank)
            for number, rank in enumerate([LOW, HIGH, NORMAL, NORMAL, HIGH, LOW, HIGH, NORMAL, LOW])
        ]
        if one_batch:
            publish(client, spec, *sent)
        else:
            for message in sent:
                publish(client, spec, message)
        expected = [m.id for rank in (HIGH, NORMAL, LOW) for m in sent if m.rank is rank]
        assert [delivery.message.id for delivery in drain(broker, client, spec)] == expected

    def test_a_higher_rank_overtakes_what_has_waited(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, make_message(1, rank=LOW), make_message(2, rank=LOW))
        client.ack(take(client, spec))
        publish(client, spec, make_message(3, rank=HIGH))
        assert take(client, spec).message.rank is HIGH
        publish(client, spec, make_message(4, rank=NORMAL))
        assert take(client, spec).message.rank is NORMAL
        assert take(client, spec).message.rank is LOW

    def test_ranks_are_strict_at_depth(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, *(make_message(n, rank=Rank(n % 3)) for n in range(300)))
        ranks = [delivery.message.rank for delivery in drain(broker, client, spec)]
        assert ranks == sorted(ranks, reverse=True)
        assert len(ranks) == 300

    def test_a_message_of_a_foreign_program_is_of_normal_rank_or_of_none(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, make_message("low", rank=LOW))
        broker.publish_raw(spec.name, b'{"number": "foreign"}')
        publish(client, spec, make_message("normal"), make_message("high", rank=HIGH))
        taken = [decode(d.message.body)["number"] for d in drain(broker, client, spec)]
        if client.features.ranks_foreign:
            assert taken == ["high", "foreign", "normal", "low"]
        else:
            assert taken == ["high", "normal", "low", "foreign"]

    def test_a_nacked_message_keeps_its_rank(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, *(make_message(rank.name, rank=rank) for rank in Rank))
        for rank in (HIGH, HIGH):
            delivery = take(client, spec)
            assert delivery.message.rank is rank
            client.nack(delivery)
        assert [d.message.rank for d in drain(broker, client, spec)] == [HIGH, NORMAL, LOW]

    def test_a_nacked_message_comes_first_of_its_rank_where_the_broker_can_do_that(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *map(make_message, range(3)))
        client.nack(take(client, spec))
        ids = [delivery.message.id for delivery in drain(broker, client, spec)]
        if client.features.requeues_at_head:
            assert ids == [message.id for message in sent]
        else:
            assert sorted(ids) == sorted(message.id for message in sent)

    def test_the_first_queue_that_has_something_wins(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        first, second, third = declare(), declare(), declare("fanout")
        publish(client, third, make_message("third", rank=HIGH))
        publish(client, second, make_message("second"))
        publish(client, first, make_message("first", rank=LOW))
        taken = []
        for _ in range(3):
            delivery = take(client, first, second, third)
            client.ack(delivery)
            taken.append(delivery.queue)
        assert taken == [first.name, second.name, third.name]

    def test_the_caller_decides_the_order_of_queues_each_time(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        one, two = declare(), declare()
        for spec in (one, two):
            publish(client, spec, make_message(1), make_message(2))
        orders = [(one, two), (two, one), (two,), (one,)]
        assert [take(client, *order).queue for order in orders] == [
            order[0].name for order in orders
        ]

    def test_a_queue_that_fills_again_is_first_again(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        first, second = declare(), declare()
        publish(client, second, make_message(1), make_message(2))
        assert take(client, first, second).queue == second.name
        publish(client, first)
        assert take(client, first, second).queue == first.name
        assert take(client, first, second).queue == second.name

    def test_other_queues_are_left_alone(self, client: QueueBackend, declare: Declare) -> None:
        asked, unasked = declare(), declare()
        publish(client, unasked)
        assert client.receive([asked.name], 0) is None
        assert_counts(client, unasked, ready=1)
