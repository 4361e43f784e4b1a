"""Waiting and waking up, no hoarding, and the bodies of strangers."""

from __future__ import annotations

import threading
import time

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import Undecodable
from synmanager.message import Rank, decode
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    AT_ONCE,
    WAIT,
    drain,
    in_thread,
    make_message,
    needs_sight,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Receiving"]

FOREIGN_BODY = b'{"project_id": "test_project"}'

# What decode() must refuse and a driver must carry nevertheless.
UNDECODABLE = [b"\xff\xfe\x00 no UTF-8", b"{no json", b"[1, 2]", b"null", b"", b"[" * 100_000]


class Receiving(Topic):
    @pytest.mark.parametrize("wait", [0, 0.1])
    def test_an_empty_queue_gives_none_in_time(
        self, client: QueueBackend, spec: QueueSpec, wait: float
    ) -> None:
        begin = time.monotonic()
        assert client.receive([spec.name], wait) is None
        assert time.monotonic() - begin < wait + AT_ONCE

    def test_a_wait_of_nothing_takes_what_is_there(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        assert client.receive([spec.name], 0) is not None

    def test_a_waiting_receive_wakes_up_for_a_message(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        for _ in range(3):  # the second wait must work as the first
            waiting = in_thread(client.receive, [spec.name], WAIT)
            time.sleep(broker.quiet)  # no call tells that another one is waiting
            assert not waiting.done()
            (sent,) = publish(other, spec)
            delivery = waiting.result(AT_ONCE)
            assert delivery is not None
            assert delivery.message.id == sent.id
            client.ack(delivery)

    def test_a_loop_waits_until_it_is_called_off(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        """By another thread, or by a signal's handler, which can make no call of a driver's."""
        specs = [declare(), declare()]
        names = [spec.name for spec in specs]
        over = threading.Event()

        def wait() -> Delivery | None:
            while not over.is_set():
                found = client.await_job(names, WAIT, called_off=over.is_set)
                if found is not None:
                    return found
            return None

        waiting = in_thread(wait)
        time.sleep(broker.quiet)
        (sent,) = publish(other, specs[1])
        held = waiting.result(AT_ONCE)
        assert held is not None
        assert held.message.id == sent.id
        client.ack(held)
        waiting = in_thread(wait)
        time.sleep(broker.quiet)
        over.set()
        assert waiting.result(WAIT / 2) is None
        publish(other, specs[1])
        take(other, *specs, wait=AT_ONCE)  # nobody else waits for it

    @pytest.mark.parametrize("ringing", [0, 1, 2])
    def test_a_receive_on_several_queues_wakes_up_for_any(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        ringing: int,
    ) -> None:
        specs = [declare(), declare(), declare("fanout")]
        waiting = in_thread(client.receive, [spec.name for spec in specs], WAIT)
        time.sleep(broker.quiet)
        publish(other, specs[ringing])
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert delivery.queue == specs[ringing].name

    @pytest.mark.parametrize("brief", [False, True])
    def test_two_queues_that_ring_at_once_lose_nothing_and_count_nothing(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        brief: bool,
    ) -> None:
        first = declare("fanout")
        second = declare(exchange=first.exchange)
        waiting = in_thread(client.receive, [first.name, second.name], WAIT)
        time.sleep(broker.quiet)
        publish(other, first, make_message(1), make_message(2))
        held = waiting.result(AT_ONCE)
        assert held is not None
        if brief:
            client.ack(held)
        rest = [take(other, first, second, wait=AT_ONCE) for _ in range(3)]
        taken = [held, *rest]
        assert {(d.queue, decode(d.message.body)["number"]) for d in taken} == {
            (queue.name, number) for queue in (first, second) for number in (1, 2)
        }
        assert [d.attempt for d in taken] == [1, 1, 1, 1]  # nobody has failed

    def test_a_busy_client_holds_nothing_but_its_delivery(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, make_message(1), make_message(2))
        held = take(client, spec)
        assert take(other, spec, wait=AT_ONCE).message.id == sent[1].id
        (late,) = publish(client, spec)
        assert take(other, spec, wait=AT_ONCE).message.id == late.id
        client.ack(held)
        assert takes_nothing(broker, client, spec)

    def test_a_busy_client_holds_nothing_of_its_other_queues(
        self, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        specs = [declare(), declare(), declare()]
        for spec in specs:
            publish(client, spec)
        assert take(client, *specs).queue == specs[0].name
        for spec in specs[1:]:
            delivery = take(other, spec, wait=AT_ONCE)
            assert delivery.attempt == 1

    def test_a_waiting_client_takes_one_and_leaves_the_next(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        specs = [declare(), declare()]
        waiting = in_thread(client.receive, [spec.name for spec in specs], WAIT)
        time.sleep(broker.quiet)
        sent = publish(other, specs[1], *(make_message(number) for number in range(3)))
        held = waiting.result(AT_ONCE)
        assert held is not None
        rest = [take(other, *specs, wait=AT_ONCE) for _ in range(2)]
        assert held.message.id == sent[0].id
        assert [delivery.message.id for delivery in rest] == [m.id for m in sent[1:]]
        assert [delivery.attempt for delivery in rest] == [1, 1]

    @pytest.mark.parametrize("wait", [0, 0.1])
    def test_a_client_that_found_nothing_holds_nothing_later(
        self, client: QueueBackend, other: QueueBackend, declare: Declare, wait: float
    ) -> None:
        specs = [declare(), declare()]
        for asked in (specs, specs[:1]):
            assert client.receive([spec.name for spec in asked], wait) is None
        for spec in specs:
            (sent,) = publish(client, spec)
            delivery = take(other, spec, wait=AT_ONCE)
            assert delivery.message.id == sent.id
            assert delivery.attempt == 1

    def test_a_client_that_took_its_job_holds_nothing_later(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        for number in range(10):
            publish(client, spec, make_message(number))
            client.ack(take(client, spec))
        publish(client, spec, make_message("next"))
        assert take(other, spec, wait=AT_ONCE).attempt == 1

    def test_one_client_can_hold_several_deliveries(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(5)))
        held = [take(client, spec) for _ in sent]
        assert [delivery.message.id for delivery in held] == [message.id for message in sent]
        for delivery in reversed(held):
            client.ack(delivery)
        assert takes_nothing(broker, client, spec)

    def test_a_message_of_a_foreign_program(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        broker.publish_raw(spec.name, FOREIGN_BODY)
        delivery = take(client, spec)
        assert delivery.message.body == FOREIGN_BODY
        assert delivery.message.id
        assert delivery.message.rank is Rank.NORMAL
        assert delivery.message.submitted_at is None
        assert delivery.message.schema == 0
        assert delivery.attempt == 1
        assert delivery.defect is None
        client.ack(delivery)
        assert takes_nothing(broker, client, spec)

    def test_messages_of_a_foreign_program_are_told_apart(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        for _ in range(3):
            broker.publish_raw(spec.name, FOREIGN_BODY)
        assert len({delivery.message.id for delivery in drain(broker, client, spec)}) == 3

    def test_a_message_of_a_foreign_program_keeps_its_id_when_it_comes_again(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        broker.publish_raw(spec.name, FOREIGN_BODY)
        first = take(client, spec)
        client.nack(first)
        second = take(client, spec)
        client.nack(second)
        third = take(client, spec)
        assert [second.attempt, third.attempt] == [2, 3]
        assert third.message.id == second.message.id == first.message.id
        assert third.message.body == FOREIGN_BODY

    @pytest.mark.parametrize("body", UNDECODABLE, ids=lambda body: repr(body[:20]))
    @needs_sight
    def test_a_body_that_nobody_can_read_arrives_and_can_be_buried(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, body: bytes
    ) -> None:
        broker.publish_raw(spec.name, body)
        delivery = take(client, spec)
        assert delivery.message.body == body
        with pytest.raises(Undecodable) as error:
            decode(delivery.message.body)
        client.bury(delivery, str(error.value))
        (letter,) = client.dead_letters(spec.name, 10)
        assert letter.message.body == body
        assert letter.message.id == delivery.message.id
        assert letter.reason == str(error.value)
        # The consumer lives.
        publish(client, spec, make_message("sound"))
        assert decode(take(client, spec).message.body) == {"number": "sound"}

    @needs_sight
    def test_damaged_metadata_arrives_as_a_defect_and_can_be_buried(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        damaged = broker.publish_damaged(spec.name)
        for body in damaged:
            delivery = take(client, spec)
            assert delivery.defect
            assert delivery.message.body == body
            client.bury(delivery, delivery.defect)
        letters = client.dead_letters(spec.name, len(damaged) + 1)
        assert [letter.message.body for letter in letters] == damaged
        assert all(letter.reason for letter in letters)
        assert takes_nothing(broker, client, spec)
