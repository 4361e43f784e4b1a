"""What travels beside a body: AMQP properties and headers.

A message of this project has a message id, a priority that stands for its rank, and some of these
headers; whoever knows none of them may publish a body alone. A new job has one of them and no other
property: each costs the broker time, several together as much as the job's own body.

==============================  ==================================================================
``x-synmanager-submitted-at``   microseconds since the epoch; AMQP's timestamp knows only seconds
``x-synmanager-schema``         version of all this, if it is not the one that began with the header
                                above
``x-synmanager-header-<name>``  one of the message's own headers, as text
``x-synmanager-attempts``       deliveries so far that came to nothing, crashes included
``x-synmanager-copy``           of a message that takes another's place: what no other copy has
``x-synmanager-not-before``     of one whose holder was lost: microseconds since the epoch, before
                                which nobody begins it
``x-synmanager-queue``          of a dead letter: where it was taken from
``x-synmanager-rank``           of a dead letter: its job's rank. All letters have one priority: a
                                quorum queue would put some before older ones
``x-synmanager-reason``         of a dead letter: why
``x-synmanager-traceback``      of a dead letter: the end of it, if an exception was the reason
``x-synmanager-died-at``        of a dead letter: microseconds since the epoch
``x-synmanager-recorded-at``    of an entry of the journal: microseconds since the epoch
``x-synmanager-blank``          of an entry that says nothing, and only makes the journal longer
==============================  ==================================================================
"""

from __future__ import annotations

import copy
import reprlib
import struct
import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from struct import Struct, pack
from typing import Any, NamedTuple, TypeGuard

from pika.data import encode_table
from pika.exceptions import AMQPError
from pika.spec import BasicProperties

from synmanager.backends.base import DeadLetter
from synmanager.backends.rabbitmq.frames import Content
from synmanager.errors import InvalidJob
from synmanager.message import Message, Rank, new_id

__all__ = [
    "MAX_PRIORITY",
    "Metadata",
    "again",
    "begins_at",
    "dead",
    "dead_letter",
    "delayed",
    "entry",
    "fresh",
    "identity",
    "is_worn",
    "kept",
    "not_before",
    "onward",
    "parse",
    "read",
    "recorded_at",
    "uncounted",
]

#: ``x-max-priority`` of the queues that this project and its image create.
MAX_PRIORITY = 9

#: Right on queues of every kind: classic ones, and quorum queues of 4.0 and of 4.3, whose
#: messages without a priority count as 4. One more puts a message at the head of its rank.
_PRIORITIES = {Rank.LOW: 1, Rank.NORMAL: 4, Rank.HIGH: 8}

_SCHEMA = "x-synmanager-schema"
_SUBMITTED_AT = "x-synmanager-submitted-at"
_ATTEMPTS = "x-synmanager-attempts"
_COPY = "x-synmanager-copy"
_NOT_BEFORE = "x-synmanager-not-before"
_QUEUE = "x-synmanager-queue"
_RANK = "x-synmanager-rank"
_REASON = "x-synmanager-reason"
_TRACEBACK = "x-synmanager-traceback"
_DIED_AT = "x-synmanager-died-at"
_HEADER = "x-synmanager-header-"
_RECORDED_AT = "x-synmanager-recorded-at"
_BLANK = "x-synmanager-blank"

#: What quorum queues count by themselves.
_DELIVERY_COUNT = "x-delivery-count"
_ACQUIRED_COUNT = "x-acquired-count"

#: Headers that make the broker send copies elsewhere.
_ROUTING = ("CC", "BCC")

#: A pseudo-queue, which only its owner's channel may name.
_DIRECT_REPLY = "amq.rabbitmq.reply-to"

#: Bytes.
_LONGEST_ID = 255

#: Bytes. All headers of a message share one frame, of 128 KiB by default.
_LONGEST_REASON = 16_384
_LONGEST_TRACEBACK = 32_768
_MOST_HEADERS = 32_768
_MOST_PROPERTIES = 65_536

#: A count that is more says no more, and one more of it can still be written.
_MOST_ATTEMPTS = 1_000_000_000

#: Microseconds from the epoch to the end of the year 9999, after which there are no dates.
_END_OF_TIME = 253_402_300_799_999_999

_LARGEST = {_SUBMITTED_AT: _END_OF_TIME, _SCHEMA: 1_000_000}

#: What pika and struct raise for what they cannot write.
_UNWRITABLE = (AMQPError, struct.error, ValueError, OverflowError, TypeError)

