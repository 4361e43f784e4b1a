"""Frames that are written without pika, beside pika's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec

from synmanager.backends.rabbitmq.frames import Content, Publication

FRAME_MAX = 4096

channels = st.integers(1, 65_535)


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
