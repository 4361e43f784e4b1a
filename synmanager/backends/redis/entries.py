"""Stream entries as messages, and back.

A message is the fields ``body``, ``id``, ``submitted_at``, ``schema``, and ``headers`` if it has
any, as a JSON object; its rank is that of the stream it lies in. ``attempts`` counts the deliveries
of an earlier entry of the same message.
Whoever knows none of this may add an entry with a ``body`` alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from synmanager.backends.base import DeadLetter, Delayed, Entry
from synmanager.errors import InvalidJob
from synmanager.message import RANK_NAMES, Message, Rank, header_texts

__all__ = ["Parsed", "dead_letter", "delayed", "log_entry", "parse", "write", "write_letter"]

_RANKS = {name.encode(): Rank(number) for number, name in enumerate(RANK_NAMES)}

#: The fields that a dead letter begins with.
_OWN = (b"rank", b"id", b"reason", b"attempts", b"died_at", b"traceback")

#: No job is tried more often.
_MOST = 1_000_000_000

#: A message, the deliveries of its earlier entries, and what is wrong with the fields, if so.
Parsed = tuple[Message, int, "str | None"]


def write(messages: Sequence[Message]) -> list[str | bytes]:
    """What ``publish.lua`` takes for some messages: six arguments each.

    Raises:
        InvalidJob: an id is no text that can be written.
    """
    arguments: list[str | bytes] = []
    for message, headers in zip(messages, header_texts(messages), strict=True):
        at = message.submitted_at
        try:
            message_id = message.id.encode()
        except UnicodeEncodeError:
            raise InvalidJob(
                "the job's id holds a lone surrogate, which cannot be written"
            ) from None
        arguments += (
            message_id,
            RANK_NAMES[message.rank],
            "" if at is None else repr(at),
            str(message.schema),
            headers,
            message.body,
        )
    return arguments


def parse(queue: str, rank: bytes, entry: bytes, raw: Sequence[bytes]) -> Parsed:
    """Read the fields of an entry that may have come from anyone."""
    fields = dict(zip(raw[::2], raw[1::2], strict=False))
    problems: list[str] = []
    body = fields.get(b"body")
    if body is None:
        problems.append(f"the entry has no field 'body', but {_names(fields)}")
        body = _dump(fields)
    message_id = ""
    schema, submitted_at, attempts = 0, None, 0
    try:
        message_id = fields.get(b"id", b"").decode()
    except UnicodeDecodeError:
        problems.append("its id is not UTF-8")
    try:
        schema = _whole(fields.get(b"schema", b"0"))
    except ValueError:
        problems.append("its schema is not a number")
    try:
        submitted_at = _time(fields.get(b"submitted_at", b""))
    except ValueError:
        problems.append("its time of submission is not a number")
    try:
        attempts = _count(fields.get(b"attempts", b"0"))
    except ValueError:
        problems.append("its count of attempts is not a number")
    headers: dict[str, str] = {}
    try:
        headers = _headers(fields.get(b"headers", b""))
    except (ValueError, RecursionError):
        problems.append("its headers are not a JSON object of texts")
    message = Message(
        body,
        message_id or _foreign_id(queue, rank, entry),
        _RANKS.get(rank, Rank.NORMAL),
        submitted_at,
        schema,
        headers,
    )
    return message, attempts, "; ".join(problems) or None


def dead_letter(queue: str, entry: bytes, raw: Sequence[bytes]) -> DeadLetter:
    """Read what ``bury.lua`` wrote: six pairs of its own, then the entry's fields."""
    own, rest = raw[:12], raw[12:]
    try:
        if tuple(own[::2]) != _OWN:
            raise ValueError("not our fields")
        rank, message_id, reason, attempts, died_at, traceback = own[1::2]
        counted, died = _count(attempts), _whole(died_at) / 1000
    except (ValueError, OverflowError):
        # Somebody else's entry: its age is at least in its own id.
        message, _, _ = parse(queue, b"", entry, raw)
        return DeadLetter(message, queue, "", 0, int(entry.partition(b"-")[0]) / 1000)
    message, _, _ = parse(queue, rank, entry, [*rest, b"id", message_id])
    why, where = (part.decode("utf-8", "replace") for part in (reason, traceback))
    return DeadLetter(message, queue, why, counted, died, where)


def log_entry(position: bytes, raw: Sequence[bytes]) -> Entry:
    """Read what ``record.lua`` wrote; of a stranger's entry there is nothing to tell."""
    data = dict(zip(raw[::2], raw[1::2], strict=False)).get(b"data", b"")
    return Entry(position.decode(), int(position.partition(b"-")[0]) / 1000, data)


def write_letter(letter: DeadLetter) -> tuple[str | bytes | int, ...]:
    """The fields of a dead letter, as ``bury.lua`` writes them.

    Raises:
        InvalidJob: see :func:`write`.
    """
    message_id, rank, submitted_at, schema, headers, body = write([letter.message])
    why, where = (
        part.encode("utf-8", "backslashreplace") for part in (letter.reason, letter.traceback)
    )
    own = ("rank", rank, "id", message_id, "reason", why, "attempts", letter.attempts)
    died = ("died_at", max(0, round(letter.died_at * 1000)), "traceback", where)
    fields = ("body", body, "id", message_id, "submitted_at", submitted_at, "schema", schema)
    return (*own, *died, *fields, *(("headers", headers) if headers else ()))


def delayed(queue: str, milliseconds: int, entry: bytes, raw: Sequence[bytes]) -> Delayed:
    """Read what ``delayed.lua`` shows."""
    rank = raw[1] if raw[:1] == [b"rank"] else b""
    message, _, _ = parse(queue, rank, entry, raw)
    return Delayed(message, milliseconds / 1000)


def _count(value: bytes) -> int:
    # Of strangers it may be any number, and is added to and written again.
    return min(_whole(value), _MOST)


def _headers(value: bytes) -> dict[str, str]:
    headers = json.loads(value.decode() or "{}")
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise ValueError("not an object of texts")
    return headers


def _whole(value: bytes) -> int:
    number = int(value)
    if number < 0:
        raise ValueError("negative")
    return number


def _time(value: bytes) -> float | None:
    if not value:
        return None
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("not finite")
    return seconds


def _foreign_id(queue: str, rank: bytes, entry: bytes) -> str:
    # Of its place: two foreign messages of one body are two jobs, and one that is delivered
    # again is the same. The queue is in it because ids of results are made of ids of jobs, and
    # two queues may have entries of the same millisecond.
    place = b"/".join((queue.encode(), rank, entry))
    return f"foreign-{hashlib.sha256(place).hexdigest()[:32]}"


def _names(fields: Iterable[bytes]) -> str:
    return ", ".join(repr(name.decode("utf-8", "backslashreplace")) for name in fields)


def _dump(fields: dict[bytes, bytes]) -> bytes:
    text = {
        name.decode("utf-8", "backslashreplace"): value.decode("utf-8", "backslashreplace")
        for name, value in fields.items()
    }
    return json.dumps(text).encode()
