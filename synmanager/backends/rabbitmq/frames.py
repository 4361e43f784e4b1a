"""Messages as AMQP frames and back, at the cost of a few lines each.

pika writes and reads every frame by itself, which takes longer than the broker does. What happens
once per message is done here; the rest of the protocol is pika's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from struct import Struct, pack
from typing import Any, NamedTuple

from pika.frame import Method
from pika.spec import (
    FRAME_BODY,
    FRAME_END,
    FRAME_HEADER,
    FRAME_METHOD,
    Basic,
    BasicProperties,
    Queue,
)

__all__ = [
    "Confirmation",
    "Content",
    "Incoming",
    "Nothing",
    "Publication",
    "ack_frame",
    "count_frame",
    "get_frame",
    "read",
]

_END = bytes([FRAME_END])

#: Bytes around the payload of a frame: type, channel, size; and the end.
_FRAMING = 8


class Content(NamedTuple):
    """What is published: properties as they are encoded, and a body."""

    properties: bytes
    body: bytes


class Publication:
    """A batch on its way to one route.

    pika writes the frames of each message anew; in a batch, all but the content is the same.
    """

    def __init__(self, exchange: str, routing_key: str, channel: int) -> None:
        self._channel = channel
        self._publish = _publish_frame(exchange, routing_key, channel)

    def frames(self, content: Content, frame_max: int) -> bytes:
        """The frames of one message, in order."""
        body = content.body
        header = pack(">HxxQ", Basic.INDEX, len(body)) + content.properties
        parts = [self._publish, *self._frame(FRAME_HEADER, header)]
        most = frame_max - _FRAMING
        for start in range(0, len(body), most):
            parts += self._frame(FRAME_BODY, body[start : start + most])
        return b"".join(parts)

    def _frame(self, kind: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
        return pack(">BHI", kind, self._channel, len(payload)), payload, _END


@lru_cache(maxsize=64)
def _publish_frame(exchange: str, routing_key: str, channel: int) -> bytes:
    method: Any = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    return bytes(Method(channel, method).marshal())


@lru_cache(maxsize=64)
def get_frame(queue: str, channel: int) -> bytes:
    """Asks for a message of a queue."""
    method: Any = Basic.Get(queue=queue)
    return bytes(Method(channel, method).marshal())


@lru_cache(maxsize=64)
def count_frame(queue: str, channel: int) -> bytes:
    """Asks how many messages a queue holds."""
    method: Any = Queue.Declare(queue=queue, passive=True)
    return bytes(Method(channel, method).marshal())


def ack_frame(tag: int, multiple: bool, channel: int) -> bytes:
    """Settles a delivery, or all up to it."""
    return _ACK.pack(
        FRAME_METHOD, channel, _ACK.size - _FRAMING, Basic.Ack.INDEX, tag, multiple, FRAME_END
    )


class Incoming(NamedTuple):
    """A message that the broker has handed out.

    Attributes:
        consumer: whose tag it bears; empty for what was got without one.
        tag: its number on its channel.
        redelivered: the broker's flag: it was handed out before.
        properties: as they are encoded; decoded ones if pika has read them.
    """

    consumer: str
    tag: int
    redelivered: bool
    properties: bytes | BasicProperties
    body: bytes


class Confirmation(NamedTuple):
    """The broker has accepted what was published: number ``tag``, or all up to it."""

    tag: int
    multiple: bool


class Nothing(NamedTuple):
    """The queue that was asked for a message has none."""


def read(data: bytes, start: int) -> tuple[Incoming | Confirmation | Nothing, int, int] | None:
    """Read what begins at ``start``: a message, a confirmation, or that there is nothing.

    Returns:
        it, its channel, and where it ends; None for anything else, for what has not arrived
        whole, and for a message whose body is empty or of several frames.
    """
    try:
        kind, channel, size, index = _METHOD.unpack_from(data, start)
        if kind != FRAME_METHOD:
            return None
        if index == Basic.Ack.INDEX:
            *_, tag, multiple, _ = _ACK.unpack_from(data, start)
            return Confirmation(tag, multiple), channel, start + _ACK.size
        if index == Basic.GetEmpty.INDEX and data[start + size + _FRAMING - 1] == FRAME_END:
            return Nothing(), channel, start + size + _FRAMING
        if index in _HANDED_OUT:
            return _read_message(data, start, channel, size, index)
    except (struct.error, IndexError):
        pass  # the rest is still to come
    return None


def _read_message(
    data: bytes, start: int, channel: int, size: int, index: int
) -> tuple[Incoming, int, int] | None:
    header = start + size + _FRAMING
    *of_header, header_size, body_size = _HEADER.unpack_from(data, header)
    body = header + header_size + _FRAMING
    *of_body, length = _FRAME.unpack_from(data, body)
    end = body + length + _FRAMING
    if (
        of_header != [FRAME_HEADER, channel]
        or of_body != [FRAME_BODY, channel]
        or length != body_size
        or data[end - 1] != FRAME_END
    ):
        return None
    at, consumer = start + _METHOD.size, ""
    if index == Basic.Deliver.INDEX:
        at += 1 + data[at]
        consumer = data[start + _METHOD.size + 1 : at].decode()
    tag, redelivered = _HANDED.unpack_from(data, at)
    message = Incoming(
        consumer,
        tag,
        redelivered,
        data[header + _HEADER.size : body - 1],
        data[body + _FRAME.size : end - 1],
    )
    return message, channel, end


_ACK = Struct(">BHIIQ?B")
_FRAME = Struct(">BHI")
_METHOD = Struct(">BHII")
_HEADER = Struct(">BHI4xQ")
_HANDED = Struct(">Q?")
_HANDED_OUT = (Basic.Deliver.INDEX, Basic.GetOk.INDEX)
