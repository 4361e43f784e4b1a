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
    headers=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=3),
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
    assert read.headers == message.headers
    assert decode(content).delivery_mode == 2


@given(messages)
def test_headers_go_with_every_copy(message: Message) -> None:
    original = decode(properties.delayed(message, {"synmanager-delay-1": True}))
    letter = decode(properties.dead(original, message, "train", 2, "why", "where"))
    dead = properties.dead_letter("train", letter, message.body)
    for copy in (
        properties.again(original, message, 1),
        properties.onward(original, message.body, {"synmanager-queue": "train"}),
        properties.kept(letter, dead),
        properties.again(letter, dead.message, 0),
    ):
        assert properties.read(decode(copy), copy.body).message.headers == message.headers
    assert (dead.message.headers, dead.traceback) == (message.headers, "where")


def test_a_traceback_is_kept_by_its_end_and_no_longer_than_its_letter() -> None:
    message = Message(b"{}", headers={"a": "b"})
    long = "first" + "ü" * 30_000 + "last \ud800"
    letter = decode(properties.dead(BasicProperties(), message, "train", 1, "why" * 9_000, long))
    assert len(b"".join(letter.encode())) < 65_536
    traceback = properties.dead_letter("train", letter, b"{}").traceback
    assert traceback.endswith("last \\ud800")
    assert not traceback.startswith("first")
    again = decode(properties.again(letter, message, 0))
    assert properties.dead_letter("train", again, b"{}").traceback == ""


@pytest.mark.parametrize(
    "properties_of_a_stranger",
    [
        {"headers": {"CC": ["a"], "BCC": ["b"], "x-delay": 5, "x-death": [], "x-opt-a": 1}},
        {"expiration": "1000", "user_id": "somebody", "reply_to": "amq.rabbitmq.reply-to"},
        {"headers": {"x-delivery-count": 3, "x-acquired-count": 3, "x-stream-offset": 1}},
    ],
)
def test_what_makes_a_broker_act_is_in_no_copy(properties_of_a_stranger: dict[str, Any]) -> None:
    original = BasicProperties(**properties_of_a_stranger)
    message = Message(b"{}", submitted_at=None)
    for copy in (
        properties.again(original, message, 1),
        properties.dead(original, message, "train", 1, "why"),
        properties.onward(original, b"{}", {}),
    ):
        left = decode(copy)
        assert (left.expiration, left.user_id, left.reply_to) == (None, None, None)
        assert all(name.startswith("x-synmanager-") for name in left.headers or {})
    letter = properties.dead_letter("train", original, b"{}")
    kept = decode(properties.kept(original, letter))
    assert not {"CC", "BCC", "x-delivery-count", "x-acquired-count"} & set(kept.headers or {})


@pytest.mark.parametrize("count", [(1 << 63) - 1, 1_000_000_000])
def test_an_absurd_count_can_be_counted_on(count: int) -> None:
    original = BasicProperties(headers={"x-synmanager-attempts": count})
    for _ in range(3):
        message, attempts, defect = properties.read(original, b"{}")
        assert (attempts, defect) == (1_000_000_000, None)
        original = decode(properties.again(original, message, attempts + 1))
    letter = decode(properties.dead(original, message, "train", attempts + 1, "why"))
    assert properties.dead_letter("train", letter, b"{}").attempts == 1_000_000_000


@given(messages)
def test_pika_would_have_written_the_same(message: Message) -> None:
    written, ours = properties.delayed(message, {}), properties.fresh(message)
    assert vars(decode(ours)) == vars(decode(written))


def test_a_message_is_told_from_its_copies_and_from_a_stranger_s() -> None:
    message = Message(b"{}", id="nightly")
    fresh = decode(properties.fresh(message))
    first, second = (decode(properties.again(fresh, message, 1)) for _ in range(2))
    later = decode(properties.fresh(Message(b"{}", id="nightly")))
    known = [properties.identity(each, b"{}") for each in (fresh, first, second, later)]
    assert len({*known, properties.identity(fresh, b"{ }")}) == 5
    assert None not in known
    assert properties.identity(fresh, b"{}") == known[0]
    assert properties.identity(BasicProperties(message_id="nightly"), b"{}") is None


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
    mark = copy.headers.pop("x-synmanager-copy")
    assert copy.headers == {"tenant": "a", "x-synmanager-attempts": 3}
    assert len(mark) == 32
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
        ("x-synmanager-attempts", 1.5e30),
        ("x-synmanager-schema", 1 << 62),
        ("x-synmanager-submitted-at", (1 << 63) - 1),
        ("x-synmanager-header-limit", 5),
        ("x-delivery-count", "many"),
    ],
)
def test_a_header_that_makes_no_sense_is_a_defect(header: str, value: object) -> None:
    read = properties.read(BasicProperties(headers={header: value}), b"{}")
    assert read.defect is not None
    assert header in read.defect


@pytest.mark.parametrize(
    ("header", "uncounted"), [(None, 1), (0, 1), (2, 2), (1 << 62, 1_000_000_000), ("two", 1)]
)
def test_what_a_quorum_queue_counted_counts(header: object, uncounted: int) -> None:
    headers = {"x-synmanager-attempts": 3, "x-delivery-count": header}
    stamped = BasicProperties(headers={k: v for k, v in headers.items() if v is not None})
    assert properties.read(stamped, b"").attempts == 3
    assert properties.uncounted(stamped) == uncounted
    copy = decode(properties.again(stamped, Message(b"{}"), 4))
    assert not properties.is_worn(copy)


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


@pytest.mark.parametrize(
    ("headers", "uncounted"),
    [({}, 0), ({"x-delivery-count": 0}, 0), ({"x-delivery-count": 3}, 3)],
)
def test_what_was_only_given_back_does_not_count(headers: dict[str, Any], uncounted: int) -> None:
    """From RabbitMQ 4.3 on, a quorum queue tells the two apart."""
    stamped = BasicProperties(headers={"x-acquired-count": 5, **headers})
    assert properties.uncounted(stamped) == uncounted


@pytest.mark.parametrize("rank", list(Rank))
def test_dead_letters_have_one_priority_and_keep_their_rank(rank: Rank) -> None:
    """A quorum queue ranks whatever has priorities, and the oldest letter is to be the first."""
    message = Message(b"{}", rank=rank)
    letter = properties.dead(BasicProperties(priority=8), message, "train", 1, "why")
    stamped = properties.parse(letter.properties)
    assert stamped.priority == 4
    assert properties.dead_letter("train", stamped, b"{}").message.rank is rank
    back = properties.parse(properties.again(stamped, message, 0).properties)
    assert properties.read(back, b"{}").message.rank is rank
    assert "x-synmanager-rank" not in back.headers
