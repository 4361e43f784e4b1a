"""What travels beside a body: AMQP properties and headers.

A message of this project has a message id, a priority that stands for its rank, and some of these
headers; whoever knows none of them may publish a body alone. A new job has one of them and no other
property: each costs the broker time, several together as much as the job's own body.

==============================  ==================================================================
``x-synmanager-submitted-at``   microseconds since the epoch; AMQP's timestamp knows only seconds
``x-synmanager-schema``         version of all this, if it is not the one that began with the header
                                above
``x-synmanager-attempts``       deliveries so far that came to nothing, crashes included
``x-synmanager-queue``          of a dead letter: where it was taken from
``x-synmanager-reason``         of a dead letter: why
``x-synmanager-died-at``        of a dead letter: microseconds since the epoch
==============================  ==================================================================
"""

from __future__ import annotations

import copy
import struct
import time
from collections.abc import Mapping
from struct import Struct, pack
from typing import Any, NamedTuple

from pika.data import encode_table
from pika.spec import BasicProperties

from synmanager.backends.base import DeadLetter
from synmanager.backends.rabbitmq.frames import Content
from synmanager.message import Message, Rank, new_id

__all__ = [
    "MAX_PRIORITY",
    "Metadata",
    "again",
    "dead",
    "dead_letter",
    "delayed",
    "fresh",
    "is_counted",
    "onward",
    "parse",
    "read",
]

#: ``x-max-priority`` of the queues that this project and its image create.
MAX_PRIORITY = 9

#: Right on queues of every kind: classic ones, and quorum queues of 4.0 and of 4.3, whose
#: messages without a priority count as 4. One more puts a message at the head of its rank.
_PRIORITIES = {Rank.LOW: 1, Rank.NORMAL: 4, Rank.HIGH: 8}

_SCHEMA = "x-synmanager-schema"
_SUBMITTED_AT = "x-synmanager-submitted-at"
_ATTEMPTS = "x-synmanager-attempts"
_QUEUE = "x-synmanager-queue"
_REASON = "x-synmanager-reason"
_DIED_AT = "x-synmanager-died-at"

#: What quorum queues count by themselves.
_DELIVERY_COUNT = "x-delivery-count"

#: Bytes. All headers of a message share one frame, of 128 KiB by default.
_LONGEST_REASON = 16_384
_MOST_PROPERTIES = 65_536

_PERSISTENT = 2

#: The schema of a message with a time of submission, and without a header that says another.
_FIRST_SCHEMA = 1


class Metadata(NamedTuple):
    """What the properties say.

    Attributes:
        attempts: deliveries before this one that came to nothing, as far as they are counted.
        defect: what is wrong with the properties, if something is.
    """

    message: Message
    attempts: int
    defect: str | None


def fresh(message: Message) -> Content:
    """A new message. This is what happens most, so it is not left to pika's encoder."""
    if message.submitted_at is None or message.schema != _FIRST_SCHEMA:
        return _encode(_new_properties(message), message.body)
    message_id = message.id.encode()
    fields = _FIELDS.pack(
        _micro(message.submitted_at), _PERSISTENT, _PRIORITIES[message.rank], len(message_id)
    )
    return Content(b"".join((_BEFORE_FIELDS, fields, message_id)), message.body)


def delayed(message: Message, headers: Mapping[str, Any]) -> Content:
    """A new message with headers for its way."""
    properties = _new_properties(message)
    properties.headers = {**(properties.headers or {}), **headers}
    return _encode(properties, message.body)


def again(
    original: BasicProperties,
    message: Message,
    attempts: int,
    headers: Mapping[str, Any] | None = None,
    *,
    head: bool = False,
) -> Content:
    """A copy of a message that was delivered, to be delivered once more.

    Args:
        head: before those of its rank, where the queue has priorities.
    """
    properties = _copy(original, message)
    properties.priority = _PRIORITIES[message.rank] + head
    properties.headers = {**_own(properties), _ATTEMPTS: attempts, **(headers or {})}
    return _encode(properties, message.body)


def onward(original: BasicProperties, body: bytes) -> Content:
    """A message as it came, but for what the broker wrote on it."""
    properties = copy.copy(original)
    properties.headers = {
        name: value
        for name, value in _named(original.headers).items()
        if name.startswith("x-synmanager-") or not name.startswith("x-")
    }
    return _encode(properties, body)


def dead(
    original: BasicProperties, message: Message, queue: str, attempts: int, reason: str
) -> Content:
    """A copy of a message as a dead letter."""
    properties = _copy(original, message)
    properties.priority = _PRIORITIES[message.rank]
    short = reason.encode("utf-8", "backslashreplace")[:_LONGEST_REASON]
    properties.headers = {
        **_own(properties),
        _ATTEMPTS: attempts,
        _QUEUE: queue,
        _REASON: short.decode("utf-8", "ignore"),
        _DIED_AT: _micro(time.time()),
    }
    return _encode(properties, message.body)


def parse(encoded: bytes) -> BasicProperties:
    """Decode properties that anybody may have sent."""
    properties = BasicProperties()
    try:
        properties.decode(encoded)
    except Exception as error:  # pika names no errors here
        properties = BasicProperties()
        properties.unreadable = f"{type(error).__name__}: {error}"
    return properties


