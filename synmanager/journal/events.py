"""The entries of the journal: events in CloudEvents' JSON form. ``docs/journal.md`` lists them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import count, islice
from typing import Any

__all__ = [
    "CHECKPOINTS",
    "EVENTS",
    "MARKS",
    "PLACES",
    "PREFIX",
    "SIGN",
    "SWEEP",
    "SWEEPS",
    "Event",
    "chunks",
    "micro",
    "plain",
    "read",
    "source",
    "together",
    "write",
]

logger = logging.getLogger(__name__)

#: The logs: what observers read, what is asked of workers, what ``job.save`` keeps, up to where
#: Archivers have told of failures, and which sweeps have begun.
EVENTS, MARKS, CHECKPOINTS, PLACES, SWEEPS = "events", "marks", "checkpoints", "places", "sweeps"

#: What the types of all events begin with.
PREFIX = "synmanager."

#: The header of a job that belongs to a sweep: its name.
SWEEP = "sweep"

#: Ids in one event. At 200 bytes each, the longest that there are, an entry has room for all.
_IDS = 500

#: Seconds after which a worker that waits says so again: one entry, so that it can be told from
#: one that was killed.
SIGN = 600.0

#: Events in one entry, and bytes of one of several, at most.
_EVENTS, _ENTRY = 100, 64 * 1024

#: Characters of a text, and number of figures, that are kept of what a job says of itself.
_TEXT, _FIGURES = 500, 50

_numbers = count(1)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=repr).encode


@dataclass(eq=False)
class Event:
    """One event, read or to be written.

    Attributes:
        type: without the prefix, such as ``job.started``.
        source: who says it: a worker, or a submitter.
        time: seconds since the epoch, by its clock.
        subject: ``phase/id`` for a job; else what it is about.
        data: everything else.
        is_progress: it may be left out when there is too much to say.
        is_withdrawn: it need not be written any more, as a later one says it too.
        whole: the CloudEvent that it was read from.
        more: what else belongs into the data, made when it is written, as that takes a while.
    """

    type: str
    source: str
    time: float
    subject: str
    data: Mapping[str, Any]
    is_progress: bool = False
    is_withdrawn: bool = False
    whole: Mapping[str, Any] = field(default_factory=dict)
    more: Callable[[], Mapping[str, Any]] | None = None


def source(name: str) -> str:
    """Who speaks: host, process, and what or which connection of it."""
    return f"{os.uname().nodename}/{os.getpid()}/{name}"


def write(event: Event) -> bytes:
    """An event as an entry."""
    return _encode(_form(event)).encode()


def _form(event: Event) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        # With the source it is unique: a fork has another process number.
        "id": f"{os.getpid():x}-{next(_numbers):x}",
        "source": event.source,
        "type": PREFIX + event.type,
        "time": datetime.fromtimestamp(event.time, timezone.utc).isoformat(),
        "subject": event.subject,
        "data": event.data if event.more is None else {**event.data, **event.more()},
    }


def together(events: Sequence[Event]) -> Iterator[bytes]:
    """Events as entries of many each: what an entry costs a broker hardly grows with it."""
    for begin in range(0, len(events), _EVENTS):
        yield from _entries(events[begin : begin + _EVENTS])


def _entries(events: Sequence[Event]) -> Iterator[bytes]:
    try:
        each = list(map(_form, events))
        data = _encode(each[0] if len(each) == 1 else each).encode()
    except Exception:  # of what a callback said of itself
        if len(events) == 1:
            logger.debug("an event cannot be written", exc_info=True)
            return
        data = b""
    if data and (len(data) <= _ENTRY or len(events) == 1):
        yield data
    else:
        half = len(events) // 2
        yield from _entries(events[:half])
        yield from _entries(events[half:])


def read(data: bytes) -> list[Event]:
    """The events of an entry, without what is nothing of ours, or of a later version's."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return []  # anybody may write into a log
    each = map(_event, found if isinstance(found, list) else [found])
    return [event for event in each if event is not None]


def _event(found: Any) -> Event | None:
    try:
        kind, content = found["type"], found["data"]
        if not kind.startswith(PREFIX) or not isinstance(content, dict):
            return None
        return Event(
            kind[len(PREFIX) :],
            str(found["source"]),
            datetime.fromisoformat(found["time"]).timestamp(),
            str(found.get("subject", "")),
            content,
            whole=found,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def micro(seconds: float | None) -> int:
    """A time of submission, as precisely as every broker keeps it; 0 for none."""
    return round((seconds or 0.0) * 1_000_000)


def chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    """Ids in portions that fit into an event."""
    for begin in range(0, len(ids), _IDS):
        yield list(ids[begin : begin + _IDS])


def plain(figures: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What a callback says of itself, as JSON can write it: it may be anything."""
    return {str(name)[:_TEXT]: _plain(value) for name, value in islice(figures, _FIGURES)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    try:
        if type(value) is int and abs(value) < 2**53:
            return value
        if hasattr(type(value), "__float__"):  # numpy's as well
            number = float(value)
            return number if math.isfinite(number) else str(number)
        return str(value)[:_TEXT]
    except Exception:
        return f"({type(value).__name__})"
