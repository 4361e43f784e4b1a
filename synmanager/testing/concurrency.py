"""Many threads on one client, many clients on one queue."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from threading import Barrier

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import LeaseLost
from synmanager.message import decode
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.settling import SETTLE
from synmanager.testing.steps import (
    WAIT,
    assert_counts,
    drain,
    in_thread,
    make_message,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Concurrency"]

#: Seconds for a whole crowd to finish.
LONG = 6 * WAIT


def numbers(deliveries: list[Delivery]) -> list[tuple[int, int]]:
    """The (publisher, sequence) pairs that :func:`publish_some` wrote."""
    return [tuple(decode(delivery.message.body)["number"]) for delivery in deliveries]


def publish_some(client: QueueBackend, spec: QueueSpec, name: int, count: int) -> None:
    for sequence in range(count):
        publish(client, spec, make_message((name, sequence)))


def results(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result(LONG)


class Concurrency(Topic):
    @pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client each"])
    def test_concurrent_publishers_lose_nothing_and_keep_their_order(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, shared: bool
    ) -> None:
        clients = [client if shared else broker.connect() for _ in range(8)]
        results([in_thread(publish_some, c, spec, n, 50) for n, c in enumerate(clients)])
        arrived = numbers(drain(broker, client, spec))
        assert len(arrived) == 400
        for name in range(8):
            assert [pair for pair in arrived if pair[0] == name] == [
                (name, sequence) for sequence in range(50)
            ]

    @pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client each"])
    def test_competing_consumers_run_every_job_once(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, shared: bool
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(200)))
        clients = [client if shared else broker.connect() for _ in range(6)]
        futures = [in_thread(drain, broker, c, spec) for c in clients]
        taken = [delivery for future in futures for delivery in future.result(LONG)]
        runs = Counter(delivery.message.id for delivery in taken)
        assert runs == Counter(message.id for message in sent)
        assert {delivery.attempt for delivery in taken} == {1}
        assert_counts(client, spec)

    def test_no_two_hold_the_same_message_at_once(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(60)))
        clients = [broker.connect() for _ in range(4)]

        def hold_all(holder: QueueBackend) -> list[Delivery]:
            held = []
            while (delivery := holder.receive([spec.name], broker.quiet)) is not None:
                held.append(delivery)
            return held

        futures = [in_thread(hold_all, c) for c in clients]
        held = [future.result(LONG) for future in futures]
        ids = [delivery.message.id for deliveries in held for delivery in deliveries]
        assert sorted(ids) == sorted(message.id for message in sent)
        for holder, deliveries in zip(clients, held, strict=True):
            for delivery in deliveries:
                holder.ack(delivery)
        assert takes_nothing(broker, client, spec)

    def test_waiting_consumers_each_take_one(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        specs = [declare(), declare()]
        names = [spec.name for spec in specs]
        clients = [broker.connect() for _ in range(4)]
        waiting = [in_thread(c.receive, names, WAIT) for c in clients]
        for number in range(4):
            publish(client, specs[number % 2], make_message(number))
        taken = [future.result(WAIT) for future in waiting]
        assert sorted(decode(d.message.body)["number"] for d in taken if d) == [0, 1, 2, 3]
        assert {d.attempt for d in taken if d} == {1}

    def test_sixteen_threads_on_one_client_publish_and_receive(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publishers = [in_thread(publish_some, client, spec, name, 25) for name in range(8)]

        def consume() -> list[Delivery]:
            taken = []
            while True:
                # Only the word of all publishers makes an empty queue the end.
                published = all(future.done() for future in publishers)
                delivery = client.receive([spec.name], broker.quiet)
                if delivery is not None:
                    client.ack(delivery)
                    taken.append(delivery)
                elif published:
                    return taken

        consumers = [in_thread(consume) for _ in range(8)]
        results(publishers)
        taken = [delivery for future in consumers for delivery in future.result(LONG)]
        assert Counter(numbers(taken)) == Counter(
            (name, sequence) for name in range(8) for sequence in range(25)
        )
        assert {delivery.attempt for delivery in taken} == {1}
        assert takes_nothing(broker, client, spec)

    def test_a_waiting_receive_does_not_block_the_other_threads_of_its_client(
        self, client: QueueBackend, spec: QueueSpec, declare: Declare
    ) -> None:
        empty = declare()
        waiting = in_thread(client.receive, [empty.name], WAIT)

        def others() -> None:
            for number in range(5):
                publish(client, spec, make_message(number))
                delivery = client.receive([spec.name], WAIT)
                assert delivery is not None
                client.renew(delivery)
                client.ack(delivery)
                client.count(spec.name)

        in_thread(others).result(WAIT / 2)
        assert not waiting.done()
        publish(client, empty)
        assert waiting.result(WAIT) is not None

    def test_a_delivery_may_be_settled_by_another_thread(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        delivery = in_thread(client.receive, [spec.name], WAIT).result(WAIT)
        assert delivery is not None
        in_thread(client.renew, delivery).result(WAIT)
        in_thread(client.ack, delivery).result(WAIT)
        assert takes_nothing(broker, client, spec)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("ack", "ack"),
            ("ack", "nack"),
            ("ack", "bury"),
            ("nack", "nack"),
            ("nack", "nack later"),
            ("nack", "bury"),
            ("bury", "bury"),
        ],
    )
    def test_two_threads_that_settle_one_delivery_settle_it_once(
        self, client: QueueBackend, spec: QueueSpec, first: str, second: str
    ) -> None:
        """As when a worker's own thread ends a job, and the one beside it that watches its time."""
        rounds = 5
        outcomes = []
        for _ in range(rounds):
            (sent,) = publish(client, spec)
            delivery = take(client, spec)
            together = Barrier(2)

            def settle(
                how: str, delivery: Delivery = delivery, together: Barrier = together
            ) -> None:
                together.wait(WAIT)
                with suppress(LeaseLost):  # the other was first
                    SETTLE[how](client, delivery)

            results([in_thread(settle, how) for how in (first, second)])
            assert delivery.settled
            counts = client.count(spec.name)
            outcomes.append((counts.ready, counts.delayed or 0, counts.dead))
            again = client.receive([spec.name], 0)
            if again is not None:
                assert (again.message.id, again.attempt) == (sent.id, 2)
                client.ack(again)
            client.purge(spec.name)
            client.purge_dead_letters(spec.name)
        assert all(sum(outcome) <= 1 for outcome in outcomes), outcomes
        if "ack" not in (first, second) and client.features.counts_delayed:
            assert all(sum(outcome) == 1 for outcome in outcomes), outcomes

    def test_clients_that_declare_at_once_agree(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        clients = [broker.connect() for _ in range(4)]
        results([in_thread(c.declare, spec, spec.exchange) for c in clients])
        publish(client, spec)
        assert len(drain(broker, client, spec)) == 1