def read(
    properties: BasicProperties | bytes, body: bytes, message_id: str | None = None
) -> Metadata:
    """Read the properties of a message that may have come from anyone.

    Args:
        properties: may still be encoded; those of a new message need not be decoded for this.
        message_id: for a message without one; by default a new one.
    """
    if isinstance(properties, bytes):
        metadata = _read_fresh(properties, body)
        if metadata is not None:
            return metadata
        properties = parse(properties)
    numbers = {_SCHEMA: None, _SUBMITTED_AT: None, _ATTEMPTS: 0, _DELIVERY_COUNT: 0}
    problems = []
    if unreadable := getattr(properties, "unreadable", None):
        problems.append(f"its properties cannot be read ({unreadable})")
    for name, value in (properties.headers or {}).items():
        if name in numbers:
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                numbers[name] = value
            else:
                problems.append(f"its header {name} is {value!r:.50}")
    schema, submitted_at, failed, counted = numbers.values()
    if schema is None:
        schema = 0 if submitted_at is None else _FIRST_SCHEMA
    message = Message(
        body,
        properties.message_id or message_id or new_id(),
        _rank(properties.priority),
        submitted_at if submitted_at is None else submitted_at / 1e6,
        schema,
    )
    return Metadata(message, (failed or 0) + (counted or 0), "; ".join(problems) or None)


def _read_fresh(encoded: bytes, body: bytes) -> Metadata | None:
    """Read what :func:`fresh` wrote; None if it is something else."""
    if not encoded.startswith(_BEFORE_FIELDS):
        return None
    try:
        micro, _, priority, length = _FIELDS.unpack_from(encoded, len(_BEFORE_FIELDS))
        start = len(_BEFORE_FIELDS) + _FIELDS.size
        message_id = encoded[start : start + length].decode()
    except (struct.error, UnicodeDecodeError):
        return None
    if micro < 0 or not message_id:
        return None
    message = Message(body, message_id, _rank(priority), micro / 1e6, _FIRST_SCHEMA)
    return Metadata(message, 0, None)


def is_counted(properties: BasicProperties) -> bool:
    """Whether the broker itself counts deliveries that come to nothing, as quorum queues do."""
    return _DELIVERY_COUNT in (properties.headers or {})


def dead_letter(queue: str, properties: BasicProperties, body: bytes) -> DeadLetter:
    """Read what :func:`dead` wrote, or what somebody else put there."""
    headers = properties.headers or {}
    reason, died_at = headers.get(_REASON, ""), headers.get(_DIED_AT)
    if not isinstance(died_at, int):
        died_at = _micro(properties.timestamp or 0)
    metadata = read(properties, body)
    return DeadLetter(metadata.message, queue, str(reason), metadata.attempts, died_at / 1e6)


def _rank(priority: int | None) -> Rank:
    if priority is None:
        return Rank.NORMAL
    return Rank.LOW if priority <= 2 else Rank.NORMAL if priority <= 6 else Rank.HIGH


def _new_properties(message: Message) -> BasicProperties:
    headers: dict[str, Any] = {}
    if message.submitted_at is not None:
        headers[_SUBMITTED_AT] = _micro(message.submitted_at)
    if message.schema != (_FIRST_SCHEMA if headers else 0):
        headers[_SCHEMA] = message.schema
    return BasicProperties(
        headers=headers,
        delivery_mode=_PERSISTENT,
        priority=_PRIORITIES[message.rank],
        message_id=message.id,
    )


def _copy(original: BasicProperties, message: Message) -> BasicProperties:
    properties = copy.copy(original)
    properties.message_id = message.id
    properties.delivery_mode = _PERSISTENT
    properties.expiration = None  # of its first wait, if it had one
    properties.user_id = None  # the broker takes nobody's but our own
    properties.headers = _named(properties.headers)
    try:
        fits = len(_encode(properties, b"").properties) <= _MOST_PROPERTIES  # a frame, with ours
    except Exception:  # pika reads more than it can write: large floats, for one
        fits = False
    return properties if fits else _new_properties(message)


def _own(properties: BasicProperties) -> dict[str, Any]:
    """The headers that its producer set: not the broker's, nor those of an earlier way."""
    return {
        name: value
        for name, value in _named(properties.headers).items()
        if name in (_SCHEMA, _SUBMITTED_AT) or not name.startswith(("x-", "synmanager-"))
    }


def _named(headers: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The headers whose names are text; pika leaves others as bytes."""
    return {name: value for name, value in (headers or {}).items() if isinstance(name, str)}


def _encode(properties: BasicProperties, body: bytes) -> Content:
    return Content(b"".join(properties.encode()), body)


def _micro(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _before_fields() -> bytes:
    """What a new message begins with: flags, and its header but for the value."""
    flags = (
        BasicProperties.FLAG_HEADERS
        | BasicProperties.FLAG_DELIVERY_MODE
        | BasicProperties.FLAG_PRIORITY
        | BasicProperties.FLAG_MESSAGE_ID
    )
    pieces = [pack(">H", flags)]
    encode_table(pieces, {_SUBMITTED_AT: 1 << 62})  # so large that it takes eight bytes
    return b"".join(pieces)[:-8]


_BEFORE_FIELDS = _before_fields()

#: The time of submission, delivery mode, priority, and the length of the message id.
_FIELDS = Struct(">qBBB")
