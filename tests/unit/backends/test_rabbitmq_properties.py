"""A message as AMQP properties, and back."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties
from pika.data import encode_table

from synmanager.backends.rabbitmq import properties
from synmanager.backends.rabbitmq.frames import Content
from synmanager.message import SCHEMA, Message, Rank

messages = st.builds(
    Message,
    body=st.binary(max_size=100),
    id=st.text(min_size=1, max_size=60),
    rank=st.sampled_from(Rank),
    submitted_at=st.none() | st.floats(0, 4e9),
    schema=st.just(SCHEMA),
)


def decode(content: Content) -> BasicProperties:
    """As the other side does."""
    decoded = BasicProperties()
    decoded.decode(content.properties)
    return decoded


def headers_of(content: Content) -> dict[str, Any]:
    return dict(decode(content).headers or {})


@given(messages)
def test_a_fresh_message_is_read_as_it_was(message: Message) -> None:
    content = properties.fresh(message)
    read, attempts, defect = properties.read(decode(content), content.body)
    assert (read.id, read.rank, read.body) == (message.id, message.rank, message.body)
    assert read.submitted_at == pytest.approx(message.submitted_at, abs=1e-6)
    assert (read.schema, attempts, defect) == (SCHEMA, 0, None)
    assert decode(content).delivery_mode == 2


@given(messages)
def test_pika_would_have_written_the_same(message: Message) -> None:
    written, ours = properties.delayed(message, {}), properties.fresh(message)
    assert vars(decode(ours)) == vars(decode(written))


@given(messages)
def test_it_is_read_the_same_with_and_without_decoding(message: Message) -> None:
    content = properties.fresh(message)
    assert properties.read(content.properties, b"") == properties.read(decode(content), b"")


@given(messages, st.data())
def test_what_is_nearly_like_a_fresh_one_is_read_by_pika(
    message: Message, data: st.DataObject
) -> None:
    encoded = bytearray(properties.fresh(message).properties)
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    for each in (bytes(encoded), cut):
        read = properties.read(each, b"{}", "an id")
        assert read == properties.read(properties.parse(each), b"{}", "an id")


@pytest.mark.parametrize("rank", Rank)
def test_a_copy_for_the_head_comes_before_its_rank_and_after_the_next(rank: Rank) -> None:
    message = Message(b"{}", rank=rank)
    original = decode(properties.fresh(message))
    head = decode(properties.again(original, message, 1, head=True))
    assert head.priority == original.priority + 1
    assert properties.read(head, b"").message.rank is rank
    higher = [decode(properties.fresh(Message(b"", rank=other))) for other in Rank if other > rank]
    assert all(head.priority < each.priority for each in higher)
    assert head.priority <= properties.MAX_PRIORITY


def test_a_copy_keeps_what_its_producer_said_and_drops_what_the_broker_did() -> None:
    original = BasicProperties(
        content_type="text/plain",
        correlation_id="a correlation",
        expiration="1000",
        headers={"tenant": "a", "x-death": [{"count": 1}], "synmanager-delay-3": True},
    )
    copy = decode(properties.again(original, Message(b"{}", id="an id", submitted_at=None), 3))
    assert (copy.content_type, copy.correlation_id) == ("text/plain", "a correlation")
    assert copy.message_id == "an id"
    assert copy.expiration is None
    assert copy.headers == {"tenant": "a", "x-synmanager-attempts": 3}
    assert original.headers is not None
    assert "x-death" in original.headers


@given(st.binary(max_size=60))
def test_whatever_pika_can_read_can_be_copied(table: bytes) -> None:
    flags = pack(">H", BasicProperties.FLAG_HEADERS)
    original = properties.parse(flags + pack(">I", len(table)) + table)
    message = properties.read(original, b"{}").message
    properties.again(original, message, 1)
    properties.dead(original, message, "train", 1, "why")


@pytest.mark.parametrize("headers", [{"score": 1 << 70}, {b"\xff": 1}, {"nested": {b"\xff": 1}}])
def test_headers_that_pika_cannot_write_are_left_out(headers: Any) -> None:
    original = BasicProperties(message_id="an id", user_id="somebody", headers=headers)
    message = Message(b"{}", id="an id")
    for copy in (
        properties.again(original, message, 1),
        properties.dead(original, message, "train", 1, "why"),
    ):
        assert headers_of(copy)["x-synmanager-attempts"] == 1
        assert decode(copy).user_id is None


def test_headers_that_leave_no_room_for_ours_are_dropped() -> None:
    original = BasicProperties(message_id="an id", headers={"large": "x" * 70_000})
    copy = properties.dead(original, Message(b"{}", id="an id"), "train", 2, "why" * 20_000)
    assert len(copy.properties) < 70_000
    letter = properties.dead_letter("train", decode(copy), b"{}")
    assert (letter.message.id, letter.attempts) == ("an id", 2)
    assert letter.reason.startswith("whywhy")


@pytest.mark.parametrize("reason", ["lone \ud800 surrogate", "ü" * 20_000, ""])
def test_any_reason_can_be_kept(reason: str) -> None:
    message = Message(b"{}")
    letter = properties.dead_letter(
        "train", decode(properties.dead(BasicProperties(), message, "train", 1, reason)), b"{}"
    )
    assert letter.reason[:5] == reason.encode("utf-8", "backslashreplace").decode()[:5]


def test_what_a_stranger_buried_is_shown_all_the_same() -> None:
    letter = properties.dead_letter("train", BasicProperties(timestamp=1_700_000_000), b"{}")
    assert (letter.reason, letter.attempts, letter.died_at) == ("", 0, 1_700_000_000.0)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-synmanager-attempts", "many"),
        ("x-synmanager-attempts", -1),
        ("x-synmanager-attempts", True),
        ("x-synmanager-schema", "new"),
        ("x-synmanager-submitted-at", [1]),
        ("x-delivery-count", "many"),
    ],
)
def test_a_header_that_makes_no_sense_is_a_defect(header: str, value: object) -> None:
    read = properties.read(BasicProperties(headers={header: value}), b"{}")
    assert read.defect is not None
    assert header in read.defect


def test_deliveries_that_a_quorum_queue_counted_are_added() -> None:
    stamped = BasicProperties(headers={"x-delivery-count": 2, "x-synmanager-attempts": 3})
    assert properties.read(stamped, b"").attempts == 5
    assert properties.is_counted(stamped)
    assert not properties.is_counted(BasicProperties())


@pytest.mark.parametrize(
    ("priority", "rank"),
    [
        (None, Rank.NORMAL),
        (0, Rank.LOW),
        (1, Rank.LOW),
        (2, Rank.LOW),
        (4, Rank.NORMAL),
        (5, Rank.NORMAL),
        (8, Rank.HIGH),
        (9, Rank.HIGH),
        (255, Rank.HIGH),
    ],
)
def test_a_priority_of_anybody_is_a_rank(priority: int | None, rank: Rank) -> None:
    assert properties.read(BasicProperties(priority=priority), b"").message.rank is rank


def test_the_time_of_submission_takes_eight_bytes_whatever_it_is() -> None:
    pieces: list[bytes] = []
    encode_table(pieces, {"x-synmanager-submitted-at": 1 << 62})
    assert pieces[-1].endswith((1 << 62).to_bytes(8, "big"))
