"""Acceptance, routing, batches, and what a message keeps on its way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, PublishInterrupted, Unroutable
from synmanager.message import Message, Rank, decode, encode
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    HEADERS,
    assert_counts,
    bodies,
    drain,
    make_message,
    make_spec,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Publishing"]

EVERY_JSON_TYPE: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "beyond 64 bits": 2**80,
    "float": 0.1,
    "tiny": 5e-324,
    "empty string": "",
    "string": 'quotes " and \\ and / and \t\n\r\0',
    "list": [1, [2, [3, {"four": 4}]], []],
    "object": {"nested": {"deeper": {}}},
    "": "an empty key",
}

UNICODE = {
    "latin": "Zürich",
    "中文": "联邦学习",
    "emoji": "🐧👩‍🔬",
    "rtl": "שלום",
    "bom": "\ufeff",
    "nul": "\0",
}


class Publishing(Topic):
    @pytest.mark.parametrize(
        "job", [{}, EVERY_JSON_TYPE, UNICODE], ids=["empty", "every type", "unicode"]
    )
    def test_a_job_arrives_as_it_was_sent(
        self, client: QueueBackend, spec: QueueSpec, job: dict[str, Any]
    ) -> None:
        publish(client, spec, Message(encode(job)))
        assert decode(take(client, spec).message.body) == job

    @pytest.mark.parametrize(
        "body",
        [
            bytes(range(256)),
            b" { } ",
            '{"é": "\\u00e9"}'.encode(),
            b"\r\n.\r\n\0",
            b"\n{}\n\n",
            b"",
        ],
        ids=["every byte", "blanks", "raw UTF-8", "control", "lines", "empty"],
    )
    def test_the_body_is_kept_byte_for_byte(
        self, client: QueueBackend, spec: QueueSpec, body: bytes
    ) -> None:
        publish(client, spec, Message(body))
        assert take(client, spec).message.body == body

    def test_a_body_of_a_million_characters(self, client: QueueBackend, spec: QueueSpec) -> None:
        job = {"text": "xyz é 中 🐧 " * 100_000}
        publish(client, spec, Message(encode(job)))
        assert decode(take(client, spec).message.body) == job

    @pytest.mark.parametrize("rank", Rank)
    def test_what_travels_beside_the_body_arrives(
        self, client: QueueBackend, spec: QueueSpec, rank: Rank
    ) -> None:
        sent = Message(b"{}", id="an id / of ünusual form", rank=rank, submitted_at=1234567890.125)
        publish(client, spec, sent)
        delivery = take(client, spec)
        assert delivery.message.id == sent.id
        assert delivery.message.rank is rank
        assert delivery.message.submitted_at == pytest.approx(sent.submitted_at, abs=0.001)
        assert delivery.message.schema == sent.schema
        assert delivery.queue == spec.name
        assert delivery.attempt == 1
        assert delivery.defect is None
        assert not delivery.settled

    @pytest.mark.parametrize("delay", [0.0, 0.01], ids=["at once", "delayed"])
    def test_headers_arrive(self, client: QueueBackend, spec: QueueSpec, delay: float) -> None:
        batch = [Message(b"1", headers=HEADERS), Message(b"2"), Message(b"3", headers={"a": "b"})]
        publish(client, spec, *batch, delay=delay)
        taken = [take(client, spec).message for _ in batch]
        assert [dict(message.headers) for message in taken] == [HEADERS, {}, {"a": "b"}]
        assert [message.body for message in taken] == [b"1", b"2", b"3"]

    @pytest.mark.parametrize("delay", [0.0, 3600.0], ids=["at once", "delayed"])
    def test_those_that_are_there_already_are_counted(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec, delay: float
    ) -> None:
        def send(*messages: Message) -> int:
            return other.publish(spec.exchange.name, spec.routing_key, messages, delay=delay)

        counts = client.features.deduplicates
        batch = [make_message(number) for number in range(3)]
        assert send() == 0
        assert send(*batch[:2]) == 0
        assert send(*batch) == (2 if counts else 0)
        assert send(batch[2], make_message(), batch[2]) == (2 if counts else 0)

    def test_ids_that_differ_in_little_are_of_different_messages(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        """An id has any characters, and 255 bytes at most."""
        ids = ["an id", "An id", "an id ", "an/id", "an_id", "é", "e\u0301", "x" * 254 + "1"]
        ids.append("x" * 254 + "2")
        batch = [Message(b"{}", id=each) for each in ids]
        assert client.publish(spec.exchange.name, spec.routing_key, batch) == 0
        assert [delivery.message.id for delivery in drain(broker, client, spec)] == ids

    def test_what_is_held_is_there_and_what_has_ended_is_not(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)

        def send() -> int:
            return other.publish(spec.exchange.name, spec.routing_key, [sent])

        held = take(client, spec)
        if client.features.deduplicates:
            assert send() == 1
        client.ack(held)
        assert send() == 0
        client.bury(take(client, spec), "a reason")
        assert send() == 0
        assert take(client, spec).message.id == sent.id

    def test_what_waits_for_another_attempt_is_there_until_it_is_deleted(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if not client.features.deduplicates:
            return
        (sent,) = publish(client, spec)
        client.nack(take(client, spec), delay=3600)
        assert other.publish(spec.exchange.name, spec.routing_key, [sent]) == 1
        if client.features.deletes:
            client.delete(spec.name, sent.id)
            assert other.publish(spec.exchange.name, spec.routing_key, [sent]) == 0

    def test_one_that_some_queue_takes_is_not_counted(
        self, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        (sent,) = publish(client, first)
        declare(exchange=first.exchange)
        assert client.publish(first.exchange.name, "", [sent]) == 0
        expected = 1 if client.features.deduplicates else 0
        assert client.publish(first.exchange.name, "", [sent]) == expected

    def test_a_schema_of_the_future_and_an_unknown_time_arrive(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        # Whether to run it is not the driver's decision.
        publish(client, spec, Message(b"{}", schema=99, submitted_at=None))
        for _ in range(2):
            delivery = take(client, spec)
            assert delivery.message.schema == 99
            assert delivery.message.submitted_at is None
            client.nack(delivery)

    def test_no_key_of_a_job_is_taken_for_metadata(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        names = ["id", "rank", "priority", "body", "attempt", "delay", "queue", "schema", "args"]
        job = {name: f"the job's own {name}" for name in names}
        (sent,) = publish(client, spec, Message(encode(job)))
        delivery = take(client, spec)
        assert decode(delivery.message.body) == job
        assert delivery.message.id == sent.id

    def test_a_batch_arrives_in_order(self, client: QueueBackend, spec: QueueSpec) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(20)))
        assert [take(client, spec).message.id for _ in sent] == [message.id for message in sent]

    def test_a_batch_of_a_thousand(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, *(make_message(number) for number in range(1000)))
        assert_counts(client, spec, ready=1000)
        assert bodies(drain(broker, client, spec)) == [message.body for message in sent]

    def test_an_empty_batch_changes_nothing(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        client.publish(spec.exchange.name, spec.routing_key, [])
        assert takes_nothing(broker, client, spec)

    def test_messages_of_several_publishes_keep_their_order(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = [publish(client, spec, make_message(number))[0] for number in range(20)]
        assert bodies(drain(broker, client, spec)) == [message.body for message in sent]

    def test_what_was_published_is_there_after_the_publisher_has_gone(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, other: QueueBackend
    ) -> None:
        publish(other, spec, make_message(1))
        other.close()
        crashing = broker.connect()
        publish(crashing, spec, make_message(2))
        broker.cut(crashing)
        assert [json.loads(body)["number"] for body in bodies(drain(broker, client, spec))] == [
            1,
            2,
        ]

    @pytest.mark.parametrize("key", ["nobody", "", "*", "#", "{key}.more", "{key}-more"])
    def test_a_key_that_no_queue_is_bound_to_is_unroutable(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, key: str
    ) -> None:
        with pytest.raises(Unroutable):
            client.publish(spec.exchange.name, key.format(key=spec.routing_key), [make_message()])
        assert takes_nothing(broker, client, spec)

    @pytest.mark.parametrize("type", ["topic", "fanout"])
    def test_an_exchange_without_a_queue_is_unroutable(
        self, broker: BrokerUnderTest, client: QueueBackend, type: str
    ) -> None:
        exchange = make_spec(type).exchange
        client.declare(exchange)
        with pytest.raises(Unroutable):
            client.publish(exchange.name, "any", [make_message(), make_message()])
        broker.discard(exchange)

    def test_an_exchange_that_does_not_exist_is_unroutable(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        with pytest.raises(Unroutable):
            client.publish(make_spec().exchange.name, spec.routing_key, [make_message()])
        publish(client, spec)
        assert take(client, spec)

    def test_an_unroutable_delayed_message_is_refused_now_and_not_when_it_is_due(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        with pytest.raises(Unroutable):
            client.publish(spec.exchange.name, "nobody", [make_message()], delay=3600)

    def test_a_topic_routes_on_the_exact_key(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, declare: Declare
    ) -> None:
        sibling = declare(exchange=spec.exchange)
        publish(client, spec, make_message("spec"))
        publish(client, sibling, make_message("sibling"))
        assert decode(take(client, spec).message.body) == {"number": "spec"}
        assert decode(take(client, sibling).message.body) == {"number": "sibling"}
        assert takes_nothing(broker, client, spec, sibling)

    def test_two_queues_bound_to_one_key_get_a_copy_each(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        twin = QueueSpec(make_spec().name, spec.exchange, spec.routing_key)
        client.declare(twin)
        (sent,) = publish(client, spec)
        assert take(client, spec).message.id == sent.id
        assert take(client, twin).message.id == sent.id
        broker.discard(twin)

    @pytest.mark.parametrize("key", ["", "any key", None], ids=["empty", "any", "its own"])
    def test_a_fanout_gives_every_queue_its_own_copy(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        key: str | None,
    ) -> None:
        first = declare("fanout")
        second = declare(exchange=first.exchange)
        sent = [make_message(number, rank=Rank.HIGH) for number in range(3)]
        client.publish(first.exchange.name, first.routing_key if key is None else key, sent)
        # One settles its copies; that must not touch the other's.
        assert [delivery.message.id for delivery in drain(broker, client, first)] == [
            message.id for message in sent
        ]
        copies = [take(other, second) for _ in sent]
        assert [copy.message.id for copy in copies] == [message.id for message in sent]
        assert {copy.message.rank for copy in copies} == {Rank.HIGH}
        assert {copy.attempt for copy in copies} == {1}

    def test_a_queue_that_is_bound_later_gets_copies_from_then_on(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare
    ) -> None:
        first = declare("fanout")
        publish(client, first, make_message("before"))
        late = declare(exchange=first.exchange)
        (after,) = publish(client, first, make_message("after"))
        assert bodies(drain(broker, client, late)) == [after.body]
        assert len(drain(broker, client, first)) == 2

    def test_a_publish_that_a_cut_interrupted_can_be_repeated(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = [make_message(number) for number in range(10)]
        broker.cut(client)
        in_doubt = sent
        for _ in range(5):
            try:
                publish(client, spec, *in_doubt)
                break
            except PublishInterrupted as error:
                in_doubt = list(error.unconfirmed)
            except BrokerUnavailable:
                pass  # it never left
            client.open()
        else:
            pytest.fail("open() did not make a working connection")
        arrived = [delivery.message.id for delivery in drain(broker, other, spec)]
        assert set(arrived) == {message.id for message in sent}
        if client.features.deduplicates:
            assert len(arrived) == len(sent)
