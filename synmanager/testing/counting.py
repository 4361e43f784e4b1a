"""Count, purge, delete, and the same id twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synmanager.backends.base import Features, QueueBackend, QueueSpec
from synmanager.errors import Unsupported
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    assert_counts,
    bury,
    drain,
    make_message,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Counting"]


class Counting(Topic):
    def test_a_backend_says_what_it_can(self, broker: BrokerUnderTest) -> None:
        assert isinstance(broker.new_client().features, Features)

    def test_counts_follow_a_message(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        assert_counts(other, spec)
        publish(client, spec, *(make_message(n, rank=Rank(n % 3)) for n in range(5)))
        assert_counts(other, spec, ready=5)
        first, second = take(client, spec), take(client, spec)
        assert_counts(other, spec, ready=3, leased=2)
        client.ack(first)
        assert_counts(other, spec, ready=3, leased=1)
        client.bury(second, "a reason")
        assert_counts(other, spec, ready=3, dead=1)
        client.nack(take(client, spec), delay=3600)
        assert_counts(other, spec, ready=2, delayed=1, dead=1)
        client.nack(take(client, spec))
        assert_counts(other, spec, ready=2, delayed=1, dead=1)
        publish(client, spec, make_message(), delay=3600)
        assert_counts(other, spec, ready=2, delayed=2, dead=1)
        client.redrive(spec.name, 1)
        assert_counts(other, spec, ready=3, delayed=2)

    def test_counts_of_queues_are_apart(self, client: QueueBackend, declare: Declare) -> None:
        one, two = declare(), declare("fanout")
        publish(client, one, make_message(), make_message())
        publish(client, two)
        assert_counts(client, one, ready=2)
        assert_counts(client, two, ready=1)

    def test_foreign_messages_are_counted(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        broker.publish_raw(spec.name, b"{}")
        assert_counts(client, spec, ready=1)

    def test_counting_changes_nothing(self, client: QueueBackend, spec: QueueSpec) -> None:
        publish(client, spec)
        for _ in range(3):
            client.count(spec.name)
        assert take(client, spec).attempt == 1

    def test_purge_removes_what_is_ready_and_delayed(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, *(make_message(n, rank=Rank(n % 3)) for n in range(7)))
        can_reach_it = client.features.counts_delayed  # else it must not come by itself here
        publish(client, spec, make_message(), delay=broker.delay if can_reach_it else 3600)
        removed = client.purge(spec.name)
        if can_reach_it:
            assert removed == 8
            assert_counts(client, spec)
            broker.pass_time(broker.delay * 1.2)
        else:
            assert removed >= 7
        assert takes_nothing(broker, client, spec)
        publish(client, spec)
        assert take(client, spec).attempt == 1

    def test_purge_leaves_what_is_leased_and_other_queues(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        spec, bystander = declare(), declare()
        publish(client, bystander)
        (sent, _) = publish(client, spec, make_message(1), make_message(2))
        held = take(client, spec)
        assert other.purge(spec.name) == 1
        assert_counts(other, bystander, ready=1)
        client.nack(held)
        again = take(client, spec)
        assert again.message.id == sent.id
        client.ack(again)
        assert takes_nothing(broker, client, spec)

    def test_purging_an_empty_queue(self, client: QueueBackend, spec: QueueSpec) -> None:
        assert client.purge(spec.name) == 0

    @pytest.mark.parametrize("delay", [0, 3600], ids=["ready", "delayed"])
    def test_delete_removes_what_has_not_begun(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, delay: float
    ) -> None:
        sent = [make_message(rank=rank) for rank in Rank]
        publish(client, spec, *sent, delay=delay)
        if not client.features.deletes:
            with pytest.raises(Unsupported):
                client.delete(spec.name, sent[1].id)
            return
        assert client.delete(spec.name, sent[1].id) is True
        assert client.delete(spec.name, sent[1].id) is False
        assert_counts(client, spec, **{"delayed" if delay else "ready": 2})
        if not delay:
            assert {d.message.id for d in drain(broker, client, spec)} == {sent[0].id, sent[2].id}

    def test_delete_leaves_what_has_begun(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        held = take(client, spec)
        if not client.features.deletes:
            with pytest.raises(Unsupported):
                other.delete(spec.name, sent.id)
            return
        assert other.delete(spec.name, sent.id) is False
        client.nack(held)
        # A job that was put back has not begun again.
        assert other.delete(spec.name, sent.id) is True
        assert takes_nothing(broker, client, spec)

    def test_delete_leaves_what_has_the_same_id_elsewhere(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        if not client.features.deletes:
            return  # the refusal is asserted above
        spec, bystander = declare(), declare()
        (sent,) = bury(client, spec, 1)
        publish(client, spec, sent)
        publish(client, bystander, sent)
        assert client.delete(spec.name, sent.id)
        assert_counts(client, spec, dead=1)
        assert_counts(client, bystander, ready=1)

    def test_an_id_that_was_deleted_can_be_used_again(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        if not client.features.deletes:
            return  # the refusal is asserted above
        for delay in (3600, broker.delay, 0):
            (sent,) = publish(client, spec, Message(b"{}", id="again"), delay=delay)
            assert client.delete(spec.name, sent.id)
        publish(client, spec, Message(b"{}", id="again"))
        broker.pass_time(broker.delay * 1.2)
        assert len(drain(broker, client, spec)) == 1

    def test_an_id_that_is_still_there_is_not_queued_twice(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        message = make_message()
        publish(client, spec, message)
        publish(other, spec, message)  # while it is ready
        held = take(client, spec)
        publish(other, spec, message)  # while it is leased
        if not client.features.deduplicates:
            client.ack(held)
            assert len(drain(broker, client, spec)) == 2
            return
        assert takes_nothing(broker, other, spec)
        client.nack(held, delay=broker.delay)
        publish(other, spec, message)  # while it is delayed
        assert takes_nothing(broker, other, spec)
        broker.pass_time(broker.delay * 1.2)
        again = take(other, spec)
        assert again.attempt == 2
        publish(client, spec, message, delay=broker.delay)
        other.ack(again)
        broker.pass_time(broker.delay * 1.2)
        assert takes_nothing(broker, client, spec)

    def test_of_one_id_the_first_stays_as_it_is(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (first,) = publish(client, spec)
        publish(other, spec, replace(first, body=b'{"second": true}', rank=Rank.HIGH))
        if client.features.deduplicates:
            message = take(client, spec).message
            assert (message.body, message.rank) == (first.body, first.rank)

    def test_the_same_id_twice_in_a_batch(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        message = make_message()
        publish(client, spec, message, make_message("between"), message)
        assert len(drain(broker, client, spec)) == (2 if client.features.deduplicates else 3)

    def test_an_id_that_is_done_can_be_used_again(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        message = make_message()
        for _ in range(3):
            publish(client, spec, message)
            delivery = take(client, spec)
            assert delivery.attempt == 1
            client.ack(delivery)
        publish(client, spec, message)
        client.purge(spec.name)
        publish(client, spec, message)
        client.bury(take(client, spec), "a reason")
        publish(client, spec, message)
        assert len(drain(broker, client, spec)) == 1

    def test_the_same_id_in_two_queues_is_two_messages(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        one, two = declare(), declare()
        message = make_message()
        publish(client, one, message)
        publish(client, two, message)
        assert len(drain(broker, client, one)) == 1
        assert len(drain(broker, client, two)) == 1

    def test_a_redrive_of_an_id_that_is_there_again_loses_nothing(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        message = make_message()
        publish(client, spec, message)
        client.bury(take(client, spec), "a reason")
        publish(client, spec, message)
        held = take(client, spec)
        client.redrive(spec.name, 10)
        second = other.receive([spec.name], broker.quiet)
        if client.features.deduplicates:
            assert second is None
        client.renew(held)  # its lease is not the dead letter's
        client.ack(held)
        assert len(drain(broker, other, spec)) <= 1
        assert other.count(spec.name).dead <= 1
