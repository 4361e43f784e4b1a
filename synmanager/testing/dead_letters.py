"""Dead letters: made, looked at, put back, thrown away."""

from __future__ import annotations

import time

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    AT_ONCE,
    HEADERS,
    WAIT,
    assert_counts,
    bury,
    drain,
    in_thread,
    needs_sight,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["DeadLetters"]

A_TRACEBACK = 'Traceback ("most recent" call last):\n  Exception: ünlucky 🐧\n'


class DeadLetters(Topic):
    @needs_sight
    def test_a_buried_message_is_kept_with_its_reason(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = Message(bytes(range(256)), rank=Rank.HIGH, submitted_at=1234567890.125)
        publish(client, spec, sent)
        client.nack(take(client, spec))
        delivery = take(client, spec)
        client.bury(delivery, A_TRACEBACK)
        assert delivery.settled
        assert takes_nothing(broker, client, spec)
        assert_counts(other, spec, dead=1)
        (letter,) = other.dead_letters(spec.name, 10)
        assert letter.message.body == sent.body
        assert letter.message.id == sent.id
        assert letter.message.rank is sent.rank
        assert letter.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        assert letter.queue == spec.name
        assert letter.reason == A_TRACEBACK
        assert letter.traceback == ""
        assert letter.attempts == 2
        # By the epoch, not since the machine started; its server's clock may be a little off.
        assert letter.died_at == pytest.approx(time.time(), abs=300)

    @needs_sight
    def test_the_traceback_is_kept_beside_the_reason(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        for delay in (0.0, 0.01):
            publish(client, spec)
            client.nack(take(client, spec), delay=delay)
            client.bury(take(client, spec), "a reason", A_TRACEBACK)
        for letter in other.dead_letters(spec.name, 10):
            assert (letter.reason, letter.traceback) == ("a reason", A_TRACEBACK)
        assert client.redrive(spec.name, 10) == 2
        client.bury(take(client, spec), "another")
        (letter,) = other.dead_letters(spec.name, 10)
        assert (letter.reason, letter.traceback) == ("another", "")

    @pytest.mark.parametrize("text", ["\ud800", "\0", "x" * 20_000], ids=["half", "nul", "long"])
    @needs_sight
    def test_texts_of_any_kind_are_kept(
        self, client: QueueBackend, spec: QueueSpec, text: str
    ) -> None:
        (sent,) = publish(client, spec)
        client.bury(take(client, spec), f"why {text}", f"where {text}")
        (letter,) = client.dead_letters(spec.name, 10)
        assert letter.message.id == sent.id
        assert letter.reason.startswith("why ")
        assert letter.traceback.startswith("where ")

    @needs_sight
    def test_headers_are_kept_and_come_back(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec, Message(b"{}", headers=HEADERS))
        client.bury(take(client, spec), "a reason", A_TRACEBACK)
        (letter,) = other.dead_letters(spec.name, 10)
        assert letter.message.headers == HEADERS
        assert other.redrive(spec.name, 10) == 1
        delivery = take(client, spec)
        assert delivery.message.headers == HEADERS
        client.nack(delivery)
        assert take(client, spec).message.headers == HEADERS

    @needs_sight
    def test_one_that_was_submitted_again_meanwhile_is_not_lost(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        first, second = bury(client, spec, 2)
        publish(client, spec, first)
        if client.features.deduplicates:
            # Of two with one id the broker would take the second for the first.
            assert client.redrive(spec.name, 1) == 1
            (letter,) = client.dead_letters(spec.name, 10)
            assert letter.message.id == first.id
            assert [d.message.id for d in drain(broker, client, spec)] == [first.id, second.id]
            assert client.redrive(spec.name, 10) == 1
            assert [d.message.id for d in drain(broker, client, spec)] == [first.id]
        else:
            assert client.redrive(spec.name, 10) == 2
            ids = [delivery.message.id for delivery in drain(broker, client, spec)]
            assert sorted(ids) == sorted([first.id, first.id, second.id])

    @needs_sight
    def test_of_two_letters_of_one_id_none_is_lost_and_none_is_doubled(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        for number in range(2):
            publish(client, spec, Message(b"%d" % number, id="twice"))
            client.bury(take(client, spec), "a reason")
        runs = []
        while client.dead_letters(spec.name, 1):
            assert client.redrive(spec.name, 10) == (1 if client.features.deduplicates else 2)
            runs.append([d.message.body for d in drain(broker, client, spec)])
        if client.features.deduplicates:
            # Of two with one id the broker would take the second for the first.
            assert runs == [[b"0"], [b"1"]]
        else:
            assert runs == [[b"0", b"1"]]

    @needs_sight
    def test_they_are_all_there_as_soon_as_they_were_looked_at(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        for _ in range(20):
            bury(client, spec, 3)
            assert len(client.dead_letters(spec.name, 10)) == 3
            assert client.redrive(spec.name, 10) == 3
            assert client.purge(spec.name) == 3

    @needs_sight
    def test_a_queue_without_dead_letters(self, client: QueueBackend, spec: QueueSpec) -> None:
        assert client.dead_letters(spec.name, 10) == []
        assert client.redrive(spec.name, 10) == 0
        assert client.purge_dead_letters(spec.name) == 0

    @needs_sight
    def test_no_reason_is_too_long_to_keep_the_job(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        client.bury(take(client, spec), A_TRACEBACK * 10_000)
        (letter,) = client.dead_letters(spec.name, 10)
        assert letter.message.id == sent.id
        assert letter.reason[: len(A_TRACEBACK)] == A_TRACEBACK

    @needs_sight
    def test_looking_shows_the_oldest_and_changes_nothing(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = bury(client, spec, 5)
        for _ in range(3):
            letters = other.dead_letters(spec.name, 3)
            assert [letter.message.id for letter in letters] == [m.id for m in sent[:3]]
            assert [letter.reason for letter in letters] == ["reason 0", "reason 1", "reason 2"]
            assert {letter.attempts for letter in letters} == {1}
        assert len(other.dead_letters(spec.name, 100)) == 5
        assert_counts(other, spec, dead=5)

    @needs_sight
    def test_a_redriven_message_starts_anew(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = Message(bytes(range(256)), rank=Rank.LOW, submitted_at=1234567890.125)
        publish(client, spec, sent)
        client.nack(take(client, spec))
        client.bury(take(client, spec), "a reason")
        assert other.redrive(spec.name, 10) == 1
        assert other.dead_letters(spec.name, 10) == []
        delivery = take(client, spec)
        assert delivery.attempt == 1
        assert delivery.message.id == sent.id
        assert delivery.message.rank is sent.rank
        assert delivery.message.body == sent.body
        assert delivery.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        client.nack(delivery)
        again = take(client, spec)
        assert again.attempt == 2
        client.ack(again)
        assert takes_nothing(broker, client, spec)

    def test_redrive_puts_back_the_oldest_in_order(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = bury(client, spec, 5)
        assert client.redrive(spec.name, 3) == 3
        assert_counts(client, spec, ready=3, dead=2)
        taken = drain(broker, client, spec)
        assert [delivery.message.id for delivery in taken] == [m.id for m in sent[:3]]
        assert client.redrive(spec.name, 100) == 2
        taken = drain(broker, client, spec)
        assert [delivery.message.id for delivery in taken] == [m.id for m in sent[3:]]

    def test_redrive_wakes_up_a_waiting_client(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = bury(client, spec, 1)
        waiting = in_thread(other.receive, [spec.name], WAIT)
        time.sleep(broker.quiet)  # no call tells that another one is waiting
        client.redrive(spec.name, 1)
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert delivery.message.id == sent.id

    @needs_sight
    def test_a_redriven_message_can_die_again(self, client: QueueBackend, spec: QueueSpec) -> None:
        (sent,) = bury(client, spec, 1)
        client.redrive(spec.name, 1)
        client.bury(take(client, spec), "another reason")
        (letter,) = client.dead_letters(spec.name, 10)
        assert (letter.message.id, letter.reason) == (sent.id, "another reason")
        assert letter.attempts == 1

    def test_the_dead_letter_of_one_fanout_copy_goes_back_to_its_own_queue(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        second = declare(exchange=first.exchange)
        publish(client, first)
        client.ack(take(client, second))
        client.bury(take(client, first), "a reason")
        assert_counts(client, second)
        assert client.redrive(second.name, 10) == 0
        assert client.redrive(first.name, 10) == 1
        take(client, first)
        assert takes_nothing(broker, client, second)

    @needs_sight
    def test_purging_dead_letters_leaves_the_queue_alone(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        spec, bystander = declare(), declare()
        bury(client, spec, 3)
        bury(client, bystander, 1)
        (sent,) = publish(client, spec)
        assert client.purge_dead_letters(spec.name) == 3
        assert client.dead_letters(spec.name, 10) == []
        assert_counts(client, spec, ready=1)
        assert_counts(client, bystander, dead=1)
        assert take(client, spec).message.id == sent.id

    @needs_sight
    def test_purging_the_queue_leaves_the_dead_letters_alone(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = bury(client, spec, 2)
        publish(client, spec)
        assert client.purge(spec.name) == 1
        letters = client.dead_letters(spec.name, 10)
        assert [letter.message.id for letter in letters] == [message.id for message in sent]

    @needs_sight
    def test_dead_letters_outlive_the_client_that_made_them(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = bury(other, spec, 1)
        broker.cut(other)
        (letter,) = client.dead_letters(spec.name, 10)
        assert letter.message.id == sent.id
