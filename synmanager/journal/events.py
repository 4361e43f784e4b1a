"""The entries of the journal: events in CloudEvents' JSON form. ``docs/journal.md`` lists them."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import count, islice
from typing import Any

from synmanager.errors import TimeLimit
from synmanager.interrupts import is_from_handler
from synmanager.text import shown

__all__ = [
    "CHECKPOINTS",
    "EVENTS",
    "MALFORMED",
    "MARKS",
    "PLACES",
    "PREFIX",
    "SIGN",
    "SWEEP",
    "SWEEPS",
    "Event",
    "attempt_of",
    "chunks",
    "micro",
    "moment",
    "number",
    "plain",
    "read",
    "read_to",
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

#: What has names, or several, and characters of one: no broker lets a job have a longer one. Lists
#: of more are not of ours.
_NAMED = ("id", "ids", "phase", "phases", "tags", "name", "sweep", "queue", "rank", "who", "host",
          "version")  # fmt: skip
_LONGEST_NAME, _MOST_NAMES = 1_000, 1_000

#: What is said in words, and characters of it that are kept.
_SAID, _LONGEST = ("reason", "traceback", "text"), 20_000

#: Seconds since the epoch, of the year 5138: what comes later is no time.
_LATEST = 1e11

#: Attempts, of which no job has more.
_MOST_ATTEMPTS = 1_000_000

#: What an event raises in whoever takes it in, if it is not as those that are written here:
#: anybody may write into a log.
MALFORMED = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip

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
    except MALFORMED:
        return []
    is_long = len(data) > _LONGEST_NAME  # else there is nothing to look for
    each = (_event(one, is_long) for one in (found if isinstance(found, list) else [found]))
    return [event for event in each if event is not None]


def _event(found: Any, is_long: bool) -> Event | None:
    try:
        kind, content, speaker = found["type"], found["data"], str(found["source"])
        if not kind.startswith(PREFIX) or not isinstance(content, dict):
            return None
        if is_long:
            if max(len(kind), len(speaker)) > _LONGEST_NAME or not _is_bounded(content):
                return None
            content = _cut(content)
        return Event(
            kind[len(PREFIX) :],
            speaker,
            datetime.fromisoformat(found["time"]).timestamp(),
            str(found.get("subject", "")),
            content,
            whole=found,
        )
    except (*MALFORMED, OSError):  # which a time can be that no clock shows
        return None


def _is_bounded(content: Mapping[str, Any]) -> bool:
    """Whether its names can be kept, and shown: a stranger's may be megabytes."""
    for each in _NAMED:
        named = content.get(each)
        if named is None:
            continue
        if isinstance(named, str):
            if len(named) > _LONGEST_NAME:
                return False
        elif isinstance(named, list):  # of texts, else it is a TypeError
            longest = max(map(str.__len__, named), default=0)
            if len(named) > _MOST_NAMES or longest > _LONGEST_NAME:
                return False
        elif isinstance(named, dict):
            return False
    return True


def _cut(content: dict[str, Any]) -> dict[str, Any]:
    """The same, with no more of what it says than is ever written here."""
    cut: dict[str, Any] = {}
    for name in _SAID:
        said = content.get(name)
        if isinstance(said, str) and len(said) > _LONGEST:
            cut[name] = said[:_LONGEST]
    figures = content.get("figures")
    if isinstance(figures, dict) and (len(figures) > _FIGURES or not _are_short(figures)):
        cut["figures"] = plain(figures.items())
    return {**content, **cut} if cut else content


def _are_short(figures: Mapping[str, Any]) -> bool:
    for name, said in figures.items():
        if isinstance(said, list | dict) or len(name) > _TEXT:
            return False
        if isinstance(said, str) and len(said) > _TEXT:
            return False
    return True


def read_to(take: Callable[[Event], object], data: bytes) -> None:
    """Hand on the events of an entry, and pass over those that whoever takes them cannot digest.

    All who follow a log read by it: an entry that one could not get past would be its last.
    """
    for event in read(data):
        try:
            take(event)
        except TimeLimit:  # which may come at any time, from beside
            raise
        except Exception as error:
            if is_from_handler(error):
                raise
            _pass_over(event, error)


def _pass_over(event: Event, error: Exception) -> None:
    kind = type(error).__name__
    if kind not in _passed_over:
        _passed_over.add(kind)
        logger.warning(
            "an event of the journal cannot be made sense of and is passed over: %s by %s, %s: %s "
            "(said once for each error)",
            shown(event.type, 100),
            shown(event.source, 100),
            kind,
            shown(error, 200),
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )


#: The types of the errors that were said.
_passed_over: set[str] = set()


def number(value: object) -> float | None:
    """What an event has for a number, if it can be reckoned with: JSON knows any length."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if -sys.float_info.max <= value <= sys.float_info.max else None


def moment(value: object) -> float | None:
    """What an event has for a time, seconds since the epoch, if it can be one."""
    found = number(value)
    return float(found) if found is not None and 0 <= found < _LATEST else None


def attempt_of(data: Mapping[str, Any]) -> int:
    """Which attempt of a job an event is of.

    Raises:
        one of MALFORMED: it does not say.
    """
    attempt = int(data["attempt"])
    if not 0 <= attempt <= _MOST_ATTEMPTS:
        raise ValueError(f"no attempt has the number {shown(attempt, 30)}")
    return attempt


def micro(seconds: float | None) -> int:
    """A time of submission, as precisely as every broker keeps it; 0 for none."""
    return round((seconds or 0.0) * 1_000_000)


def chunks(ids: list[str]) -> Sequence[list[str]]:
    """Ids in portions that fit into an event."""
    if 0 < len(ids) <= _IDS:  # told at once, as it is for every job that is submitted
        return (ids,)
    return [ids[begin : begin + _IDS] for begin in range(0, len(ids), _IDS)]


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
