"""Receive that acknowledges the job before: one after another, and what it leaves behind."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import LeaseLost, TopologyError
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.settling import OUTCOME, SETTLE
from synmanager.testing.steps import (
    AT_ONCE,
    WAIT,
    assert_counts,
    end_leases,
    in_thread,
    make_message,
    make_spec,
    needs_return,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Chains"]

#: A queue may be asked in another way when there is no time to wait, or next to none.
WAITS = [0, 1e-9, WAIT]


def follow(
    client: QueueBackend, done: Delivery | None, *specs: QueueSpec, wait: float = WAIT
) -> Delivery:
    """Receive what must be there, or come, after ``done``."""
    delivery = client.receive([spec.name for spec in specs], wait, done)
    assert delivery is not None, f"nothing came within {wait} s"
    assert done is None or done.settled
    return delivery


def run_down(client: QueueBackend, wait: float, *specs: QueueSpec) -> list[Delivery]:
    """Follow a chain from its beginning until nothing comes."""
    names = [spec.name for spec in specs]
    taken: list[Delivery] = []
    done = None
    while (delivery := client.receive(names, wait, done)) is not None:
        taken.append(delivery)
        done = delivery
    assert all(delivery.settled for delivery in taken)
    return taken


def ids(found: list[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in found]


def assert_holds_nothing(client: QueueBackend, other: QueueBackend, *specs: QueueSpec) -> None:
    """Assert that what is published now is anybody's, untouched."""
    for spec in specs:
        (sent,) = publish(client, spec, make_message("next"))
        delivery = take(other, spec, wait=AT_ONCE)
        assert (delivery.message.id, delivery.attempt) == (sent.id, 1)
        other.ack(delivery)


def mixed(number: int) -> list[Message]:
    ranks = [Rank.NORMAL, Rank.LOW, Rank.HIGH]
    return [make_message(n, rank=ranks[n % 3]) for n in range(number)]


def in_order(messages: list[Message]) -> list[str]:
    return [message.id for message in sorted(messages, key=lambda m: -m.rank)]