_PERSISTENT = 2

#: The schema of a message with a time of submission, and without a header that says another.
_FIRST_SCHEMA = 1


class Metadata(NamedTuple):
    """What the properties say.

    Attributes:
        attempts: deliveries before this one that came to nothing, as far as we counted them.
        defect: what is wrong with the properties, if something is.
    """

    message: Message
    attempts: int
    defect: str | None


def fresh(message: Message) -> Content:
    """A new message. This is what happens most, so it is not left to pika's encoder.

    Raises:
        InvalidJob: AMQP cannot carry its id, its headers or its time.
    """
    if message.submitted_at is None or message.schema != _FIRST_SCHEMA:
        return delayed(message, {})
    try:
        message_id = _id(message)
        size, before = _before_fields(tuple(message.headers.items()))
        fields = _FIELDS.pack(
            _micro(message.submitted_at), _PERSISTENT, _PRIORITIES[message.rank], len(message_id)
        )
    except _UNWRITABLE as error:
        raise _not_written(message, error) from error
    _check_size(message, size)
    return Content(b"".join((before, fields, message_id)), message.body)


def delayed(message: Message, headers: Mapping[str, Any]) -> Content:
    """A new message with headers for its way.

    Raises:
        InvalidJob: see :func:`fresh`.
    """
    _check_size(message, _size(message.headers))
    try:
        _id(message)
        properties = _new_properties(message)
        properties.headers = {**(properties.headers or {}), **headers}
        return _encode(properties, message.body)
    except _UNWRITABLE as error:
        raise _not_written(message, error) from error


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
    properties.headers = {
        **_own(properties),
        **_carried(message.headers),
        _ATTEMPTS: min(attempts, _MOST_ATTEMPTS),
        _COPY: new_id(),
        **(headers or {}),
    }
    return _encode(properties, message.body)


def onward(original: BasicProperties, body: bytes, headers: Mapping[str, Any]) -> Content:
    """A message as it came, but for what the broker wrote on it, with headers for its way."""
    properties = _inert(original)
    properties.headers = {
        **{
            name: value
            for name, value in _named(properties.headers).items()
            if name.startswith("x-synmanager-") or not name.startswith(("x-", "synmanager-"))
        },
        **headers,
    }
    try:
        return _encode(properties, body)
    except Exception:  # pika reads more than it can write
        return delayed(read(original, body).message, headers)


def kept(original: BasicProperties, letter: DeadLetter) -> Content:
    """A dead letter as it came, to take the place of itself; its deliveries count anew."""
    properties = _inert(original)
    properties.headers = {
        name: value
        for name, value in _named(properties.headers).items()
        if name not in (_DELIVERY_COUNT, _ACQUIRED_COUNT)
    }
    try:
        return _encode(properties, letter.message.body)
    except Exception:  # pika reads more than it can write
        return dead(
            original, letter.message, letter.queue, letter.attempts, letter.reason, letter.traceback
        )


def dead(
    original: BasicProperties,
    message: Message,
    queue: str,
    attempts: int,
    reason: str,
    traceback: str = "",
    died_at: float | None = None,
) -> Content:
    """A copy of a message as a dead letter, which died now unless it is said when."""
    properties = _copy(original, message)
    properties.priority = _PRIORITIES[Rank.NORMAL]
    properties.headers = {
        **_own(properties),
        **_carried(message.headers),
        _ATTEMPTS: min(attempts, _MOST_ATTEMPTS),
        _QUEUE: queue,
        _RANK: _PRIORITIES[message.rank],
        _REASON: _utf8(reason)[:_LONGEST_REASON].decode("utf-8", "ignore"),
        _DIED_AT: max(0, _micro(time.time() if died_at is None else died_at)),
    }
    if traceback:
        end = _utf8(traceback)[-_LONGEST_TRACEBACK:]
        properties.headers[_TRACEBACK] = end.decode("utf-8", "ignore")
    return _encode(properties, message.body)


def added(letter: DeadLetter) -> Content:
    """A dead letter that was none of this broker's.

    Raises:
        InvalidJob: see :func:`fresh`.
    """
    message = letter.message
    try:
        _id(message)
        return dead(
            _new_properties(message), message, letter.queue, letter.attempts, letter.reason,
            letter.traceback, letter.died_at,
        )  # fmt: skip
    except _UNWRITABLE as error:
        raise _not_written(message, error) from error


