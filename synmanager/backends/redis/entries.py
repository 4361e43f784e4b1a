"""Stream entries as messages, and back.

A message is the fields ``body``, ``id``, ``submitted_at``, ``schema``; its rank is that of the
stream it lies in. ``attempts`` counts the deliveries of an earlier entry of the same message.
Whoever knows none of this may add an entry with a ``body`` alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from synmanager.backends.base import DeadLetter
from synmanager.message import Message, Rank

__all__ = ["Parsed", "dead_letter", "parse", "write"]

_RANK_NAMES = {rank: rank.name.lower() for rank in Rank}
_RANKS = {name.encode(): rank for rank, name in _RANK_NAMES.items()}

#: A message, the deliveries of its earlier entries, and what is wrong with the fields, if so.
Parsed = tuple[Message, int, "str | None"]


def write(message: Message) -> tuple[str | bytes, ...]:
    """What ``publish.lua`` takes for one message."""
    at = message.submitted_at
    return (
        message.id,
        _RANK_NAMES[message.rank],
        "" if at is None else repr(at),
        str(message.schema),
        message.body,
    )


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
        attempts = _whole(fields.get(b"attempts", b"0"))
    except ValueError:
        problems.append("its count of attempts is not a number")
    message = Message(
        body,
        message_id or _foreign_id(queue, rank, entry),
        _RANKS.get(rank, Rank.NORMAL),
        submitted_at,
        schema,
    )
    return message, attempts, "; ".join(problems) or None


def dead_letter(queue: str, entry: bytes, raw: Sequence[bytes]) -> DeadLetter:
    """Read what ``bury.lua`` wrote: five pairs of its own, then the entry's fields."""
    own, rest = raw[:10], raw[10:]
    if own[::2] != [b"rank", b"id", b"reason", b"attempts", b"died_at"]:
        # Somebody else's entry: its age is at least in its own id.
        message, _, _ = parse(queue, b"", entry, raw)
        return DeadLetter(message, queue, "", 0, int(entry.partition(b"-")[0]) / 1000)
    rank, message_id, reason, attempts, died_at = own[1::2]
    message, _, _ = parse(queue, rank, entry, [*rest, b"id", message_id])
    return DeadLetter(
        message, queue, reason.decode("utf-8", "replace"), int(attempts), int(died_at) / 1000
    )


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
