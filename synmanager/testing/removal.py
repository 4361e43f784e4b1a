"""Removing a queue: it is gone with all that was in it, and nothing else is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    TopologyError,
    Unroutable,
    Unsupported,
)
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.interruptions import MOST
from synmanager.testing.steps import (
    assert_counts,
    drain,
    make_message,
    make_spec,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Removal"]


class Removal(Topic):
    def refuses_to_remove(self, client: QueueBackend, spec: QueueSpec) -> bool:
        """Whether a backend denies it; asserts that then it refuses it and changes nothing."""
        if client.features.undeclares:
            return False
        publish(client, spec)
        with pytest.raises(Unsupported):
            client.undeclare(spec)
        assert take(client, spec)
        return True

    def test_a_removed_queue_is_gone(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_remove(client, spec):
            return
        publish(client, spec)
        client.undeclare(spec)
        for each in (client, other):
            with pytest.raises(TopologyError):
                each.count(spec.name)
            with pytest.raises(TopologyError):
                each.receive([spec.name], 0)
            with pytest.raises(Unroutable):
                publish(each, spec)
        client.undeclare(spec)

    def test_a_removed_queue_begins_empty_when_it_is_declared_again(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_remove(client, spec):
            return
        publish(client, spec, *(make_message(n) for n in range(4)))
        client.bury(take(client, spec), "a reason")
        held = take(client, spec)
        if client.features.counts_delayed:  # else it cannot be reached
            publish(client, spec, delay=3600)
        other.undeclare(spec)
        other.declare(spec)
        assert_counts(other, spec)
        if other.features.shows_dead_letters:
            assert other.dead_letters(spec.name, 10) == []
        with suppress(LeaseLost):
            client.ack(held)
        assert takes_nothing(broker, other, spec)
        (sent,) = publish(other, spec, make_message("next"))
        assert take(other, spec).message.id == sent.id

    def test_a_removed_queue_hears_no_key_of_before_when_it_is_declared_again(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_remove(client, spec):
            return
        client.undeclare(spec)
        moved = replace(spec, routing_key=f"{spec.routing_key}-new")
        other.declare(moved)
        with pytest.raises(Unroutable):
            publish(other, spec)
        (sent,) = publish(other, moved)
        assert take(client, moved).message.id == sent.id

    def test_who_held_some_of_a_removed_queue_settles_nothing_of_its_successor(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_remove(client, spec):
            return
        (sent,) = publish(client, spec)
        held = take(client, spec)
        other.undeclare(spec)
        other.declare(spec)
        publish(other, spec, sent)
        with suppress(LeaseLost):
            client.ack(held)
        client.close()  # gives back what it held, if it still held any
        delivery = take(other, spec)
        assert (delivery.message.id, delivery.attempt) == (sent.id, 1)
        other.ack(delivery)
        assert_counts(other, spec)

    def test_the_other_queues_of_its_exchange_stay_when_one_is_removed(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        second = declare("fanout", exchange=first.exchange)
        if self.refuses_to_remove(client, first):
            return
        (before,) = publish(client, first)
        client.bury(take(client, second), "a reason")
        (before,) = publish(client, first)
        client.undeclare(first)
        (after,) = publish(client, second)
        found = [delivery.message.id for delivery in drain(broker, client, second)]
        assert found == [before.id, after.id]
        assert_counts(client, second, dead=1)
        client.declare(first)
        publish(client, second)
        for spec in (first, second):
            assert take(client, spec).queue == spec.name

    def test_a_removed_queue_may_not_have_been_there(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_remove(client, spec):
            return
        for missing in (make_spec(), make_spec(exchange=spec.exchange)):
            client.undeclare(missing)
            with pytest.raises(TopologyError):
                client.count(missing.name)
        publish(client, spec)
        assert_counts(client, spec, ready=1)

    def test_a_removal_that_is_cut_off_may_be_repeated(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        if broker.lacks("cut_round_trip"):
            broker.miss("cut_round_trip")
        if self.refuses_to_remove(client, declare()):
            return
        for acted in (False, True):
            for number in count(1):
                assert number <= MOST, f"a removal needs more than {MOST} round trips"
                spec = declare()
                publish(client, spec, make_message(1), make_message(2))
                client.bury(take(client, spec), "a reason")
                worker = broker.connect(wired=True)
                was_cut = broker.cut_round_trip(worker, number, acted=acted)
                with suppress(BrokerUnavailable):
                    worker.undeclare(spec)
                is_cut = was_cut()
                worker.close()
                client.undeclare(spec)
                client.declare(spec)
                assert_counts(client, spec)
                if not is_cut:
                    break