def parse(encoded: bytes) -> BasicProperties:
    """Decode properties that anybody may have sent."""
    properties = BasicProperties()
    try:
        properties.decode(encoded)
    except Exception as error:  # pika names no errors here
        properties = BasicProperties()
        properties.unreadable = f"{type(error).__name__}: {error}"
    return properties


def read(properties: BasicProperties, body: bytes, message_id: str | None = None) -> Metadata:
    """Read the properties of a message that may have come from anyone.

    Args:
        message_id: for a message without one; by default a new one.
    """
    numbers: dict[str, int | None] = dict.fromkeys((_SCHEMA, _SUBMITTED_AT, _ATTEMPTS))
    headers: dict[str, str] = {}
    problems = []
    if unreadable := getattr(properties, "unreadable", None):
        problems.append(f"its properties cannot be read ({unreadable})")
    for name, value in _named(properties.headers).items():
        if name in numbers or name == _DELIVERY_COUNT:
            if _is_count(value) and value <= _LARGEST.get(name, value):
                numbers[name] = value
            else:
                problems.append(f"its header {name} is {_short(value)}")
        elif name.startswith(_HEADER):
            if isinstance(value, str):
                headers[name.removeprefix(_HEADER)] = value
            else:
                problems.append(f"its header {name} is {_short(value)}")
    if _size(headers) > _MOST_HEADERS:
        problems.append(f"its headers are {_size(headers):,} bytes")
        headers = {}
    known = properties.message_id
    if isinstance(known, bytes):  # so pika gives what is no UTF-8
        problems.append("its message id is no text")
        known = None
    schema, submitted_at = numbers[_SCHEMA], numbers[_SUBMITTED_AT]
    if schema is None:
        schema = 0 if submitted_at is None else _FIRST_SCHEMA
    message = Message(
        body,
        known or message_id or new_id(),
        _rank(_priority(properties)),
        submitted_at if submitted_at is None else submitted_at / 1e6,
        schema,
        headers,
    )
    attempts = min(numbers[_ATTEMPTS] or 0, _MOST_ATTEMPTS)
    return Metadata(message, attempts, "; ".join(problems) or None)


def identity(properties: BasicProperties, body: bytes) -> bytes | None:
    """What tells a message from every other one, also from copies of it; None if nothing does."""
    headers = properties.headers or {}
    mark = headers.get(_COPY) or (properties.message_id and headers.get(_SUBMITTED_AT))
    if not mark:
        return None
    return sha256(repr((properties.message_id, mark)).encode() + body).digest()


def uncounted(properties: BasicProperties) -> int:
    """How many deliveries of a redelivered message came to nothing since we counted them.

    A classic queue only flags it. A quorum queue says how many, and throws the message away when
    they are too many. From RabbitMQ 4.3 on, it counts no delivery that was only given back, or that
    crossed with the end of its consumer.
    """
    headers = properties.headers or {}
    counted = headers.get(_DELIVERY_COUNT)
    least = 0 if _ACQUIRED_COUNT in headers else 1
    return max(least, min(counted, _MOST_ATTEMPTS)) if _is_count(counted) else least


def not_before(moment: float) -> dict[str, Any]:
    """Headers of a copy that nobody is to begin before a moment, in seconds since the epoch."""
    return {_NOT_BEFORE: _micro(moment)}


def begins_at(properties: BasicProperties) -> float:
    """That moment; 0 where there is none."""
    moment = (properties.headers or {}).get(_NOT_BEFORE)
    return moment / 1e6 if _is_count(moment) else 0.0


def is_worn(properties: BasicProperties) -> bool:
    """Whether a quorum queue has counted a delivery, of which it allows so many."""
    return _DELIVERY_COUNT in (properties.headers or {})


def dead_letter(queue: str, properties: BasicProperties, body: bytes) -> DeadLetter:
    """Read what :func:`dead` wrote, or what somebody else put there."""
    headers = properties.headers or {}
    reason, traceback = (
        text if isinstance(text := headers.get(name), str) else "" for name in (_REASON, _TRACEBACK)
    )
    died_at = headers.get(_DIED_AT)
    if not _is_count(died_at) or died_at > _END_OF_TIME:
        died_at = min(_micro(properties.timestamp or 0), _END_OF_TIME)
    message, attempts, _ = read(properties, body)
    return DeadLetter(message, queue, reason, attempts, died_at / 1e6, traceback)


