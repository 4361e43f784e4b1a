"""Frames that are written and read without pika, beside pika's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec

from synmanager.backends.rabbitmq import frames
from synmanager.backends.rabbitmq.frames import Confirmation, Content, Publication

FRAME_MAX = 4096

tags = st.integers(1, 2**63)
channels = st.integers(1, 65_535)
names = st.text(max_size=30)
metadata = st.builds(
    BasicProperties,
    message_id=st.none() | st.text(max_size=30),
    priority=st.none() | st.integers(0, 255),
    headers=st.none() | st.dictionaries(names, st.integers(0, 9)),
)


def marshal(channel: int, method: Any, properties: BasicProperties, body: bytes) -> bytes:
    """As a broker does."""
    parts = [
        frame.Method(channel, method).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
    ]
    if body:
        parts.append(frame.Body(channel, body).marshal())
    return b"".join(parts)


def read_by_pika(stream: bytes) -> list[Any]:
    read = []
    while stream:
        size, value = frame.decode_frame(stream)
        assert value is not None
        assert size <= FRAME_MAX
        read.append(value)
        stream = stream[size:]
    return read


@given(st.binary(max_size=3 * FRAME_MAX), channels)
def test_pika_reads_what_is_published(body: bytes, channel: int) -> None:
    properties = BasicProperties(message_id="an id")
    content = Content(b"".join(properties.encode()), body)
    method, header, *bodies = read_by_pika(
        Publication("exchange", "key", channel).frames(content, FRAME_MAX)
    )
    assert {each.channel_number for each in (method, header, *bodies)} == {channel}
    assert isinstance(method.method, spec.Basic.Publish)
    assert (method.method.exchange, method.method.routing_key) == ("exchange", "key")
    assert method.method.mandatory
    assert header.body_size == len(body)
    assert header.properties == properties
    assert b"".join(each.fragment for each in bodies) == body


@given(tags, channels, st.booleans())
def test_an_ack_is_pikas(tag: int, channel: int, multiple: bool) -> None:
    method: Any = spec.Basic.Ack(tag, multiple)
    encoded = frames.ack_frame(tag, multiple, channel)
    assert encoded == frame.Method(channel, method).marshal()
    assert frames.read(encoded, 0) == (Confirmation(tag, multiple), channel, len(encoded))


@given(names, tags, channels, st.booleans(), metadata, st.binary(min_size=1), st.binary())
def test_a_delivery_is_read_wherever_it_stands(
    consumer: str,
    tag: int,
    channel: int,
    redelivered: bool,
    properties: BasicProperties,
    body: bytes,
    before: bytes,
) -> None:
    method: Any = spec.Basic.Deliver(consumer, tag, redelivered, "exchange", "key")
    stream = marshal(channel, method, properties, body)
    encoded = b"".join(properties.encode())
    message = frames.Incoming(consumer, tag, redelivered, encoded, body)
    whole = before + stream
    assert frames.read(whole + b"more", len(before)) == (message, channel, len(whole))


@given(tags, channels, metadata, st.binary(min_size=1))
def test_what_was_got_without_a_consumer_is_read(
    tag: int, channel: int, properties: BasicProperties, body: bytes
) -> None:
    method: Any = spec.Basic.GetOk(tag, True, "exchange", "key", 7)
    stream = marshal(channel, method, properties, body)
    encoded = b"".join(properties.encode())
    message = frames.Incoming("", tag, True, encoded, body)
    assert frames.read(stream, 0) == (message, channel, len(stream))


def test_that_there_is_nothing_is_read() -> None:
    method: Any = spec.Basic.GetEmpty()
    stream = frame.Method(7, method).marshal()
    assert frames.read(stream, 0) == (frames.Nothing(), 7, len(stream))
    assert frames.read(stream[:-1], 0) is None


@given(channels, names)
def test_what_is_asked_is_pikas(channel: int, queue: str) -> None:
    (get,) = read_by_pika(frames.get_frame(queue, channel))
    assert (get.channel_number, get.method.queue, get.method.no_ack) == (channel, queue, False)
    (count,) = read_by_pika(frames.count_frame(queue, channel))
    assert (count.channel_number, count.method.queue) == (channel, queue)
    assert count.method.passive


DELIVERY: Any = spec.Basic.Deliver("train", 1, False, "exchange", "key")


def test_what_has_not_arrived_whole_is_left_alone() -> None:
    stream = marshal(1, DELIVERY, BasicProperties(priority=4), b"{}")
    assert frames.read(stream, 0) is not None
    assert {frames.read(stream[:end], 0) for end in range(len(stream))} == {None}
    ack = frames.ack_frame(1, True, 1)
    assert {frames.read(ack[:end], 0) for end in range(len(ack))} == {None}


def of_several_frames() -> bytes:
    method, header = frame.Method(1, DELIVERY), frame.Header(1, 4, BasicProperties())
    bodies = [frame.Body(1, b"{ "), frame.Body(1, b" }")]
    return b"".join(each.marshal() for each in (method, header, *bodies))


def of_two_channels(odd: int) -> bytes:
    """As they may lie when two channels deliver at once."""
    parts = [
        frame.Method(1, DELIVERY),
        frame.Header(1, 2, BasicProperties()),
        frame.Body(1, b"{}"),
    ]
    parts[odd].channel_number = 2
    return b"".join(each.marshal() for each in parts)


@pytest.mark.parametrize(
    "stream",
    [
        marshal(1, DELIVERY, BasicProperties(), b""),
        of_several_frames(),
        of_two_channels(1),
        of_two_channels(2),
        frame.Heartbeat().marshal(),
        frame.Header(1, 2, BasicProperties()).marshal(),
        frame.Method(1, spec.Basic.Nack(1)).marshal(),
        marshal(1, spec.Basic.Return(312, "NO_ROUTE", "", ""), BasicProperties(), b"{}"),
        b"HTTP/1.1 400 Bad Request",
    ],
    ids=[
        "empty body",
        "several frames",
        "another's header",
        "another's body",
        "heartbeat",
        "header",
        "nack",
        "return",
        "no AMQP",
    ],
)
def test_everything_else_is_left_to_pika(stream: bytes) -> None:
    assert frames.read(stream, 0) is None
