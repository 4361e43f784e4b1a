"""What outlives the broker: everything that it has confirmed."""

from __future__ import annotations

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    HEADERS,
    assert_counts,
    drain,
    make_message,
    publish,
    reopen,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Durability"]


class Durability(Topic):
    @pytest.mark.parametrize("crash", [True, False], ids=["crash", "orderly"])
    def test_what_was_confirmed_outlives_the_broker(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare, crash: bool
    ) -> None:
        if broker.lacks("restart"):
            broker.miss("restart")
        ready, held, delayed, far, dead = (declare() for _ in range(5))
        fanout = declare("fanout")
        twin = declare(exchange=fanout.exchange)
        worker = broker.connect(lease=broker.lease)

        jobs = [make_message(n, rank=r) for n, r in enumerate((Rank.LOW, Rank.NORMAL, Rank.HIGH))]
        jobs.append(Message(b"\xff\0", headers=HEADERS))
        publish(client, ready, *jobs)
        failed = take(client, ready)  # it fails, and that counts
        client.nack(failed)
        (in_hand,) = publish(client, held)
        stale = take(worker, held)
        (later,) = publish(client, delayed, delay=broker.delay)
        publish(client, far, delay=3600)
        (given_up,) = publish(client, dead)
        client.bury(take(client, dead), "a reason")
        publish(client, fanout)
        client.ack(take(client, fanout))

        broker.restart(crash=crash)
        with pytest.raises(BrokerUnavailable):
            client.count(ready.name)
        assert not client.is_open
        reopen(client, ready)
        reopen(worker, ready)

        attempts = {}
        for message in sorted(jobs, key=lambda job: -job.rank):
            delivery = take(client, ready)
            assert delivery.message.id == message.id
            assert (delivery.message.body, delivery.message.rank) == (message.body, message.rank)
            assert delivery.message.headers == message.headers
            attempts[message.id] = delivery.attempt
            client.ack(delivery)
        # RabbitMQ flags all that it recovers as delivered before: one more may be counted.
        extra = {attempts[m.id] - 1 - (m.id == failed.message.id) for m in jobs}
        assert extra in ({0}, {1}), f"attempts after the restart: {attempts}"
        self.check_held(broker, client, worker, held, in_hand, stale)
        if client.features.shows_dead_letters:
            (letter,) = client.dead_letters(dead.name, 10)
            assert (letter.message.id, letter.reason) == (given_up.id, "a reason")
        assert_counts(client, dead, dead=1)
        assert client.redrive(dead.name, 10) == 1
        assert take(client, dead).message.id == given_up.id
        broker.pass_time(broker.delay)
        assert take(client, delayed).message.id == later.id
        assert takes_nothing(broker, client, far), "its delay was forgotten"
        # What was acknowledged stays so, unless a crash came before it was written; and the routes
        # are there.
        assert len(drain(broker, client, fanout)) <= crash
        client.ack(take(client, twin))
        publish(client, fanout)
        take(client, fanout)
        take(client, twin)

    def check_held(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        worker: QueueBackend,
        spec: QueueSpec,
        sent: Message,
        stale: Delivery,
    ) -> None:
        """What was in hand comes again when its lease is over, and counts as begun."""
        if not client.features.keeps_held:
            return
        if client.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        again = take(client, spec)
        assert (again.message.id, again.attempt) == (sent.id, 2)
        client.ack(again)
        assert takes_nothing(broker, client, spec)