def _priority(properties: BasicProperties) -> int | None:
    """A message's own, or that of the job which a dead letter was."""
    kept = (properties.headers or {}).get(_RANK)
    return kept if _is_count(kept) else properties.priority


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
        headers={**headers, **_carried(message.headers)},
        delivery_mode=_PERSISTENT,
        priority=_PRIORITIES[message.rank],
        message_id=message.id,
    )


def _copy(original: BasicProperties, message: Message) -> BasicProperties:
    properties = _inert(original)
    properties.message_id = message.id
    try:
        fits = len(_encode(properties, b"").properties) <= _MOST_PROPERTIES  # a frame, with ours
    except Exception:  # pika reads more than it can write: large floats, for one
        fits = False
    return properties if fits else _new_properties(message)


def _inert(original: BasicProperties) -> BasicProperties:
    """A copy without what would make the broker do more than keep it."""
    properties = copy.copy(original)
    properties.delivery_mode = _PERSISTENT
    properties.expiration = None  # of its first wait, if it had one
    properties.user_id = None  # the broker takes nobody's but our own
    if properties.reply_to == _DIRECT_REPLY:
        properties.reply_to = None  # nor a reply to what is not ours
    properties.headers = {
        name: value for name, value in _named(properties.headers).items() if name not in _ROUTING
    }
    return properties


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


def _carried(headers: Mapping[str, str]) -> dict[str, str]:
    """A message's own headers, as the broker's."""
    return {f"{_HEADER}{name}": value for name, value in headers.items()}


def _check_size(message: Message, size: int) -> None:
    if size > _MOST_HEADERS:
        raise InvalidJob(
            f"the headers of job {message.id!a} are {size:,} bytes; "
            f"RabbitMQ carries {_MOST_HEADERS:,} beside a job"
        )


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(_utf8(name)) + len(_utf8(value)) for name, value in headers.items())


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    """What a stranger sent, as an error shows it, however deep or long it is."""
    return reprlib.repr(value)[:50]


def _id(message: Message) -> bytes:
    encoded = message.id.encode()
    if len(encoded) > _LONGEST_ID:
        raise ValueError(f"an id has {_LONGEST_ID} bytes at most")
    return encoded


def _not_written(message: Message, error: Exception) -> InvalidJob:
    return InvalidJob(
        f"RabbitMQ cannot carry the id, time or headers of job {message.id!a}: {error}"
    )


def _encode(properties: BasicProperties, body: bytes) -> Content:
    return Content(b"".join(properties.encode()), body)


def entry() -> bytes:
    """The properties of what is recorded now in the journal, encoded."""
    headers = {_RECORDED_AT: _micro(time.time())}
    return b"".join(BasicProperties(headers=headers, delivery_mode=_PERSISTENT).encode())


def blank() -> bytes:
    """The properties of an entry that no reader hands out, encoded."""
    return b"".join(BasicProperties(headers={_BLANK: True}, delivery_mode=_PERSISTENT).encode())


def is_blank(properties: BasicProperties) -> bool:
    """Whether an entry is one of those."""
    return _BLANK in (properties.headers or {})


def recorded_at(properties: BasicProperties) -> float:
    """When an entry was recorded, in seconds since the epoch."""
    value = (properties.headers or {}).get(_RECORDED_AT)
    if _is_count(value) and value <= _END_OF_TIME:
        return float(value / 1e6)
    return min(float(properties.timestamp or 0), _END_OF_TIME / 1e6)


def _micro(seconds: float) -> int:
    return round(seconds * 1_000_000)


@lru_cache(maxsize=64)
def _before_fields(headers: tuple[tuple[str, str], ...]) -> tuple[int, bytes]:
    """What a new message begins with: flags, and its headers but for the last value.

    The messages of a batch have the same ones, as a rule.

    Returns:
        the size of its own headers; what it begins with.
    """
    flags = (
        BasicProperties.FLAG_HEADERS
        | BasicProperties.FLAG_DELIVERY_MODE
        | BasicProperties.FLAG_PRIORITY
        | BasicProperties.FLAG_MESSAGE_ID
    )
    own = dict(headers)
    pieces = [pack(">H", flags)]
    # So large a time that it takes eight bytes.
    encode_table(pieces, {**_carried(own), _SUBMITTED_AT: 1 << 62})
    return _size(own), b"".join(pieces)[:-8]


#: The time of submission, delivery mode, priority, and the length of the message id.
_FIELDS = Struct(">qBBB")
