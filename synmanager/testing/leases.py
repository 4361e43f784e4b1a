"""Crashed clients, leases that are kept and leases that are lost, and the attempts they cost."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, LeaseLost
from synmanager.message import Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    WAIT,
    assert_counts,
    drain,
    end_leases,
    in_thread,
    make_message,
    needs_return,
    publish,
    reopen,
    take,
    takes_nothing,
)
from synmanager.testing.topic import UNHURRIED, Topic

__all__ = ["Leases"]

USES: dict[str, Callable[[QueueBackend, Delivery], None]] = {
    "ack": lambda client, delivery: client.ack(delivery),
    "nack": lambda client, delivery: client.nack(delivery),
    "nack later": lambda client, delivery: client.nack(delivery, delay=0.01),
    "bury": lambda client, delivery: client.bury(delivery, "too late"),
    "renew": lambda client, delivery: client.renew(delivery),
}


class Leases(Topic):
    def crash(self, broker: BrokerUnderTest, worker: QueueBackend) -> None:
        """End a worker and wait until the broker must have noticed."""
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)

    def test_the_job_of_a_crashed_client_is_gone_where_that_was_allowed(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if worker.features.keeps_held:
            return  # the tests below
        sent = publish(other, spec, make_message(1), make_message(2))
        take(worker, spec)
        broker.cut(worker)
        # Nothing else goes with it.
        assert [delivery.message.id for delivery in drain(broker, other, spec)] == [sent[1].id]

    @needs_return
    def test_the_job_of_a_crashed_client_is_delivered_again(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(other, spec, make_message(rank=Rank.HIGH))
        take(worker, spec)
        self.crash(broker, worker)
        again = take(other, spec)
        assert again.attempt == 2
        assert again.message.id == sent.id
        assert again.message.rank is sent.rank
        assert again.message.body == sent.body
        other.ack(again)
        assert takes_nothing(broker, other, spec)

    @needs_return
    def test_none_means_that_there_is_nothing_to_take_over(
        self, broker: BrokerUnderTest, worker: QueueBackend, spec: QueueSpec
    ) -> None:
        """For a newcomer as well, which has not seen the broker before and does not wait."""
        (sent,) = publish(worker, spec)
        take(worker, spec)
        self.crash(broker, worker)
        newcomer = broker.connect()
        if newcomer.features.timed_lease:
            again = newcomer.receive([spec.name], 0)
            assert again is not None
        else:
            again = take(newcomer, spec)
        assert again.message.id == sent.id
        assert again.attempt == 2

    @needs_return
    def test_every_crash_adds_one_attempt(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        attempts = []
        for _ in range(3):
            worker = broker.connect(lease=broker.lease)
            attempts.append(take(worker, spec).attempt)
            self.crash(broker, worker)
        attempts.append(take(client, spec).attempt)
        assert attempts == [1, 2, 3, 4]

    @needs_return
    def test_failures_and_crashes_are_added_up(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        for _ in range(9):
            other.nack(take(other, spec))
        assert take(worker, spec).attempt == 10
        self.crash(broker, worker)
        eleventh = take(other, spec)
        assert eleventh.attempt == 11
        other.nack(eleventh)
        assert take(other, spec).attempt == 12

    @needs_return
    def test_a_crash_frees_all_that_was_held_and_nothing_that_was_settled(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(other, spec, *(make_message(number) for number in range(4)))
        held = [take(worker, spec) for _ in range(3)]
        worker.ack(held[1])
        self.crash(broker, worker)
        returned = [take(other, spec) for _ in range(3)]
        attempts = {delivery.message.id: delivery.attempt for delivery in returned}
        assert attempts == {sent[0].id: 2, sent[2].id: 2, sent[3].id: 1}
        assert takes_nothing(broker, other, spec)

    @needs_return
    def test_a_delivery_that_is_dropped_unsettled_goes_back_or_ends_with_its_lease(
        self, broker: BrokerUnderTest, unhurried: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        """As when its taker is interrupted before it has begun with it."""
        lease = UNHURRIED * broker.lease
        sent = publish(other, spec, make_message(1), make_message(2))
        dropped = unhurried.receive([spec.name], WAIT)
        assert dropped is not None
        kept = take(unhurried, spec)
        settled = unhurried.receive([spec.name], 0)
        assert settled is None
        assert dropped.message.id == sent[0].id
        del dropped
        gc.collect()
        if unhurried.features.timed_lease:
            for _ in range(2):
                broker.pass_time(lease * 0.6)
                unhurried.renew(kept)  # also before another driver looks on for half a lease
        again = take(other, spec)
        assert again.message.id == sent[0].id
        other.ack(again)
        unhurried.ack(kept)
        assert takes_nothing(broker, other, spec)

    @needs_return
    def test_a_waiting_client_gets_the_job_of_a_crashed_one(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(other, spec)
        take(worker, spec)
        waiting = in_thread(other.receive, [spec.name], WAIT)
        time.sleep(broker.quiet)  # no call tells that another one is waiting
        assert not waiting.done()
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease)
        again = waiting.result(WAIT)
        assert again is not None
        assert again.message.id == sent.id

    def test_a_client_that_was_cut_off_works_again_after_open(
        self, broker: BrokerUnderTest, worker: QueueBackend, spec: QueueSpec
    ) -> None:
        broker.cut(worker)
        reopen(worker, spec)
        assert worker.is_open
        (sent,) = publish(worker, spec)
        delivery = take(worker, spec)
        assert delivery.message.id == sent.id
        worker.ack(delivery)
        assert takes_nothing(broker, worker, spec)

    @pytest.mark.parametrize("use", USES)
    @needs_return
    def test_who_lost_the_lease_learns_it_and_harms_nobody(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        use: str,
    ) -> None:
        (sent,) = publish(other, spec)
        stale = take(worker, spec)
        end_leases(broker, worker, spec)
        current = take(other, spec)
        with pytest.raises(LeaseLost):
            USES[use](worker, stale)
        # The job is where it was: with the other client, and nowhere else.
        assert takes_nothing(broker, worker, spec)
        assert_counts(other, spec, leased=1)
        other.renew(current)
        other.nack(current)
        again = take(other, spec)
        assert again.message.id == sent.id
        assert again.attempt == 3
        other.ack(again)

    @needs_return
    def test_a_lost_lease_stays_lost_after_the_job_is_done(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        stale = take(worker, spec)
        end_leases(broker, worker, spec)
        other.ack(take(other, spec))
        with pytest.raises(LeaseLost):
            worker.ack(stale)

    @needs_return
    def test_an_old_receipt_cannot_settle_the_same_job_in_the_same_hands(
        self, broker: BrokerUnderTest, worker: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(worker, spec)
        stale = take(worker, spec)
        end_leases(broker, worker, spec)
        current = take(worker, spec)
        with pytest.raises(LeaseLost):
            worker.ack(stale)
        worker.renew(current)
        worker.nack(current)
        assert take(worker, spec).attempt == 3

    @needs_return
    def test_an_old_receipt_cannot_settle_another_job(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        # On a new connection the broker may number its deliveries from the start again.
        publish(other, spec, make_message("first"))
        stale = take(worker, spec)
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        reopen(worker, spec)
        take(other, spec)
        publish(other, spec, make_message("second"))
        current = take(worker, spec)
        with pytest.raises(LeaseLost):
            worker.ack(stale)
        worker.nack(current)
        assert take(worker, spec).attempt == 2

    @needs_return
    def test_an_ack_across_a_new_connection_tells_the_truth(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        delivery = take(worker, spec)
        broker.cut(worker)
        reopen(worker, spec)
        try:
            worker.ack(delivery)
            left = 0
        except LeaseLost:
            left = 1
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        if left:
            take(other, spec)
        assert takes_nothing(broker, other, spec)

    @needs_return
    def test_an_ack_without_a_connection_raises(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        delivery = take(worker, spec)
        self.crash(broker, worker)
        take(other, spec)
        with pytest.raises((LeaseLost, BrokerUnavailable)):
            worker.ack(delivery)
        assert not delivery.settled

    def test_a_lease_that_is_renewed_lasts(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        delivery = take(worker, spec)
        for _ in range(4):
            broker.pass_time(broker.lease * 0.5)
            worker.renew(delivery)
            assert other.receive([spec.name], 0) is None
        worker.ack(delivery)
        assert delivery.settled
        broker.pass_time(broker.lease * 1.2)
        assert takes_nothing(broker, other, spec)

    def test_a_renewed_lease_costs_no_attempt(
        self, broker: BrokerUnderTest, worker: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(worker, spec)
        delivery = take(worker, spec)
        for _ in range(3):
            worker.renew(delivery)
        worker.nack(delivery)
        assert take(worker, spec).attempt == 2

    def test_a_renewal_keeps_no_other_delivery(
        self, broker: BrokerUnderTest, unhurried: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(other, spec, make_message(1), make_message(2))
        first, second = take(unhurried, spec), take(unhurried, spec)
        for _ in range(3):
            broker.pass_time(UNHURRIED * broker.lease * 0.5)
            unhurried.renew(first)
        if unhurried.features.timed_lease:
            assert take(other, spec).message.id == sent[1].id
            with pytest.raises(LeaseLost):
                unhurried.renew(second)
        else:
            assert takes_nothing(broker, other, spec)
            unhurried.renew(second)
        unhurried.ack(first)

    @pytest.mark.parametrize("renewals", [0, 5])
    def test_a_lease_ends_by_time_or_not_at_all(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        renewals: int,
    ) -> None:
        publish(other, spec)
        delivery = take(worker, spec)
        for _ in range(renewals):  # which do not add up
            worker.renew(delivery)
        broker.pass_time(broker.lease * 1.2)
        if worker.features.timed_lease:
            assert take(other, spec).attempt == 2
        else:
            assert takes_nothing(broker, other, spec)
            worker.ack(delivery)

    def test_a_lease_does_not_end_early(
        self, broker: BrokerUnderTest, unhurried: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        delivery = take(unhurried, spec)
        broker.pass_time(UNHURRIED * broker.lease * 0.5)
        assert other.receive([spec.name], 0) is None
        unhurried.ack(delivery)
        assert drain(broker, other, spec) == []

    def test_each_client_has_its_own_lease(
        self, broker: BrokerUnderTest, worker: QueueBackend, client: QueueBackend, spec: QueueSpec
    ) -> None:
        # `client` has the long default; the impatience of others must not shorten it.
        publish(client, spec, make_message(1))
        delivery = take(client, spec)
        client.renew(delivery)
        broker.pass_time(broker.lease * 1.2)
        assert takes_nothing(broker, worker, spec)
        client.ack(delivery)
        assert takes_nothing(broker, worker, spec)