class Chains(Topic):
    @pytest.mark.parametrize("wait", [0, WAIT])
    @pytest.mark.parametrize("queues", [1, 2])
    def test_the_job_before_is_acked_with_the_next(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        wait: float,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        first, second = publish(client, specs[-1], make_message(1), make_message(2))
        done = take(client, *specs)
        delivery = follow(client, done, *specs, wait=wait)
        assert [done.message.id, delivery.message.id] == [first.id, second.id]
        assert delivery.attempt == 1
        assert not delivery.settled
        client.close()
        assert ids(run_down(other, broker.quiet, *specs)) == [second.id]

    @pytest.mark.parametrize("wait", [0, 1e-9, 0.1])
    @pytest.mark.parametrize("queues", [1, 2])
    def test_the_last_is_acked_when_nothing_comes(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        wait: float,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        publish(client, specs[-1])
        done = take(client, *specs)
        begin = time.monotonic()
        assert client.receive([spec.name for spec in specs], wait, done) is None
        assert time.monotonic() - begin < wait + AT_ONCE
        assert done.settled
        assert_holds_nothing(client, other, *specs)
        client.close()
        assert takes_nothing(broker, other, *specs)
        for spec in specs:
            assert_counts(other, spec)

    @pytest.mark.parametrize("queues", [1, 2])
    def test_it_is_acked_before_the_wait(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        publish(other, specs[-1])
        done = take(worker, *specs)
        names = [spec.name for spec in specs]
        waiting = in_thread(worker.receive, names, WAIT + 2 * broker.lease, done)
        for spec in specs:
            assert_counts(other, spec)
        # Nor does it come back later.
        broker.pass_time(broker.lease * 1.2)
        assert not waiting.done()
        (sent,) = publish(other, specs[-1])
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert (delivery.message.id, delivery.attempt) == (sent.id, 1)
        worker.ack(delivery)
        assert_holds_nothing(worker, other, *specs)

    @pytest.mark.parametrize("how", SETTLE)
    @pytest.mark.parametrize("wait", WAITS)
    def test_one_that_is_settled_is_left_as_it_is(
        self,
        client: QueueBackend,
        spec: QueueSpec,
        declare: Declare,
        how: str,
        wait: float,
    ) -> None:
        publish(client, spec)
        done = take(client, spec)
        SETTLE[how](client, done)
        elsewhere = declare()
        publish(client, elsewhere)
        client.ack(follow(client, done, elsewhere, wait=wait))
        assert_counts(client, spec, **OUTCOME[how])

    def test_one_that_was_put_back_can_come_again(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        done = take(client, spec)
        client.nack(done)
        again = follow(client, done, spec)
        assert again.message.id == done.message.id
        assert again.attempt == 2

    @pytest.mark.parametrize("wait", WAITS)
    @pytest.mark.parametrize("queues", [1, 2])
    @needs_return
    def test_who_lost_the_lease_learns_it_and_takes_nothing(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        wait: float,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        publish(other, specs[-1])
        stale = take(worker, *specs)
        end_leases(broker, worker, specs[-1])
        current = take(other, *specs)
        sent = publish(other, specs[-1], make_message(1), make_message(2))
        for _ in range(2):  # it stays lost
            with pytest.raises(LeaseLost):
                worker.receive([spec.name for spec in specs], wait, stale)
            assert not stale.settled
        rest = [take(other, *specs, wait=AT_ONCE) for _ in sent]
        assert ids(rest) == [message.id for message in sent]
        assert [delivery.attempt for delivery in rest] == [1, 1]
        other.renew(current)

    @needs_return
    def test_a_lost_lease_stays_lost_for_who_asks_for_the_next_job(
        self, broker: BrokerUnderTest, worker: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(other, spec)
        stale = take(worker, spec)
        end_leases(broker, worker, spec)
        other.ack(take(other, spec))
        for _ in range(2):
            with pytest.raises(LeaseLost):
                worker.receive([spec.name], 0, stale)
        with pytest.raises(LeaseLost):
            worker.ack(stale)

    @pytest.mark.parametrize("wait", WAITS)
    def test_one_queue_is_run_down_by_rank_and_age(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec, wait: float
    ) -> None:
        sent = publish(client, spec, *mixed(30))
        done, taken = None, []
        for _ in sent:
            done = follow(client, done, spec, wait=wait)
            taken.append(done)
        assert ids(taken) == in_order(sent)
        assert {delivery.attempt for delivery in taken} == {1}
        client.ack(taken[-1])
        assert_holds_nothing(client, other, spec)
        assert_counts(client, spec)

    @pytest.mark.parametrize("wait", WAITS)
    def test_several_queues_are_run_down_one_after_another(
        self, client: QueueBackend, other: QueueBackend, declare: Declare, wait: float
    ) -> None:
        specs = [declare(), declare("fanout"), declare()]
        sent = [publish(client, spec, *mixed(9)) for spec in specs]
        done, taken = None, []
        for _ in range(27):
            done = follow(client, done, *specs, wait=wait)
            taken.append(done)
        expected = [id for messages in sent for id in in_order(messages)]
        if client.features.ranks_fanout:
            assert ids(taken) == expected
        else:
            assert ids(taken[:9]) + ids(taken[18:]) == expected[:9] + expected[18:]
            assert sorted(ids(taken)) == sorted(expected)
        assert {delivery.attempt for delivery in taken} == {1}
        client.ack(taken[-1])
        assert_holds_nothing(client, other, *specs)

    @pytest.mark.parametrize("queues", [1, 2])
    def test_a_higher_one_that_arrives_meanwhile_comes_next(
        self, client: QueueBackend, declare: Declare, queues: int
    ) -> None:
        specs = [declare() for _ in range(queues)]
        publish(client, specs[-1], *(make_message(number) for number in range(5)))
        done = follow(client, None, *specs)
        done = follow(client, done, *specs)
        (urgent,) = publish(client, specs[0], make_message("urgent", rank=Rank.HIGH))
        assert follow(client, done, *specs).message.id == urgent.id

    def test_a_chain_goes_on_as_messages_come(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        done = None
        for number in range(5):
            waiting = in_thread(client.receive, [spec.name], WAIT, done)
            if number % 2:
                time.sleep(broker.quiet)  # no call tells that another one is waiting
            (sent,) = publish(other, spec, make_message(number))
            done = waiting.result(WAIT)
            assert done is not None
            assert (done.message.id, done.attempt) == (sent.id, 1)
            # Whatever else there is, is another's.
            assert_holds_nothing(client, other, spec)

    @pytest.mark.parametrize("wait", [0, 0.05])
    @pytest.mark.parametrize("queues", [1, 2])
    def test_a_chain_that_came_to_nothing_holds_nothing_later(
        self,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        wait: float,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        for _ in range(3):
            for spec in specs:
                publish(client, spec, *(make_message(number) for number in range(3)))
            assert len(run_down(client, wait, *specs)) == 3 * queues
            assert_holds_nothing(client, other, *specs)

    @pytest.mark.parametrize("wait", WAITS)
    def test_a_chain_that_changes_its_queues_gets_what_it_asks_for(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        wait: float,
    ) -> None:
        first, second, third = specs = [declare(), declare(), declare()]
        for spec in specs:
            publish(client, spec, *(make_message(number) for number in range(6)))
        done = follow(client, None, first, wait=wait)
        for asked in ([first], [second], [second], [third, first], [first], [second]):
            done = follow(client, done, *asked, wait=wait)
            assert done.queue == asked[0].name
        client.ack(done)
        # What it asked for before, it must not hold now.
        rest = run_down(other, broker.quiet, *specs)
        assert Counter(delivery.queue for delivery in rest) == {
            first.name: 3,
            second.name: 3,
            third.name: 5,
        }
        assert {delivery.attempt for delivery in rest} == {1}
        assert_holds_nothing(client, other, *specs)

    @pytest.mark.parametrize("how", SETTLE)
    def test_a_chain_can_end_in_another_way(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        how: str,
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(4)))
        done = follow(client, None, spec)
        for _ in range(2):
            done = follow(client, done, spec)
        client.renew(done)
        SETTLE[how](client, done)
        assert done.settled
        outcome = {**OUTCOME[how]}
        outcome["ready"] = outcome.get("ready", 0) + 1
        assert_counts(client, spec, **outcome)
        rest = run_down(other, broker.quiet, spec)
        expected = {sent[3].id: 1}
        if how.startswith("nack") and how != "nack later":
            expected[sent[2].id] = 1 if how == "nack uncounted" else 2
        assert {delivery.message.id: delivery.attempt for delivery in rest} == expected
        assert_holds_nothing(client, other, spec)

    def test_a_chain_goes_on_after_one_that_failed(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(5)))
        attempts: dict[str, list[int]] = {message.id: [] for message in sent}
        done = None
        for _ in range(7):
            done = follow(client, done, spec)
            attempts[done.message.id].append(done.attempt)
            if done.attempt == 1 and done.message.id in (sent[1].id, sent[3].id):
                client.nack(done)
        assert sorted(attempts.values()) == [[1], [1], [1], [1, 2], [1, 2]]

    @pytest.mark.parametrize("queues", [1, 2])
    @needs_return
    def test_a_crash_in_the_middle_costs_what_was_held_one_attempt(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        sent = publish(other, specs[-1], *(make_message(number) for number in range(5)))
        done = follow(worker, None, *specs)
        for _ in range(2):
            done = follow(worker, done, *specs)
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        rest = [take(other, *specs) for _ in range(3)]
        assert {delivery.message.id: delivery.attempt for delivery in rest} == {
            sent[2].id: 2,
            sent[3].id: 1,
            sent[4].id: 1,
        }
        for delivery in rest:
            other.ack(delivery)
        assert takes_nothing(broker, other, *specs)

    @needs_return
    def test_the_job_of_a_crashed_client_comes_in_a_chain(
        self,
        broker: BrokerUnderTest,
        worker: QueueBackend,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
    ) -> None:
        sent = publish(other, spec, *(make_message(number) for number in range(4)))
        done = follow(other, None, spec)
        take(worker, spec)
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        taken = []
        for _ in range(3):
            done = follow(other, done, spec)
            taken.append(done)
        other.ack(done)
        assert {delivery.message.id: delivery.attempt for delivery in taken} == {
            sent[1].id: 2,
            sent[2].id: 1,
            sent[3].id: 1,
        }
        assert_holds_nothing(other, client, spec)

    @pytest.mark.parametrize("wait", WAITS)
    def test_it_acks_no_other_delivery(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec, wait: float
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(4)))
        held = [take(client, spec) for _ in range(3)]
        last = follow(client, held[1], spec, wait=wait)
        assert [delivery.settled for delivery in held] == [False, True, False]
        client.renew(held[0])
        client.ack(held[0])
        client.close()
        rest = [take(other, spec).message.id for _ in range(2)]
        assert set(rest) == {sent[2].id, last.message.id}

    @pytest.mark.parametrize("wait", WAITS)
    def test_it_is_acked_even_if_the_next_queue_is_missing(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec, wait: float
    ) -> None:
        publish(client, spec)
        done = take(client, spec)
        with pytest.raises(TopologyError):
            client.receive([make_spec().name], wait, done)
        client.receive([spec.name], 0, done)
        assert done.settled
        assert_holds_nothing(client, other, spec)
        assert_counts(other, spec)

    @pytest.mark.parametrize("wait", WAITS)
    def test_the_ack_holds_though_the_next_queue_is_missing(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, wait: float
    ) -> None:
        """Also for one who dies of it: the job is done, and its result is published."""
        worker = broker.connect(lease=broker.lease)
        publish(client, spec)
        done = take(worker, spec)
        with pytest.raises(TopologyError):
            worker.receive([make_spec().name], wait, done)
        assert done.settled
        broker.cut(worker)
        if worker.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        assert takes_nothing(broker, client, spec)
        assert_counts(client, spec)

    @pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client each"])
    @pytest.mark.parametrize("queues", [1, 2])
    def test_competing_chains_run_every_job_once(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        declare: Declare,
        shared: bool,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        sent = [
            message
            for spec in specs
            for message in publish(client, spec, *(make_message(n) for n in range(60)))
        ]
        clients = [client if shared else broker.connect() for _ in range(4)]
        futures = [in_thread(run_down, c, broker.quiet, *specs) for c in clients]
        taken = [delivery for future in futures for delivery in future.result(6 * WAIT)]
        assert Counter(ids(taken)) == Counter(message.id for message in sent)
        assert {delivery.attempt for delivery in taken} == {1}
        for spec in specs:
            assert_counts(client, spec)
